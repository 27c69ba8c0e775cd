"""What is explained: a class, each input's prediction, and contrasts between two classes."""

import pytest
import torch

from salviz import engine
from salviz.errors import RequestError
from salviz.targets import ClassTarget, PredictedTarget
from tests.models import LinearNet, classifier_of, images, timm_model, toy

LOGITS = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0]])


def test_a_contrast_is_the_difference_of_two_scores() -> None:
    target = ClassTarget(torch.tensor([0, 1]), against=torch.tensor([2, 0]))
    assert target.score(LOGITS).tolist() == [1.0, 5.0]
    shares = LOGITS.softmax(1)
    probability = ClassTarget(torch.tensor([0, 1]), "probability", torch.tensor([2, 0]))
    torch.testing.assert_close(
        probability.score(LOGITS), torch.stack([shares[0, 0] - shares[0, 2], shares[1, 1] - shares[1, 0]])
    )


@pytest.mark.parametrize(
    ("target", "classes", "rivals"),
    [
        (PredictedTarget(), [0, 1], None),
        (PredictedTarget(chosen=2), [2, 2], None),
        (PredictedTarget(against="runner_up"), [0, 1], [2, 2]),
        (PredictedTarget(against=2), [0, 1], [2, 2]),
        (PredictedTarget(against=1), [0, 1], [1, 2]),  # the second image's own class: its runner-up instead
        (PredictedTarget(chosen=2, against="runner_up"), [2, 2], [0, 1]),
        (PredictedTarget(chosen=0, against="runner_up"), [0, 0], [2, 1]),
    ],
)
def test_predicted_targets_are_resolved_image_by_image(
    target: PredictedTarget, classes: list[int], rivals: list[int] | None
) -> None:
    found = target.resolve(LOGITS)
    assert found.classes.tolist() == classes
    assert (None if found.against is None else found.against.tolist()) == rivals


def test_repeats_and_parts_keep_their_rivals() -> None:
    target = ClassTarget(torch.tensor([0, 1, 2]), "probability", torch.tensor([1, 2, 0]))
    twice = target.repeat(2)
    assert twice.classes.tolist() == [0, 1, 2, 0, 1, 2]
    assert twice.against is not None
    assert twice.against.tolist() == [1, 2, 0, 1, 2, 0]
    part = target.part(torch.tensor([2, 0]))
    assert (part.classes.tolist(), part.against.tolist(), part.output) == ([2, 0], [0, 1], "probability")


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        (ClassTarget(torch.tensor([0]), against=torch.tensor([0])), "two different classes"),
        (ClassTarget(torch.tensor([0]), against=torch.tensor([77])), "no class 77"),
        (ClassTarget(torch.tensor([0]), against=torch.tensor([1, 2])), "1 images but 2 target classes"),
        (PredictedTarget(against=77), "no class 77"),
        (PredictedTarget(chosen=-1), "no class -1"),
    ],
)
def test_contrasts_that_make_no_sense_get_one_sentence(target: ClassTarget, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        engine.explain(toy(), images(1, 32), method="gradient", target=target, digests=["a"])


@pytest.mark.parametrize("method", ["gradient", "input_x_gradient", "integrated_gradients", "smoothgrad", "occlusion"])
def test_linear_methods_explain_a_contrast_by_the_difference_of_their_maps(method: str) -> None:
    classifier, x, digests = classifier_of(LinearNet(12), size=12, classes=4), images(2, 12), ["a", "b"]
    settings = {"window": 4, "stride": 4} if method == "occlusion" else {}

    def explain(target: ClassTarget) -> torch.Tensor:
        return engine.explain(classifier, x, method=method, target=target, digests=digests, parameters=settings).maps

    first, second = torch.tensor([1, 3]), torch.tensor([2, 0])
    difference = explain(ClassTarget(first)) - explain(ClassTarget(second))
    torch.testing.assert_close(explain(ClassTarget(first, against=second)), difference, atol=1e-5, rtol=1e-4)


def test_grad_cam_of_a_contrast_is_the_difference_too() -> None:
    """Its weights are linear in the gradient."""
    classifier, x = timm_model("test_vit"), images(2, 160)
    first, second = torch.tensor([1, 3]), torch.tensor([2, 0])
    maps = [
        engine.explain(classifier, x, method="grad_cam", target=target, digests=["a", "b"])
        for target in (ClassTarget(first), ClassTarget(second), ClassTarget(first, against=second))
    ]
    torch.testing.assert_close(maps[2].maps, maps[0].maps - maps[1].maps, atol=1e-6, rtol=1e-3)
    assert maps[2].rivals.tolist() == [2, 0]
    assert maps[0].rivals is None
