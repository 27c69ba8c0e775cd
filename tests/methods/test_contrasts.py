"""Contrasts and the most probable classes, for every method.

The oracle of a contrast is a net that has it for a logit: as the last layer is linear, another last layer gives
`f_A - f_B` and leaves everything before it as it is. Three methods mean something else by a contrast, each held below:
Finer-CAM takes off a share of the rival alone, relevance propagation hands both scores back one by one, and meaningful
perturbation lowers probabilities.
"""

import copy
import functools

import pytest
import torch
from torch import nn

import salviz
from salviz import engine, methods
from salviz.classifiers.classifier import Classifier
from salviz.targets import ClassTarget, TopTarget
from tests.methods.test_contract import CASES, NETS, net_for, quick
from tests.models import classifier_of, images, sampled, timm_model

CLASS, RIVAL = 3, 7
SETTINGS = {"meaningful_perturbation": {"output": "target"}}
OTHERWISE = ("finer_cam", "lrp")


@functools.cache
def pushed_forward(name: str, share: float = 1.0) -> Classifier:
    """The net with the logit `f_A - share * f_B` for its class 0."""
    module = copy.deepcopy(timm_model(name).module)
    path = {"test_resnet": "fc", "test_vit": "head"}[name]
    plain: nn.Linear = getattr(module, path)
    head = nn.Linear(plain.in_features, 2)
    with torch.no_grad():
        for own, of_all in ((head.weight, plain.weight), (head.bias, plain.bias)):
            own.zero_()
            own[0] = of_all[CLASS] - share * of_all[RIVAL]
    setattr(module, path, head)
    return classifier_of(module, size=160, classes=2, name=f"{name} {share}")


def explained(
    classifier: Classifier, method: str, index: int, against: int | None = None, **settings: object
) -> torch.Tensor:
    rivals = None if against is None else torch.full((2,), against)
    found = engine.explain(
        classifier, images(2, 160), method=method, target=ClassTarget(torch.full((2,), index), against=rivals),
        digests=["a", "b"], parameters={**quick(method), **settings},
    )  # fmt: skip
    return found.maps


def assert_alike(found: torch.Tensor, expected: torch.Tensor) -> None:
    scale = expected.abs().max()
    torch.testing.assert_close(found / scale, expected / scale, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("name", "method"), sampled(case for case in CASES if case.values[1] not in OTHERWISE))
def test_a_contrast_is_the_class_of_a_net_that_has_it_for_a_logit(name: str, method: str) -> None:
    settings = SETTINGS.get(method, {})
    found = explained(timm_model(name), method, CLASS, RIVAL, **settings)
    assert_alike(found, explained(pushed_forward(name), method, 0, **settings))


@pytest.mark.parametrize("name", NETS)
def test_a_contrast_of_finer_cam_takes_off_a_share_of_the_rival(name: str) -> None:
    for share in (0.6, 1.0):
        found = explained(timm_model(name), "finer_cam", CLASS, RIVAL, strength=share)
        assert_alike(found, explained(pushed_forward(name, share), "grad_cam", 0))


@pytest.mark.parametrize("name", NETS)
def test_a_contrast_of_relevance_is_the_difference_of_two(name: str) -> None:
    """Which share a neuron's inputs have does not depend on how much it hands back, so relevance is linear in it."""
    classifier = timm_model(name)
    alone = [explained(classifier, "lrp", index) for index in (CLASS, RIVAL)]
    assert_alike(explained(classifier, "lrp", CLASS, RIVAL), alone[0] - alone[1])


class Probabilities(nn.Module):
    """The difference of two probabilities for a logit, and a second one that nobody asks for."""

    def __init__(self, inner: nn.Module, chosen: int, rival: int) -> None:
        super().__init__()
        self.inner, self.chosen, self.rival = inner, chosen, rival

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shares = self.inner(x).softmax(dim=1)
        return torch.stack([shares[:, self.chosen] - shares[:, self.rival], torch.zeros(len(x))], dim=1)


class Sharper(nn.Module):
    """Logits as far apart as a trained net's, so that there are probabilities to lower."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 5 * self.inner(x)


@pytest.mark.parametrize("name", NETS)
def test_a_contrast_of_meaningful_perturbation_is_one_of_probabilities(name: str) -> None:
    sharper = Sharper(timm_model(name).module)
    classifier = classifier_of(sharper, size=160, classes=1000, name=f"sharper {name}")
    chosen, rival = classifier.predict(images(2, 160))[0].topk(2).indices.tolist()
    shares = classifier_of(Probabilities(sharper, chosen, rival), size=160, classes=2, name=f"shares {name}")
    settings = {"iterations": 4, "start": "all"}
    found = explained(classifier, "meaningful_perturbation", chosen, rival, **settings)
    assert_alike(found, explained(shares, "meaningful_perturbation", 0, output="target", **settings))
    alone = explained(classifier, "meaningful_perturbation", chosen, **settings)
    assert (found - alone).abs().max() > 0.01
    of_logits = explained(classifier, "meaningful_perturbation", chosen, rival, output="target", **settings)
    assert (found - of_logits).abs().max() > 0.01


@pytest.mark.parametrize("method", sampled(methods.METHODS))
def test_each_of_the_most_probable_classes_is_explained_as_if_alone(method: str) -> None:
    classifier, x, chosen = timm_model(net_for(method)), images(1, 160), {method: quick(method)}
    found = salviz.explain(classifier, x, methods=chosen, target=TopTarget(2))[method]
    top = classifier.predict(x)[0].topk(2).indices.tolist()
    assert found.classes.tolist() == top
    for row, index in enumerate(top):
        alone = salviz.explain(classifier, x, methods=chosen, target=index)[method]
        assert_alike(found.maps[[row]], alone.maps)
        torch.testing.assert_close(found.logits[[row]], alone.logits, atol=1e-5, rtol=1e-5)
