"""Several classes of an image explained together: the same as one by one, in the passes that these really need."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from salviz import engine, methods
from salviz.classifiers import Classifier
from salviz.engine import Explained
from salviz.errors import MethodError, RequestError
from salviz.targets import PredictedTarget, SeveralTargets, Target, TopTarget
from tests.models import classifier_of, images, sampled, timm_model, toy

QUICK = {"samples": 12, "steps": 3, "iterations": 2, "window": 12, "stride": 10, "segments": 6, "channels": 3}
BY_SCORES = ["rise", "lime", "kernel_shap", "occlusion", "superpixel_ablation", "score_cam", "ablation_cam"]
DIGESTS = ["a", "b"]


def quick(method: str, **more: object) -> dict:
    names = {parameter.name for parameter in methods.get(method).card.parameters}
    grid = {"segmentation": "grid", "width": 1.0}
    return {key: value for key, value in {**QUICK, **grid, **more}.items() if key in names}


def net_for(method: str) -> Classifier:
    needs_attention = methods.get(method).card.family == "attention"
    return timm_model("test_vit") if needs_attention else toy()


def size_of(classifier: Classifier) -> int:
    return classifier.preprocessing.input_size[0]


@contextmanager
def counted(classifier: Classifier) -> Iterator[list[int]]:
    """Images in every forward of the net."""
    calls: list[int] = []
    handle = classifier.runtime.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    try:
        yield calls
    finally:
        handle.remove()


def each_alone(classifier: Classifier, x: torch.Tensor, targets: list[PredictedTarget], **options) -> list[Explained]:
    """One call a class and image, image by image."""
    return [
        engine.explain(classifier, x[[place]], target=target, digests=[DIGESTS[place]], **options)
        for place in range(len(x))
        for target in targets
    ]


def top(classifier: Classifier, x: torch.Tensor, count: int) -> list[list[int]]:
    return classifier.predict(x).topk(count).indices.tolist()


def assert_alike(found: Explained, alone: list[Explained], order: list[int] | None = None) -> None:
    for row, one in zip(order or range(len(alone)), alone, strict=True):
        scale = one.maps.abs().max() or 1.0
        torch.testing.assert_close(found.maps[row] / scale, one.maps[0] / scale, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(found.logits[row], one.logits[0], atol=1e-5, rtol=1e-5)
        assert int(found.classes[row]) == int(one.classes[0])
        for name in ("rivals", "samples"):
            ours, theirs = getattr(found, name), getattr(one, name)
            assert (ours is None) == (theirs is None)
            assert ours is None or ours[row] == theirs[0]
        for name in ("completeness", "standard_error"):
            ours, theirs = getattr(found, name), getattr(one, name)
            assert (ours is None) == (theirs is None)
            if ours is not None:
                torch.testing.assert_close(ours[row], theirs[0], atol=1e-4, rtol=1e-3, equal_nan=True)


@pytest.mark.parametrize("method", sampled(methods.METHODS))
def test_rows_of_an_image_are_what_each_class_gives_alone(method: str) -> None:
    classifier = net_for(method)
    if methods.get(method).refusal(classifier):
        pytest.skip("explains other nets")
    x, options = images(2, size_of(classifier)), {"method": method, "parameters": quick(method)}
    targets = SeveralTargets(
        (PredictedTarget(), PredictedTarget(chosen=3), PredictedTarget(chosen=5), PredictedTarget(chosen=8))
    )
    alone = each_alone(classifier, x, list(targets.targets), **options)
    # All rows in a pass; one image's; some of one image's; one.
    for batch_size in (8, 5, 3, 1) if method in BY_SCORES else (5, 3):
        found = engine.explain(classifier, x, target=targets, digests=DIGESTS, batch_size=batch_size, **options)
        assert_alike(found, alone)
        assert len(found.alone) == len(found.maps) == 8
    turned = engine.explain(classifier, x.flip(0), target=targets, digests=DIGESTS[::-1], **options)
    assert_alike(turned, alone, [4, 5, 6, 7, 0, 1, 2, 3])


@pytest.mark.parametrize("method", [*BY_SCORES, "finer_cam", "gradient", "smoothgrad"])
@pytest.mark.parametrize("output", ["logit", "probability"])
def test_contrasts_too(method: str, output: str) -> None:
    classifier, x = toy(), images(2, 32)
    options = {"method": method, "parameters": quick(method)}
    targets = [PredictedTarget(output, "runner_up"), PredictedTarget(output, 4, 3), PredictedTarget(output, 3, 4)]
    alone = each_alone(classifier, x, targets, **options)
    for batch_size in (6, 2):
        found = engine.explain(
            classifier, x, target=SeveralTargets(tuple(targets)), digests=DIGESTS, batch_size=batch_size, **options
        )
        assert_alike(found, alone)


@pytest.mark.parametrize("method", [name for name, one in methods.METHODS.items() if one.card.all_classes])
@pytest.mark.parametrize("batch_size", [6, 3, 1])
def test_a_view_is_passed_once_for_all_classes(method: str, batch_size: int) -> None:
    classifier, x, settings = toy(), images(2, 32), quick(method)
    options = {"method": method, "parameters": settings, "digests": DIGESTS, "batch_size": batch_size}
    ticks: list[tuple[int, int]] = []
    engine.explain(classifier, x, **options)
    with counted(classifier) as one:
        plain = engine.explain(classifier, x, **options)
    with counted(classifier) as several:
        found = engine.explain(classifier, x, target=TopTarget(3), progress=lambda *tick: ticks.append(tick), **options)
    # Score-CAM's view of nothing is not counted: one a batch of images.
    batches = (1 if batch_size == 6 else 2) - (1 if batch_size > 1 else 2)
    assert sum(several) == sum(one) + (method == "score_cam") * batches
    assert max(several) <= max(batch_size, 1)
    assert found.passes == plain.passes == 2 * engine.passes({method: settings}, (32, 32), classifier, classes=3)
    assert set(found.alone) == {plain.passes / 2}
    assert ticks[-1] == (found.passes, found.passes)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rise", "lime", "kernel_shap"])
def test_each_row_stops_where_it_stops_alone(method: str) -> None:
    """A row that is finished gets no more samples, although its image goes on for another row."""
    classifier, x = toy(), images(2, 32)
    tolerance = {"rise": 0.9, "lime": 0.05, "kernel_shap": 0.005}[method]
    settings = {**quick(method, samples=600), "tolerance": tolerance}
    options = {"method": method, "parameters": settings}
    targets = [PredictedTarget(chosen=index) for index in (0, 3, 5, 8)]
    alone = each_alone(classifier, x, targets, **options)
    counts = [int(one.samples[0]) for one in alone]
    assert len(set(counts[:4])) > 1
    for batch_size in (16, 2):
        with counted(classifier) as calls:
            found = engine.explain(
                classifier, x, target=SeveralTargets(tuple(targets)), digests=DIGESTS, batch_size=batch_size, **options
            )
        assert_alike(found, alone)
        assert list(found.alone) == [one.passes for one in alone]
        assert found.passes == max(found.alone[:4]) + max(found.alone[4:])
        # And the images themselves, once.
        assert sum(calls) == found.passes + 2


def test_progress_ends_where_the_last_row_stopped() -> None:
    ticks: list[tuple[int, int]] = []
    found = engine.explain(
        toy(), images(2, 32), method="rise", parameters={"samples": 600, "tolerance": 0.9},
        target=SeveralTargets((PredictedTarget(chosen=5), PredictedTarget(chosen=8))), digests=DIGESTS,
        progress=lambda *tick: ticks.append(tick),
    )  # fmt: skip
    assert found.passes < 1200
    assert ticks == sorted(ticks, key=lambda tick: tick[0])
    assert ticks[-1] == (found.passes, found.passes)


@pytest.mark.parametrize(
    ("chosen", "forwards", "passes"),
    [
        # One trunk, and a gradient of the head for each class.
        ({"grad_cam": None, "finer_cam": None, "eigen_cam": None}, 1, 1),
        # A backward for each class goes on from it.
        ({"grad_cam": None, "gradient": None, "input_x_gradient": None}, 1, 1 + 3),
        ({"grad_cam": None, "score_cam": {"channels": 3}}, 1 + 3, 1 + 3),
        ({"grad_cam": None, "opti_cam": {"steps": 2}}, 1 + 3 * 2, 1 + 3 * 4),
        ({"gradient": None}, 3, 3 * 2),
        ({"edge": None, "random": None}, 1, 0),
    ],
)
@pytest.mark.parametrize("batch_size", [6, 2, 1])
def test_what_is_shared_is_counted_as_it_is_made(chosen: dict, forwards: int, passes: int, batch_size: int) -> None:
    classifier, x = timm_model("test_resnet"), images(2, 64)
    options = {"methods": chosen, "digests": DIGESTS, "batch_size": batch_size}
    engine.explain_set(classifier, x, **options)
    ticks: list[tuple[int, int]] = []
    with counted(classifier) as calls:
        found = engine.explain_set(
            classifier, x, target=TopTarget(3), progress=lambda *tick: ticks.append(tick), **options
        )
    assert max(calls) <= batch_size
    # Score-CAM's view of nothing is not counted.
    nothing = ("score_cam" in chosen) * (2 if batch_size < 6 else 1)
    # Nor is the prediction, from which classes are known that are explained one after the other.
    predicted = ("gradient" in chosen and len(chosen) == 1 and batch_size < 3) * 2
    assert sum(calls) == 2 * forwards + nothing + predicted
    assert engine.passes(chosen, (64, 64), classifier, classes=3) == passes
    if passes:
        assert ticks[-1] == (2 * passes, 2 * passes)
    for name, settings in chosen.items():
        alone = engine.explain(
            classifier, x, method=name, parameters=settings, target=TopTarget(3), digests=DIGESTS, batch_size=batch_size
        )
        scale = alone.maps.abs().max()
        torch.testing.assert_close(found[name].maps / scale, alone.maps / scale, atol=1e-4, rtol=1e-3)
        assert found[name].passes == alone.passes
        assert alone.passes == 2 * engine.passes({name: settings}, (64, 64), classifier, classes=3)


class Tight(nn.Module):
    """The toy net where memory is short for more than a few images."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.inner, self.most, self.largest = toy().module, most, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.largest = max(self.largest, len(x))
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.inner(x)


@pytest.mark.parametrize("method", ["gradient", "rise", "occlusion", "lime"])
def test_where_memory_runs_out_classes_are_cut_too(method: str) -> None:
    x = images(4, 32)
    options = {"method": method, "parameters": quick(method), "digests": list("abcd"), "target": TopTarget(3)}
    module = Tight(2)
    found = engine.explain(classifier_of(module, size=32, classes=10), x, batch_size=12, **options)
    assert module.largest > 2
    plain = engine.explain(toy(), x, **options)
    assert found.classes.tolist() == plain.classes.tolist()
    scale = plain.maps.abs().max()
    torch.testing.assert_close(found.maps / scale, plain.maps / scale, atol=1e-4, rtol=1e-3)
    with pytest.raises(MethodError, match="even for a single image"):
        engine.explain(classifier_of(Tight(0), size=32, classes=10), x, **options)


def test_the_rows_of_a_class_have_the_passes_they_take_alone() -> None:
    classifier, x = toy(), images(2, 32)
    found = engine.explain(
        classifier, x, method="rise", parameters={"samples": 6}, target=TopTarget(3), digests=DIGESTS
    )
    assert found.passes == 12
    second = found.of_class(1, 3)
    assert second.passes == 12
    assert second.seconds == pytest.approx(found.seconds / 3)
    assert second.classes.tolist() == [row[1] for row in top(classifier, x, 3)]
    assert torch.equal(second.maps, found.maps[[1, 4]])


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        (TopTarget(11), "The most probable 11 classes cannot be explained; there are 10"),
        (TopTarget(0), "The most probable 0 classes cannot"),
        (SeveralTargets((PredictedTarget(chosen=2), PredictedTarget(chosen=10))), "no class 10"),
    ],
)
def test_classes_that_are_not_there_get_one_sentence(target: Target, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        engine.explain(toy(), images(2, 32), method="gradient", target=target, digests=DIGESTS)


@pytest.mark.parametrize(
    "targets",
    [(), (PredictedTarget(), PredictedTarget("probability")), (PredictedTarget(), PredictedTarget(against=1))],
)
def test_targets_that_do_not_go_together_get_one_sentence(targets: tuple[PredictedTarget, ...]) -> None:
    with pytest.raises(RequestError, match="all of one output, and all contrasts or none"):
        SeveralTargets(targets)
