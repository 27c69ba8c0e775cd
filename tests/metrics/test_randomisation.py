"""Curves of similarity under randomisation, their intervals, and verdicts in words."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import bootstrap

from salviz.metrics.randomisation import curve, efficient_mprt, ignored, verdict

NAMES = ("head", "block 3", "block 2", "block 1")
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "adebayo.json").read_text())


def flat(*means: float, images: int = 6, spread: float = 0.01):
    """A curve of one draw whose images lie evenly around each mean."""
    offsets = np.linspace(-spread, spread, images)
    return curve(np.array([[mean + offsets for mean in means]]), np.ones(images))


def test_means_are_over_draws_then_images_and_intervals_over_images() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0.5, 0.2, size=(3, 2, 40))
    found = curve(values, np.ones(40), draws=4000)
    for place, score in enumerate(found.stages):
        an_image = values[:, place].mean(axis=0)
        assert score.value == pytest.approx(an_image.mean())
        assert (score.count, score.undefined) == (40, 0)
        theirs = bootstrap((an_image,), np.mean, method="percentile", n_resamples=4000, rng=rng).confidence_interval
        assert score.low == pytest.approx(theirs.low, abs=0.01)
        assert score.high == pytest.approx(theirs.high, abs=0.01)
    assert found.area.value == pytest.approx(values.mean())
    assert found.itself.value == 1


def test_undefined_is_counted_and_left_out() -> None:
    values = np.full((2, 3, 4), 0.5)
    values[0, 0, 0] = np.nan
    values[:, 1, :2] = np.nan
    values[:, 2] = np.nan
    found = curve(values, np.ones(4))
    assert [(s.count, s.undefined) for s in found.stages] == [(4, 0), (2, 2), (0, 4)]
    assert [s.value for s in found.stages[:2]] == [0.5, 0.5]
    assert math.isnan(found.stages[2].value)
    alone = curve(values[:, :, :1], np.ones(1))
    assert alone.stages[0].value == 0.5
    assert math.isnan(alone.stages[0].low)


def test_neither_draws_nor_stages_change_each_others_interval() -> None:
    values = np.random.default_rng(1).normal(size=(1, 3, 20))
    whole, part = curve(values, np.ones(20)), curve(values[:, 1:2], np.ones(20))
    assert whole.stages[1] == part.stages[0]


def test_golden_efficient_mprt() -> None:
    for name, case in GOLDEN["cases"].items():
        given = case["quantus"]
        found = efficient_mprt(np.array(given["discrete_entropy_a"]), np.array(given["discrete_entropy_b"]))
        assert float(found) == pytest.approx(given["emprt_(Hb-Ha)/Ha"], abs=1e-12), name
    assert np.isnan(efficient_mprt(np.zeros(2), np.ones(2))).all()


@pytest.mark.parametrize(
    ("means", "phrases", "count"),
    [
        ((0.4, 0.3, 0.1, 0.0), ["moves with head", "ends like a random map"], 0),
        ((0.99, 0.3, 0.1, 0.3), ["ignores head", "ends at 0.30, above a random map"], 1),
        ((1.0, 0.98, 0.6, 0.0), ["ignores the first 2 stages", "ends like a random map"], 2),
        ((1.0, 1.0, 0.99, 0.98), ["ignores every stage"], 4),
    ],
)
def test_verdicts_say_what_was_measured(means: tuple[float, ...], phrases: list[str], count: int) -> None:
    found, floor = flat(*means), flat(0.0, 0.0, 0.0, 0.0, spread=0.05)
    assert ignored(found) == count
    assert verdict(found, NAMES, floor=floor) == phrases


def test_verdicts_of_single_stages_and_of_the_undefined() -> None:
    found = flat(0.99, 0.2, 0.97, 0.4)
    assert verdict(found, NAMES, is_cumulative=False) == [f"ignores {NAMES[0]}, {NAMES[2]}"]
    many = verdict(flat(0.99, 0.97, 0.96, 0.4), NAMES, is_cumulative=False)
    assert many == ["ignores 3 of 4 stages"]
    assert verdict(flat(0.5, 0.2, 0.3, 0.4), NAMES, is_cumulative=False) == ["moves with every stage"]
    values = np.full((1, 4, 16), 0.5)
    values[0, 2, :3] = np.nan
    assert verdict(curve(values, np.ones(16)), NAMES)[-1] == "undefined at up to 3 of 16 images"
    values[:] = np.nan
    assert verdict(curve(values, np.ones(16)), NAMES)[0] == "undefined after head"


def test_a_sampled_map_is_held_against_its_own_repeat() -> None:
    """Where two seeds agree to .6 only, .59 after the head is no sign that the head matters."""
    values = np.full((1, 2, 5), 0.59)
    assert ignored(curve(values, np.full(5, 0.6))) == 2
    assert ignored(curve(values, np.ones(5))) == 0
