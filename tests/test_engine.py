"""The engine's own duties; what holds for every method is in methods/test_contract.py."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from salviz import engine
from salviz.errors import ClassifierError, MethodError, RequestError
from salviz.targets import ClassTarget, PredictedTarget
from tests.models import LinearNet, classifier_of, images, timm_model, toy

QUICK = {"gradient": {}, "smoothgrad": {"samples": 3}, "occlusion": {"window": 16, "stride": 16}}


@pytest.mark.parametrize(
    ("x", "options", "sentence"),
    [
        (torch.zeros(0, 3, 32, 32), {"digests": []}, r"N at least 1, not \(0, 3, 32, 32\)"),
        (torch.zeros(1, 1, 32, 32), {}, r"\(N, 3, H, W\)"),
        (torch.zeros(3, 32, 32), {}, r"not \(3, 32, 32\)"),
        (torch.zeros(1, 3, 32, 32), {"batch_size": 0}, "batch size cannot be 0"),
        (torch.zeros(1, 3, 32, 32), {"target": ClassTarget(torch.tensor([-1]))}, "no class -1"),
        (torch.zeros(1, 3, 32, 32), {"digests": ["a", "b"]}, "1 images but 2 digests"),
    ],
)
def test_inputs_that_do_not_fit_get_one_sentence(x: torch.Tensor, options: dict, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        engine.explain(toy(), x, **{"method": "gradient", "digests": ["a"], **options})


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), 10**400, "1e999", None, [3], 2.5, "2.0"], ids=repr)
def test_a_number_that_is_none_is_refused(value: object) -> None:
    with pytest.raises(MethodError, match=r"samples must be a whole number|between 1 and 500"):
        engine.explain(toy(), images(1, 32), method="smoothgrad", parameters={"samples": value}, digests=["a"])


@pytest.mark.parametrize("method", ["gradient", "smoothgrad", "edge"])
def test_the_predicted_class_is_each_images_own(method: str) -> None:
    classifier = classifier_of(LinearNet(32), size=32, classes=4)
    x, digests = images(6, 32), list("abcdef")
    options = {"method": method, "digests": digests, "batch_size": 4}
    found = engine.explain(classifier, x, **options)
    predicted = classifier.predict(x).argmax(1)
    assert len(predicted.unique()) > 1, "a test for several classes needs several"
    assert torch.equal(found.classes, predicted)
    named = engine.explain(classifier, x, target=ClassTarget(predicted), **options)
    torch.testing.assert_close(named.maps, found.maps)
    torch.testing.assert_close(named.logits, found.logits)


def test_the_explained_score_is_the_one_asked_for() -> None:
    x = images(2, 32)
    logit = engine.explain(toy(), x, method="gradient", digests=["a", "b"])
    probability = engine.explain(toy(), x, method="gradient", digests=["a", "b"], target=PredictedTarget("probability"))
    leaf = x.clone().requires_grad_(True)
    score = toy().forward(leaf).softmax(1).gather(1, logit.classes[:, None]).sum()
    (expected,) = torch.autograd.grad(score, leaf)
    torch.testing.assert_close(probability.maps, expected)
    assert not torch.allclose(probability.maps, logit.maps)


def _raised() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


# More bytes than there are addresses: these two ask the allocators and are refused.
SHORTAGES = {"cuda": _raised, "cpu": lambda: torch.empty(2**46), "numpy": lambda: np.empty(2**46)}


class Tight(nn.Module):
    """The toy net where memory is short for more than a few images; keeps the sizes of the batches it saw."""

    def __init__(self, most: int, run_short: Callable[[], object]) -> None:
        super().__init__()
        self.inner = toy().module
        self.most, self.run_short = most, run_short
        self.sizes: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(x))
        if len(x) > self.most:
            self.run_short()
        return self.inner(x)


@pytest.mark.parametrize("kind", SHORTAGES)
def test_a_single_image_that_does_not_fit_is_said(kind: str) -> None:
    classifier = classifier_of(Tight(0, SHORTAGES[kind]), size=32, classes=10)
    with pytest.raises(MethodError, match=r"Gradient does not fit into memory.*smaller"):
        engine.explain(classifier, images(4, 32), method="gradient", digests=list("abcd"))
    with pytest.raises(ClassifierError, match=r"toy does not fit into memory.*smaller"):
        engine.predict(classifier, images(4, 32))
    assert classifier.lock.acquire(blocking=False)
    classifier.lock.release()


@pytest.mark.parametrize("kind", SHORTAGES)
@pytest.mark.parametrize("method", ["gradient", "smoothgrad", "occlusion"])
def test_where_memory_runs_out_passes_are_halved_and_give_the_same(kind: str, method: str) -> None:
    x, options = images(7, 32), {"method": method, "parameters": QUICK[method], "digests": list("abcdefg")}
    module = Tight(2, SHORTAGES[kind])
    classifier = classifier_of(module, size=32, classes=10)
    found = engine.explain(classifier, x, batch_size=7, **options)
    assert max(module.sizes) > 2
    alone = engine.explain(toy(), x, batch_size=1, **options)
    torch.testing.assert_close(found.maps, alone.maps, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.logits, alone.logits, atol=1e-6, rtol=1e-5)
    assert torch.equal(found.classes, alone.classes)
    module.sizes.clear()
    torch.testing.assert_close(engine.predict(classifier, x), alone.logits, atol=1e-6, rtol=1e-5)
    # Seven, half of it, half of that, and what is left.
    assert module.sizes == [7, 3, 1, 1, 1, 1, 1, 1, 1]


def test_another_fault_is_no_shortage() -> None:
    def broken() -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    module = Tight(2, broken)
    classifier = classifier_of(module, size=32, classes=10)
    for run in (
        lambda: engine.explain(classifier, images(4, 32), method="gradient", digests=list("abcd")),
        lambda: engine.predict(classifier, images(4, 32)),
    ):
        module.sizes.clear()
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            run()
        assert module.sizes == [4]


def test_a_shortage_is_no_finding_about_a_nets_head() -> None:
    """How a layer's head can run alone is learnt once a net: not while memory is short."""
    x, options = images(1, 160), {"method": "ablation_cam", "digests": ["a"], "parameters": {"channels": 4}}

    class Short(nn.Module):
        is_short = True

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            if self.is_short and len(batch) > 1:
                torch.empty(2**46)
            return batch

    inner = copy.deepcopy(timm_model("test_vit").module)
    short = inner.fc_norm = Short()
    classifier = classifier_of(inner, size=160, classes=1000)
    with pytest.raises(MethodError, match="does not fit into memory"):
        engine.explain(classifier, x, **options)
    short.is_short = False
    plain = engine.explain(timm_model("test_vit"), x, **options)
    torch.testing.assert_close(engine.explain(classifier, x, **options).maps, plain.maps)
    calls: list[int] = []
    with inner.blocks[0].attn.register_forward_hook(lambda *_: calls.append(1)):
        engine.explain(classifier, x, **options)
    assert len(calls) == 1, "the first block is run for the image itself and no channel"


def test_progress_never_falls_even_when_a_batch_is_tried_again() -> None:
    ticks: list[tuple[int, int]] = []
    classifier = classifier_of(Tight(2, SHORTAGES["cpu"]), size=32, classes=10)
    engine.explain(
        classifier, images(5, 32), method="smoothgrad", parameters={"samples": 2}, digests=list("abcde"),
        progress=lambda *tick: ticks.append(tick),
    )  # fmt: skip
    assert ticks == sorted(ticks)
    assert all(done <= total for done, total in ticks)


def test_the_input_is_left_as_it_was() -> None:
    x = images(2, 32)
    before = x.clone()
    found = engine.explain(toy(), x.requires_grad_(True), method="gradient", digests=["a", "b"])
    assert torch.equal(x.detach(), before)
    assert x.grad is None
    assert not found.maps.requires_grad
    assert found.seconds > 0


def test_predictions_do_not_depend_on_the_chunk() -> None:
    x = images(5, 32)
    torch.testing.assert_close(engine.predict(toy(), x, batch_size=2), toy().predict(x))
