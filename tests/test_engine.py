"""The engine's own duties; what holds for every method is in methods/test_contract.py."""

import pytest
import torch
from torch import nn

from salviz import engine
from salviz.errors import MethodError, RequestError
from salviz.targets import ClassTarget, PredictedTarget
from tests.models import LinearNet, classifier_of, images, toy


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


def test_a_single_image_that_does_not_fit_is_said() -> None:
    class Huge(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("too many")

    classifier = classifier_of(Huge(), size=32, classes=3)
    with pytest.raises(MethodError, match=r"Gradient does not fit into memory.*smaller"):
        engine.explain(classifier, images(4, 32), method="gradient", digests=list("abcd"))
    assert classifier.lock.acquire(blocking=False)
    classifier.lock.release()


def test_progress_never_falls_even_when_a_batch_is_tried_again() -> None:
    class Tight(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = toy().module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) > 2:
                raise torch.OutOfMemoryError("too many")
            return self.inner(x)

    ticks: list[tuple[int, int]] = []
    classifier = classifier_of(Tight(), size=32, classes=10)
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
