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


@pytest.mark.parametrize("output", ["logit", "probability"])
@pytest.mark.parametrize("rival", [None, 2])
def test_rounding_of_logits_moves_a_score_no_further_than_is_said_and_nearly_so_far(output, rival) -> None:
    """All logits moved by what rounding may take or add, each up or down, in float64."""
    share = 16 * 2.0**-23
    generator = torch.Generator().manual_seed(0)
    for gap in (0.0, 3.0, 12.0):
        logits = torch.tensor([[6.0, 6.0 - gap, -2.0]])
        for chosen in (0, 1):
            against = None if rival is None else torch.tensor([rival])
            target = ClassTarget(torch.tensor([chosen]), output, against)
            signs = torch.randint(0, 2, (200, 3), generator=generator).double() * 2 - 1
            moved = logits.double() + signs * share * 6.0
            scores = ClassTarget(
                torch.full((200,), chosen), output, None if rival is None else torch.full((200,), rival)
            ).score(moved)
            made = (scores - target.score(logits.double())).abs().max()
            # Rounding of the softmax itself comes on top: 4 units in the last place.
            own = 4 * 2.0**-23 * (output == "probability")
            told = float(target.rounding(logits))
            assert made <= told * 1.01
            assert told <= 4 * made + own * logits.softmax(1)[0, [chosen, rival or chosen]].sum() + 1e-12


def test_equal_pictures_of_other_batches_score_alike_and_other_pictures_do_not() -> None:
    classifier = timm_model("test_vit")
    x = images(1, 160)
    target = ClassTarget(torch.tensor([7]))
    found = [classifier.predict(x.expand(count, -1, -1, -1)) for count in (1, 2, 5)]
    scores = torch.cat([target.repeat(len(logits)).score(logits) for logits in found])
    allowed = target.rounding(found[0])
    assert scores.max() - scores.min() <= allowed
    hidden = x.clone()
    hidden[..., :8, :8] = 0
    assert (target.score(classifier.predict(hidden)) - scores[0]).abs() > 10 * allowed


def test_halves_round_more() -> None:
    target = ClassTarget(torch.tensor([0]))
    told = [float(target.rounding(LOGITS[:1], kind)) for kind in (torch.float32, torch.float16, torch.bfloat16)]
    assert told == pytest.approx([3 * 16 * 2**-23, 3 * 2 * 2**-10, 3 * 2 * 2**-7])


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
