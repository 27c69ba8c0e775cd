"""COSE: should the map stay, it stays; should it change, it changes (Daroya, Sun and Maji 2023).

Consistency C is the mean similarity of maps where the prediction stays right under an augmentation of the
image, fidelity F the mean similarity where it turns wrong under an augmentation or a change of the model;
sensitivity is S = 1 - F and COSE = sqrt(C S). Rows, one a variant of an image, are the unit: all means are
pooled over rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from salviz.metrics import MetricCard, Score, with_interval

_CITATION = "Daroya, Sun and Maji 2023, “COSE: A Consistency-Sensitivity Metric for Saliency on Image Classification”"
_NEEDS = (
    "similarity of map pairs",
    "predictions for image and variant",
    "label, or else the clean prediction",
)

CONSISTENCY = MetricCard(
    id="consistency",
    title="Consistency",
    description="Mean similarity where the prediction stays right: the map should stay.",
    citation=_CITATION,
    range=(-1.0, 1.0),
    higher_is_better=True,
    needs=_NEEDS,
    undefined="NaN where no augmented image keeps a right prediction; undefined rows are counted, not used.",
)
SENSITIVITY = MetricCard(
    id="sensitivity",
    title="Sensitivity",
    description="One minus the mean similarity where the prediction turns wrong: the map should change.",
    citation=_CITATION,
    range=(0.0, 2.0),
    higher_is_better=True,
    needs=_NEEDS,
    undefined="NaN where no variant loses a right prediction; undefined rows are counted, not used.",
)
COSE = MetricCard(
    id="cose",
    title="COSE",
    description="Geometric mean of consistency and sensitivity.",
    citation=_CITATION,
    range=(0.0, math.sqrt(2.0)),
    higher_is_better=True,
    needs=_NEEDS,
    undefined="NaN where consistency or sensitivity is NaN, or consistency is negative.",
)

KINDS = ("geometric", "photometric", "model", "untrained", "checkpoint")
"""Kinds of variants: two of augmented images; changed models in general, untrained twins, checkpoints."""

SPLITS: Mapping[str, tuple[str, ...]] = {
    "geometric": ("geometric",),
    "photometric": ("photometric",),
    "image": ("geometric", "photometric"),
    "untrained": ("untrained",),
    "checkpoint": ("checkpoint",),
    "model": ("model", "untrained", "checkpoint"),
}
"""The kinds each split of the result covers, as the released code logs them."""

NO_LABEL = -1
"""Stands for the missing label in `Rows.target`."""

# Drawn numbers held at a time: fast for a handful of rows, bounded in memory for millions.
_NUMBERS_AT_ONCE = 2**21
_MODEL_CODES = [KINDS.index(kind) for kind in SPLITS["model"]]


@dataclass(frozen=True, eq=False)
class Rows:
    """One row a variant of an image, as columns of equal length `R`: 14 rows or millions go the same way.

    Attributes:
        similarity: `(R,)` float64, SSIM in the paper; NaN where undefined.
        kind: `(R,)` uint8, index into `KINDS`.
        target: `(R,)` int64, the image's label; `NO_LABEL` where it has none.
        prediction: `(R,)` int64, class predicted for the clean image.
        variant_prediction: `(R,)` int64, class predicted for the variant.
        image: `(R,)` int64, which image the row belongs to.
    """

    similarity: NDArray[np.float64]
    kind: NDArray[np.uint8]
    target: NDArray[np.int64]
    prediction: NDArray[np.int64]
    variant_prediction: NDArray[np.int64]
    image: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        *,
        similarity: ArrayLike,
        kind: Sequence[str] | NDArray[np.str_],
        target: int | Sequence[int | None] | NDArray[np.int64] | None,
        prediction: ArrayLike,
        variant_prediction: ArrayLike,
        image: ArrayLike = 0,
    ) -> Rows:
        """Columns from anything column-like; scalars are repeated for every row.

        Args:
            similarity: `(R,)` similarities of the clean map and the realigned map of the variant.
            kind: `(R,)` names from `KINDS`.
            target: Labels, None or `NO_LABEL` where there is none.
            prediction: Classes predicted for the clean images.
            variant_prediction: `(R,)` classes predicted for the variants.
            image: Numbers of the images; by default all rows are of one image.

        Raises:
            ValueError: If the columns differ in length or a kind is unknown.
        """
        values = np.asarray(similarity, dtype=np.float64).reshape(-1)
        names, inverse = np.unique(np.asarray(kind, dtype=np.str_).reshape(-1), return_inverse=True)
        unknown = sorted(set(names.tolist()) - set(KINDS))
        if unknown:
            raise ValueError(f"unknown kinds {unknown}; the kinds are {list(KINDS)}")
        codes = np.array([KINDS.index(name) for name in names.tolist()], dtype=np.uint8)[inverse]
        if isinstance(target, Sequence):
            target = np.array([NO_LABEL if label is None else label for label in target], dtype=np.int64)
        rows = len(values)
        if len(codes) != rows:
            raise ValueError(f"{len(codes)} kinds do not fit {rows} similarities")
        label, clean, changed, number = (
            np.broadcast_to(np.asarray(column, dtype=np.int64), rows)
            for column in (NO_LABEL if target is None else target, prediction, variant_prediction, image)
        )
        return cls(values, codes, label, clean, changed, number)

    @classmethod
    def concatenate(cls, parts: Sequence[Rows]) -> Rows:
        """The rows of all parts, one after the other; image numbers are taken as they are."""
        names = cls.__dataclass_fields__
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})

    def __len__(self) -> int:
        return len(self.similarity)


@dataclass(frozen=True, kw_only=True)
class Split:
    """The three scores over some kinds of variants.

    Attributes:
        consistency: C; undefined for changed models, which never count here.
        sensitivity: S = 1 - F.
        cose: sqrt(C S); its count is that of both.
    """

    consistency: Score
    sensitivity: Score
    cose: Score


@dataclass(frozen=True, kw_only=True)
class CoseResult(Split):
    """COSE over all kinds of variants, with its splits and what became of every row.

    Attributes:
        splits: The same scores over the kinds of each of `SPLITS`.
        rows: How many rows there were.
        misclassified: Rows ignored because the clean prediction is not the label.
        kept_by_model: Rows ignored because a changed model still predicts the label.
        without_label: Rows for which the clean prediction stood in for a missing label.
    """

    splits: Mapping[str, Split]
    rows: int
    misclassified: int
    kept_by_model: int
    without_label: int


@dataclass(frozen=True)
class _Selection:
    """Which rows enter which mean, each `(R,)` bool."""

    stays: NDArray[np.bool_]
    turns: NDArray[np.bool_]
    misclassified: NDArray[np.bool_]
    kept_by_model: NDArray[np.bool_]


def _select(rows: Rows) -> _Selection:
    label = np.where(rows.target == NO_LABEL, rows.prediction, rows.target)
    right = rows.prediction == label
    still_right = rows.variant_prediction == label
    by_model = np.isin(rows.kind, _MODEL_CODES)
    return _Selection(
        stays=right & still_right & ~by_model,
        turns=right & ~still_right,
        misclassified=~right,
        kept_by_model=right & still_right & by_model,
    )


def aggregate(rows: Rows, *, undefined: Literal["exclude", "propagate"] = "exclude") -> CoseResult:
    """Consistency, sensitivity and COSE, pooled over all rows (released code, `02_compile_explanations.py`).

    Only rows whose clean prediction is the label count. Where there is no label, the clean prediction stands
    in for it, and the result says for how many rows.

    Args:
        rows: One row a variant of an image.
        undefined: What to do with undefined similarities: `exclude` and count them, or `propagate` them into
            the means, as the released code does.
    """
    selection = _select(rows)

    def split(kinds: Sequence[str]) -> Split:
        among = np.isin(rows.kind, [KINDS.index(kind) for kind in kinds])
        consistency = _mean(rows.similarity[selection.stays & among], undefined)
        fidelity = _mean(rows.similarity[selection.turns & among], undefined)
        sensitivity = replace(fidelity, value=1.0 - fidelity.value)
        cose = Score(
            value=float(geometric_mean(consistency.value, sensitivity.value)),
            count=consistency.count + sensitivity.count,
            undefined=consistency.undefined + sensitivity.undefined,
        )
        return Split(consistency=consistency, sensitivity=sensitivity, cose=cose)

    overall = split(KINDS)
    return CoseResult(
        consistency=overall.consistency,
        sensitivity=overall.sensitivity,
        cose=overall.cose,
        splits={name: split(kinds) for name, kinds in SPLITS.items()},
        rows=len(rows),
        misclassified=int(selection.misclassified.sum()),
        kept_by_model=int(selection.kept_by_model.sum()),
        without_label=int((rows.target == NO_LABEL).sum()),
    )


def bootstrap(
    rows: Rows,
    *,
    unit: Literal["row", "image"],
    seed: int,
    draws: int = 1000,
    level: float = 0.95,
) -> CoseResult:
    """`aggregate` with percentile intervals for overall consistency, sensitivity and COSE.

    Units are drawn with replacement, as many as there are; with fewer than two there is no interval. Rows of
    one image share its clean map and its class, so intervals over images are the honest ones wherever there
    is more than one image. Undefined similarities are left out, as in `aggregate`; a draw in which a
    quantity is undefined is left out of its interval and counted.

    Args:
        rows: One row a variant of an image.
        unit: What is drawn.
        seed: Of the draws.
        draws: How many.
        level: Coverage of the interval, between 0 and 1.

    Raises:
        ValueError: If `draws` is not positive or `level` is not between 0 and 1.
    """
    return _with_intervals(aggregate(rows), _unit_sums(rows, unit), seed, draws, level)


def from_sums(
    sums: NDArray[np.float64],
    *,
    undefined: tuple[int, int] = (0, 0),
    seed: int,
    draws: int = 1000,
    level: float = 0.95,
) -> Split:
    """The scores of `bootstrap` from what each image adds to them: rows by the million need not be at hand together.

    Args:
        sums: `(images, 4)`: an image's sum and number of defined similarities where the prediction stays right under
            an augmentation, and where it turns wrong; 0 for an image that adds nothing.
        undefined: How many similarities more belong to each of the two but are undefined.
        seed: Of the draws.
        draws: How many.
        level: Coverage of the interval, between 0 and 1.

    Raises:
        ValueError: If `draws` is not positive or `level` is not between 0 and 1.
    """
    values, counts = _ratios(sums.sum(axis=0, keepdims=True)), sums.sum(axis=0)[[1, 3]].astype(int)
    kept, turned = (
        Score(value=float(value[0]), count=int(count), undefined=missing)
        for value, count, missing in zip(values, counts, undefined, strict=True)
    )
    cose = Score(
        value=float(geometric_mean(kept.value, turned.value)),
        count=kept.count + turned.count,
        undefined=kept.undefined + turned.undefined,
    )
    return _with_intervals(Split(consistency=kept, sensitivity=turned, cose=cose), sums, seed, draws, level)


AnySplit = TypeVar("AnySplit", bound=Split)


def _with_intervals(result: AnySplit, sums: NDArray[np.float64], seed: int, draws: int, level: float) -> AnySplit:
    if draws < 1 or not 0 < level < 1:
        raise ValueError(f"draws must be positive and level between 0 and 1, not {draws} and {level}")
    if len(sums) < 2:
        return result
    consistency, sensitivity = _ratios(resample(sums, draws, np.random.default_rng(seed)))
    return replace(
        result,
        consistency=with_interval(result.consistency, consistency, level),
        sensitivity=with_interval(result.sensitivity, sensitivity, level),
        cose=with_interval(result.cose, geometric_mean(consistency, sensitivity), level),
    )


def _ratios(totals: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Consistency and sensitivity of `(n, 4)` totals; NaN where they rest on nothing."""
    similarity_kept, kept, similarity_turned, turned = totals.T
    consistency = np.divide(similarity_kept, kept, out=np.full(len(totals), np.nan), where=kept > 0)
    fidelity = np.divide(similarity_turned, turned, out=np.full(len(totals), np.nan), where=turned > 0)
    return consistency, 1.0 - fidelity


def geometric_mean(consistency: ArrayLike, sensitivity: ArrayLike) -> NDArray[np.float64]:
    """`sqrt(C S)`, element by element; NaN where the product is negative or undefined."""
    product = np.asarray(consistency, dtype=np.float64) * np.asarray(sensitivity, dtype=np.float64)
    return np.sqrt(np.where(product >= 0, product, np.nan))


def _mean(values: NDArray[np.float64], undefined: Literal["exclude", "propagate"]) -> Score:
    defined = values[~np.isnan(values)]
    missing = len(values) - len(defined)
    known = len(defined) > 0 and (undefined == "exclude" or missing == 0)
    return Score(value=float(defined.mean()) if known else math.nan, count=len(defined), undefined=missing)


def _unit_sums(rows: Rows, unit: Literal["row", "image"]) -> NDArray[np.float64]:
    """`(units, 4)`: a unit's sum and number of similarities where the prediction stays and where it turns."""
    selection = _select(rows)
    defined = ~np.isnan(rows.similarity)
    columns: list[NDArray[np.float64]] = []
    for chosen in (selection.stays & defined, selection.turns & defined):
        columns += [np.where(chosen, rows.similarity, 0.0), chosen.astype(np.float64)]
    if unit == "image":
        images, place = np.unique(rows.image, return_inverse=True)
        pooled = np.zeros((len(images), len(columns)))
        np.add.at(pooled, place, np.stack(columns, axis=1))
        return pooled
    return np.stack(columns, axis=1)


def resample(sums: NDArray[np.float64], draws: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Totals over units drawn with replacement, as many as there are.

    Args:
        sums: `(units, n)`.
        draws: How many.
        generator: Of the draws.

    Returns:
        `(draws, n)`.
    """
    units = len(sums)
    totals = np.empty((draws, sums.shape[1]))
    at_once = max(1, _NUMBERS_AT_ONCE // units)
    for start in range(0, draws, at_once):
        count = min(at_once, draws - start)
        picks = generator.integers(units, size=(count, units))
        picks += np.arange(count)[:, None] * units
        times = np.bincount(picks.reshape(-1), minlength=count * units).reshape(count, units)
        totals[start : start + count] = times @ sums
    return totals
