"""What randomising a net does to its maps: curves, their areas and intervals, and a verdict in words.

Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018; efficient MPRT: Hedström et al. 2024.
Larger is more alike: a method that explains the net lets the similarity fall as the net is randomised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from salviz.metrics import MetricCard, Score, with_interval

CHECKED = ("gradient", "input_x_gradient", "guided_backprop", "grad_cam")
"""The methods that are checked where nobody chooses: what passes and what fails, at a forward and a backward each."""

CALIBRATION = ("random", "edge")
"""Always beside the methods: the random map, drawn anew for each net, is what passes; the edge map never moves."""

MOVED = 0.95
"""A stage counts as ignored while the maps stay this alike, as a share of the map's similarity with itself."""

NAMED = 2
"""So many stages at the most are named, and more are counted."""

CARDS: tuple[MetricCard, ...] = (
    MetricCard(
        id="mprt",
        title="Similarity under randomisation",
        description="How alike the maps of the trained and of the randomised net are, stage by stage.",
        citation="Adebayo et al., NeurIPS 2018",
        range=(-1.0, 1.0),
        higher_is_better=False,
        needs=("maps of the trained net", "maps of the randomised net"),
        undefined="NaN for a constant map; left out of means and counted.",
    ),
    MetricCard(
        id="emprt",
        title="Efficient MPRT",
        description="How much more evenly the values of the map are spread once the whole net is random: "
        "(entropy after - entropy before) / entropy before.",
        citation="Hedström et al. 2024",
        range=(-1.0, float("inf")),
        higher_is_better=True,
        needs=("map of the trained net", "map of the fully randomised net"),
        undefined="NaN where the trained net's map is constant; left out of means and counted.",
    ),
)


@dataclass(frozen=True)
class Curve:
    """One method's similarity along the stages, averaged over draws and images.

    Attributes:
        stages: A score each: mean over images, its bootstrap interval, and how many images were undefined.
        itself: The similarity of two explanations of the trained net that differ in their seed: the top of the scale.
        area: Mean over the stages.
    """

    stages: tuple[Score, ...]
    itself: Score
    area: Score


def curve(
    values: NDArray[np.floating], itself: NDArray[np.floating], *, draws: int = 1000, level: float = 0.95, seed: int = 0
) -> Curve:
    """Summarise similarities.

    Args:
        values: `(D, S, N)`: draws of random weights, stages, images; NaN where undefined.
        itself: `(N,)` similarity of the trained net's map with itself under another seed.
        draws: Bootstrap resamples of the images.
        level: Of the intervals.
        seed: Of the resamples, which are the same for every stage, so that stages can be compared.

    Returns:
        Means are over the draws of an image first; an image is undefined at a stage where all its draws are.
    """
    an_image = _mean(np.asarray(values, dtype=np.float64), axis=0)
    generator = np.random.default_rng(seed)
    picks = generator.integers(0, an_image.shape[1], size=(draws, an_image.shape[1]))
    stages = tuple(_score(row, picks, level) for row in an_image)
    return Curve(stages, _score(np.asarray(itself, float), picks, level), _score(_mean(an_image, axis=0), picks, level))


def mean(values: NDArray[np.floating]) -> float:
    """Mean of what is defined; NaN where nothing is."""
    return float(_mean(np.asarray(values, dtype=np.float64).ravel(), axis=0))


def _mean(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Mean of what is defined; NaN where nothing is."""
    defined = ~np.isnan(values)
    count = defined.sum(axis=axis)
    total = np.where(defined, values, 0.0).sum(axis=axis)
    found: NDArray[np.float64] = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return found


def _score(values: NDArray[np.float64], picks: NDArray[np.int64], level: float) -> Score:
    defined = ~np.isnan(values)
    count = int(defined.sum())
    if not count:
        return Score(value=float("nan"), count=0, undefined=len(values))
    score = Score(value=float(values[defined].mean()), count=count, undefined=int((~defined).sum()))
    # One image says nothing of others.
    return with_interval(score, _mean(values[picks], axis=1), level) if count > 1 else score


def efficient_mprt(before: NDArray[np.floating], after: NDArray[np.floating]) -> NDArray[np.float64]:
    """`(H(after) - H(before)) / H(before)` of map entropies, element by element; NaN where `before` is 0.

    Args:
        before: Entropies of the trained net's maps.
        after: Of the fully randomised net's; same shape, or one that broadcasts.
    """
    first, second = (np.asarray(part, dtype=np.float64) for part in (before, after))
    first, second = np.broadcast_arrays(first, second)
    found: NDArray[np.float64] = np.divide(second - first, first, out=np.full(first.shape, np.nan), where=first != 0)
    return found


def ignored(found: Curve) -> int:
    """How many of the first stages leave the maps as they are: their mean stays above `MOVED` times the map's own."""
    top = found.itself.value
    for place, stage in enumerate(found.stages):
        # Undefined is no evidence of either.
        if not stage.value >= MOVED * top:
            return place
    return len(found.stages)


def verdict(found: Curve, names: Sequence[str], *, floor: Curve | None = None, is_cumulative: bool = True) -> list[str]:
    """What was measured, in words; never a bare pass or fail.

    Args:
        found: Of a method.
        names: Of the stages, in the order in which they were randomised.
        floor: Of the random map, where it was measured.
        is_cumulative: Whether each stage was added to those before it.

    Returns:
        Short phrases, the most telling first.
    """
    phrases = []
    total = len(found.stages)
    still = ignored(found)
    first = found.stages[0].value
    if np.isnan(first):
        phrases.append(f"undefined after {names[0]}")
    elif not is_cumulative and total > 1:
        deaf = [
            name for name, stage in zip(names, found.stages, strict=True) if stage.value >= MOVED * found.itself.value
        ]
        some = ", ".join(deaf) if len(deaf) <= NAMED else f"{len(deaf)} of {total} stages"
        phrases.append(f"ignores {some}" if deaf else "moves with every stage")
    elif still == total:
        phrases.append("ignores every stage" if total > 1 else f"ignores {names[0]}")
    elif still:
        phrases.append(f"ignores the first {still} stages" if still > 1 else f"ignores {names[0]}")
    else:
        phrases.append(f"moves with {names[0]}")
    last = found.stages[-1]
    if floor is not None and (is_cumulative or total == 1) and not np.isnan(last.value) and still < total:
        # The random map's last stage is noise against noise.
        bottom = floor.stages[-1]
        reach = bottom.high if not np.isnan(bottom.high) else bottom.value
        low = last.low if not np.isnan(last.low) else last.value
        if low <= reach:
            phrases.append("ends like a random map" if total > 1 else "like a random map")
        else:
            phrases.append(f"{'ends ' if total > 1 else ''}at {last.value:.2f}, above a random map")
    undefined = max(stage.undefined for stage in found.stages)
    if undefined:
        phrases.append(f"undefined at up to {undefined} of {undefined + min(s.count for s in found.stages)} images")
    return phrases
