"""Means with their errors: against numpy, and against what sampling really does."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import salviz
from salviz import engine
from salviz.images import open_sample
from salviz.methods import METHODS
from salviz.methods.sampling import Estimate, VarianceEstimate, unfinished
from salviz.targets import ClassTarget
from tests.models import LinearNet, classifier_of, images, timm_model, toy


def test_moments_equal_numpys() -> None:
    samples = np.random.default_rng(0).normal(3, 2, (40, 2, 5, 6))
    found = Estimate(torch.zeros(2, 5, 6, dtype=torch.float64))
    for sample in samples[:30]:
        found.add(torch.from_numpy(sample))
    for sample in samples[30:]:  # the second image goes on alone
        found.add(torch.from_numpy(sample[1:]), torch.tensor([1]))
    assert found.count.tolist() == [30, 40]
    for image, count in ((0, 30), (1, 40)):
        own = samples[:count, image]
        np.testing.assert_allclose(found.mean[image], own.mean(0), rtol=1e-12)
        np.testing.assert_allclose(found.variance()[image], own.var(0, ddof=1), rtol=1e-10)
        noise = np.sqrt((own.var(0, ddof=1) / count).mean())
        np.testing.assert_allclose(found.error()[image], noise / own.mean(0).std(ddof=1), rtol=1e-6)


def test_the_variances_error_is_the_jackknifes() -> None:
    """Left out one by one, by numpy."""
    samples = np.random.default_rng(0).gamma(2, 3, (20, 2, 5, 6)) + 4
    found = VarianceEstimate(torch.zeros(2, 5, 6, dtype=torch.float64))
    plain = Estimate(torch.zeros(2, 5, 6, dtype=torch.float64))
    for place, sample in enumerate(samples):
        some = None if place < 12 else torch.tensor([1])  # the second image goes on alone
        for estimate in (found, plain):
            estimate.add(torch.from_numpy(sample if some is None else sample[1:]), some)
        if place < 2:
            assert torch.isnan(found.variance_error()).all()
    torch.testing.assert_close(found.error(), plain.error())
    for image, count in ((0, 12), (1, 20)):
        own = samples[:count, image]
        left = np.stack([np.delete(own, place, axis=0).var(0, ddof=1) for place in range(count)])
        squares = (count - 1) / count * ((left - left.mean(0)) ** 2).sum(0)
        variance = own.var(0)
        error = np.sqrt(squares.mean()) * (count - 1) / count
        np.testing.assert_allclose(found.variance_error()[image], error / variance.std(ddof=1), rtol=1e-8)


def test_edges() -> None:
    found = Estimate(torch.zeros(1, 4, 4))
    assert torch.isnan(found.error()).all()
    found.add(torch.ones(1, 4, 4))
    assert torch.isnan(found.error()).all(), "one sample has no error"
    found.add(torch.ones(1, 4, 4))
    assert found.error().tolist() == [0.0], "no noise and no contrast"
    active = torch.tensor([0, 1, 2])
    assert unfinished(active, torch.tensor([0.1, 0.3, float("nan")]), 0.2).tolist() == [1, 2]
    assert unfinished(active, torch.tensor([0.1, 0.3, float("nan")]), 0.0).tolist() == [0, 1, 2]


def smooth(digests: list[str], method: str = "smoothgrad", **settings: float) -> engine.Explained:
    classifier, x = timm_model("test_resnet"), images(2, 96)
    return engine.explain(
        classifier, x[: len(digests)], method=method, digests=digests, parameters=settings,
        target=ClassTarget(torch.tensor([3, 7])[: len(digests)]),
    )  # fmt: skip


# Where gradients hardly change, their mean square is twice as sure as their variance.
@pytest.mark.parametrize(("method", "noise"), [("smoothgrad", 0.15), ("smoothgrad_squared", 0.15), ("vargrad", 0.01)])
def test_the_error_told_is_the_error_made(method: str, noise: float) -> None:
    """Over repetitions with other noise, the distance to the mean is what the standard error says."""
    runs = [smooth([f"{run}"], method, samples=16, noise=noise) for run in range(12)]
    maps = torch.stack([run.maps[0] for run in runs])
    made = (maps.var(dim=0).mean().sqrt() / maps.flatten(1).std(dim=1).median()).item()
    told = torch.cat([run.standard_error for run in runs]).median().item()
    assert 0.9 < told / made < 1.1


def test_the_variances_error_is_the_same_whoever_drew_the_samples() -> None:
    alone = smooth(["a", "b"], "vargrad", samples=4)
    together = engine.explain_set(
        timm_model("test_resnet"), images(2, 96), methods={key: {"samples": 4} for key in ("smoothgrad", "vargrad")},
        digests=["a", "b"], target=ClassTarget(torch.tensor([3, 7])),
    )  # fmt: skip
    torch.testing.assert_close(together["vargrad"].standard_error, alone.standard_error)
    assert (together["vargrad"].standard_error != together["smoothgrad"].standard_error).all()


def test_a_tolerance_stops_each_image_by_itself() -> None:
    both = smooth(["a", "b"], samples=400, tolerance=0.5)
    assert (both.standard_error <= 0.5).all()
    assert (both.samples < 400).all()
    assert both.samples.remainder(8).eq(0).all()
    alone = smooth(["a"], samples=400, tolerance=0.5)
    assert alone.samples[0] == both.samples[0]
    torch.testing.assert_close(alone.maps[0], both.maps[0], rtol=1e-3, atol=1e-5 * float(both.maps.abs().max()))


SAMPLED = {
    "smoothgrad": (2, {}),
    "smoothgrad_squared": (2, {}),
    "vargrad": (2, {}),
    "ig_smoothgrad": (2 * 2 + 1, {"steps": 2}),
    "expected_gradients": (3, {}),
    "rise": (1, {"cells": 4, "centre": True}),
    "lime": (1, {"segments": 6, "segmentation": "slic"}),
    "kernel_shap": (1, {"segments": 6}),
}
"""Passes of a sample, and settings of every sampling method."""


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.card.stochastic])
def test_an_early_stop_tells_the_passes_that_were_made(method: str) -> None:
    each, settings = SAMPLED[method]
    classifier, x = toy(), images(3, 32) * torch.tensor([0.2, 1, 5]).view(3, 1, 1, 1)
    target, digests, ticks = ClassTarget(torch.tensor([3, 7, 1])), ["a", "b", "c"], []
    options = {"target": target, "digests": digests, "method": method}
    few = engine.explain(classifier, x, parameters={"samples": 128, **settings}, **options)
    # Errors fall with the root of the samples, so that no image needs all.
    settings = {**settings, "samples": 500, "tolerance": min(1.0, float(few.standard_error.max()) / 1.4)}
    made = []
    handle = classifier.runtime.register_forward_pre_hook(lambda module, inputs: made.append(len(inputs[0])))
    found = engine.explain(
        classifier, x, parameters=settings, progress=lambda *told: ticks.append(told), batch_size=16, **options
    )
    handle.remove()
    assert (found.standard_error <= settings["tolerance"]).all()
    assert (found.samples < 500).all()
    # Blank images and, of LIME, the image itself, whose score is known.
    beside = {"ig_smoothgrad": 3, "kernel_shap": 3, "lime": -3}.get(method, 0)
    assert found.passes == each * float(found.samples.sum()) + beside
    assert ticks[-1] == (found.passes, found.passes)
    # A forward for two of a gradient's passes; and beside them the blank image and the logits, once.
    forwards = {"ig_smoothgrad": 3, "expected_gradients": 2}.get(method, 1)
    beside = sum(made) - forwards * int(found.samples.sum())
    assert beside == {"ig_smoothgrad": 1 + 3, "lime": 3 - 3, "kernel_shap": 3 + 3}.get(method, 3)


def test_vargrad_is_the_variance_of_smoothgrads_samples() -> None:
    mean = smooth(["a", "b"], samples=16).maps
    square = smooth(["a", "b"], "smoothgrad_squared", samples=16).maps
    variance = smooth(["a", "b"], "vargrad", samples=16).maps
    torch.testing.assert_close(variance, square - mean.square(), rtol=1e-3, atol=1e-4 * float(square.max()))


@pytest.mark.parametrize("centre", [False, True])
def test_rise_of_masks_that_make_no_difference_is_the_score_everywhere(centre: bool) -> None:
    """The mean colour behind the masks is the first image's own; beside it one that is not even."""
    classifier, x = toy(), torch.cat([torch.zeros(1, 3, 32, 32), images(1, 32)])
    settings = {"samples": 20, "centre": centre}

    def explain(x: torch.Tensor) -> engine.Explained:
        target = ClassTarget(torch.full((len(x),), 3))
        return engine.explain(classifier, x, method="rise", target=target, parameters=settings, digests="ab"[: len(x)])

    found = explain(x)
    assert (found.maps[0] == found.maps[0, 0, 0]).all()
    torch.testing.assert_close(found.maps[0, 0, 0], found.logits[0, 3])
    assert found.standard_error[0] == 0
    assert found.is_flat.tolist() == [True, False]
    assert torch.equal(explain(x[:1]).maps[0], found.maps[0])


def test_one_mask_alone_cannot_tell_that_masks_make_no_difference() -> None:
    x = torch.zeros(1, 3, 32, 32)
    found = engine.explain(toy(), x, method="rise", parameters={"samples": 1}, digests=["a"])
    assert not found.is_flat.any()


@pytest.mark.parametrize("gap", [5.0, 25.0])
def test_small_probabilities_are_no_rounding(gap: float) -> None:
    """A class with a probability of a hundredth, and one of 1e-11: what hides the picture still moves it."""
    net = LinearNet(16, classes=2)
    net.bias = torch.nn.Parameter(torch.tensor([0.0, -gap]))
    classifier, x = classifier_of(net, size=16, classes=2), images(1, 16) * 0.3
    target = ClassTarget(torch.tensor([1]), output="probability")
    for method, settings in (("rise", {"samples": 16}), ("occlusion", {"window": 4, "stride": 4})):
        found = engine.explain(classifier, x, method=method, target=target, parameters=settings, digests=["a"])
        assert not found.is_flat.any()
        assert found.maps.std() > 0.01 * found.maps.abs().max()


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        pytest.param("rise", {"samples": 80}, marks=pytest.mark.slow),
        pytest.param("score_cam", {"channels": 24}, marks=pytest.mark.slow),
        ("occlusion", {"stride": 56}),
    ],
)
def test_half_precision_keeps_the_ranks_or_is_not_used(method: str, settings: dict[str, int]) -> None:
    """On real weights and a photograph; bf16 takes 7 of 23 bits, and a map of single passes shows it.

    A processor without bf16 emulates it at a twentieth of its speed: one picture and few passes have to do.
    """
    full = salviz.load("tf_efficientnet_lite0", device="cpu")
    half = replace(full, autocast=torch.bfloat16)
    pictures = [open_sample("cat")]
    found = [
        salviz.explain(classifier, pictures, methods={method: settings})[method].maps for classifier in (full, half)
    ]
    if method == "occlusion":
        assert torch.equal(*found)
        return
    assert not torch.equal(*found)
    for one, other in zip(*found, strict=True):
        assert spearmanr(one.flatten(), other.flatten()).statistic >= 0.995
