"""Consistency, sensitivity and COSE of one exploration."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal
from weakref import WeakKeyDictionary

from salviz import changes
from salviz.exploration import Exploration
from salviz.metrics import Score
from salviz.metrics.cose import CoseResult, Rows, bootstrap

DRAWS = 1000
"""Bootstrap draws behind an interval where nothing else is asked for."""

FEWEST = 3
"""Rows an interval needs."""

_known: WeakKeyDictionary[Exploration, dict[int, CoseResult]] = WeakKeyDictionary()


def kinds(exploration: Exploration) -> tuple[str, ...]:
    """Kind of every row after the clean one, as `metrics.cose.KINDS` names them, as far as rows are done."""
    images = tuple(variant.card.kind for variant in exploration.variants)
    models = tuple(changes.kind(change) for change in exploration.changes)
    return images + models


def cose_rows(exploration: Exploration) -> Rows:
    """The variants and changed models of an exploration as COSE's rows; similarity is SSIM.

    Args:
        exploration: Complete or under way; rows still to come are left out.
    """
    predicted = exploration.predicted.tolist()
    return Rows.of(
        similarity=exploration.ssim[1:].numpy(),
        kind=kinds(exploration),
        target=exploration.request.label,
        prediction=predicted[0],
        variant_prediction=predicted[1:],
    )


def scores(exploration: Exploration, *, draws: int = DRAWS) -> CoseResult:
    """Consistency, sensitivity and COSE with 95 % bootstrap intervals; computed once an exploration.

    A score that rests on fewer than `FEWEST` rows has no interval, nor has COSE where one of its halves has none.

    There is one image only, so rows are drawn: the intervals say how much the scores depend on which variants
    were chosen, not how they would vary between images.

    Args:
        exploration: Complete or under way.
        draws: Bootstrap draws.

    Raises:
        ValueError: `draws` is not positive.
    """
    found = _known.setdefault(exploration, {})
    if draws not in found:
        drawn = bootstrap(cose_rows(exploration), unit="row", seed=exploration.request.seed, draws=draws)
        found[draws] = _without_thin_intervals(drawn)
    return found[draws]


def _without_thin_intervals(result: CoseResult) -> CoseResult:
    """No interval from fewer than three rows, which could not carry one; COSE stands on both halves."""
    thin = {name: getattr(result, name).count < FEWEST for name in ("consistency", "sensitivity")}
    thin["cose"] = any(thin.values())
    nothing = {"low": math.nan, "high": math.nan}
    return replace(
        result, **{name: replace(getattr(result, name), **nothing) for name, is_thin in thin.items() if is_thin}
    )


def too_few(score: Score) -> str:
    """Why a score has no interval: its rows are too few, or those of one of its two halves."""
    return f"too few{' on one side' if score.count >= FEWEST else ''} for an interval"


def describe(result: CoseResult, name: Literal["consistency", "sensitivity", "cose"]) -> str:
    """A score in words: `0.71 [0.66, 0.75] n = 11`, or why it is undefined.

    Args:
        result: What `scores` returned.
        name: Which score.
    """
    score: Score = getattr(result, name)
    if math.isnan(score.value):
        return f"undefined: {_why_undefined(result, name)}"
    rows = f"n = {score.count}" + (f" ({score.undefined} more undefined)" if score.undefined else "")
    if math.isnan(score.low):
        return f"{score.value:.2f} {rows}: {too_few(score)}"
    return f"{score.value:.2f} [{score.low:.2f}, {score.high:.2f}] {rows}"


def _why_undefined(result: CoseResult, name: str) -> str:
    if result.rows == 0:
        return "there is no augmentation"
    if result.misclassified == result.rows:
        return "the clean prediction is not the label"
    if name == "cose":
        missing = [part for part in ("consistency", "sensitivity") if math.isnan(getattr(result, part).value)]
        if missing:
            return f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} undefined"
        return "consistency is negative"
    if getattr(result, name).undefined:
        return "no similarity is defined"
    if name == "consistency":
        return "no augmentation kept the prediction"
    return "no augmentation changed the prediction"
