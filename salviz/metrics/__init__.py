"""Metrics of saliency maps, one paper a module; a metric has a card, and a score its count and interval.

Nothing here needs torch: a page can describe its metrics before torch is loaded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class MetricCard:
    """One metric, described.

    Attributes:
        id: Stable snake_case name; stands in URLs and stored results.
        title: Name for people.
        description: What it says, in a sentence.
        citation: Where it is defined.
        range: Smallest and largest possible value.
        higher_is_better: Which direction is better; None where neither is.
        needs: What it is computed from.
        undefined: When it is NaN, and what happens then.
    """

    id: str
    title: str
    description: str
    citation: str
    range: tuple[float, float]
    higher_is_better: bool | None
    needs: tuple[str, ...]
    undefined: str


@dataclass(frozen=True, kw_only=True)
class Score:
    """A metric's value, what it rests on, and its interval where one was computed.

    Attributes:
        value: NaN where undefined.
        count: How many rows the value rests on.
        undefined: How many more rows belong here but are undefined.
        low: Lower end of the bootstrap interval; NaN without one.
        high: Upper end; NaN without one.
        undefined_draws: In how many bootstrap draws the value was undefined; the interval rests on the
            others.
    """

    value: float
    count: int
    undefined: int = 0
    low: float = math.nan
    high: float = math.nan
    undefined_draws: int = 0


def with_interval(score: Score, drawn: NDArray[np.float64], level: float) -> Score:
    """A score with the percentile interval of its bootstrap draws.

    Args:
        score: Without one.
        drawn: `(draws,)` values; NaN where a draw was undefined.
        level: Share of the defined draws inside.
    """
    defined = drawn[~np.isnan(drawn)]
    missing = len(drawn) - len(defined)
    if not len(defined):
        return replace(score, undefined_draws=missing)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return replace(score, low=float(low), high=float(high), undefined_draws=missing)


__all__ = ["MetricCard", "Score", "with_interval"]
