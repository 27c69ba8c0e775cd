"""Similarities of raw maps under one name each: metric, what becomes of the channels, and normalisation.

A published similarity is all three. The presets are those of Adebayo et al. (2018) and of those who followed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from salviz.errors import RequestError
from salviz.similarity.correlation import cosine, pearson, spearman, spearman_with
from salviz.similarity.hog import SMALLEST, hog
from salviz.similarity.normalising import NORMALISED, Normalisation
from salviz.similarity.overlap import top_k
from salviz.similarity.structural import ssim

Metric = Literal["spearman", "pearson", "cosine", "top_k", "ssim", "ssim_gaussian", "hog_pearson", "hog_spearman"]
Reduction = Literal["sum_abs", "sum", "abs_sum", "max_abs", "none"]

_CORRELATIONS: dict[str, Callable[..., Tensor]] = {"spearman": spearman, "pearson": pearson, "cosine": cosine}


@dataclass(frozen=True)
class Measure:
    """One way of saying how alike two raw maps are. Larger is more alike, 1 is the same; undefined is NaN.

    Attributes:
        id: Public, stable id.
        title: For people.
        meaning: One sentence on what it sees and what it does not.
        metric: What is computed of the pair.
        reduction: Of the colour channels: `sum_abs` adds their absolute values, `sum` adds them, `abs_sum` takes the
            absolute value of the sum, `max_abs` the largest absolute value; `none` keeps them: correlations run over
            all, SSIM is averaged, HOG takes the steepest.
        normalisation: A map at a time: `max` by the largest absolute value, `second_moment` by the root mean square,
            `minmax` to [0, 1] and `minmax_signed` to [-1, 1]; `percentile` and `percentile_signed` as PAIR's library
            draws maps without and with their sign (the top hundredth ties at 1).
        data_range: Of SSIM.
        citation: Where it comes from.
    """

    id: str
    title: str
    meaning: str
    metric: Metric
    reduction: Reduction
    normalisation: Normalisation
    data_range: float = 2.0
    citation: str = "Adebayo et al. 2018"

    def __post_init__(self) -> None:
        """Check the names.

        Raises:
            RequestError: One is unknown.
        """
        for what, given, known in (
            ("metric", self.metric, get_args(Metric)),
            ("reduction", self.reduction, get_args(Reduction)),
            ("normalisation", self.normalisation, get_args(Normalisation)),
        ):
            if given not in known:
                raise RequestError(f"There is no {what} {given!r}; there are {', '.join(known)}.")

    def changed(self, **choices: str) -> Measure:
        """The measure with another reduction or normalisation, and an id that says so."""
        names = "".join(f"+{name}:{value}" for name, value in sorted(choices.items()))
        return replace(self, id=self.id + names, **choices)  # type: ignore[arg-type]

    @property
    def takes_mask(self) -> bool:
        """Whether pixels can be left out."""
        return self.metric in _CORRELATIONS

    @property
    def smallest(self) -> int:
        """Pixels along each side that maps must have."""
        return SMALLEST if self.metric.startswith("hog") else 1

    def __call__(self, a: Tensor, b: Tensor, *, valid: Tensor | None = None) -> Tensor:
        """Similarity of pairs of raw maps.

        Args:
            a: `(N, H, W)` or `(N, C, H, W)` floating point.
            b: Like `a`.
            valid: `(N, H, W)` bool, pixels that count; ignored by what `takes_mask` excludes.

        Returns:
            `(N,)`, NaN where undefined.
        """
        x, y = self.prepared(a), self.prepared(b)
        channels = x.shape[1]
        if min(x.shape[2:]) < self.smallest:
            return x.new_full((len(x),), torch.nan)
        if self.metric.startswith("hog"):
            correlate = pearson if self.metric == "hog_pearson" else spearman
            return correlate(hog(x).unsqueeze(1), hog(y).unsqueeze(1))
        if self.metric in _CORRELATIONS:
            return _CORRELATIONS[self.metric](x.flatten(1, 2), y.flatten(1, 2), valid=self._mask(x, valid))
        if self.metric == "top_k":
            return top_k(x.flatten(1, 2), y.flatten(1, 2))
        window: Literal["uniform", "gaussian"] = "gaussian" if self.metric == "ssim_gaussian" else "uniform"
        found = ssim(x.flatten(0, 1), y.flatten(0, 1), data_range=self.data_range, window=window)
        return found.view(-1, channels).mean(dim=1)

    def with_first(self, a: Tensor, *, valid: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """The measure with its first maps given, for comparing them with one batch after the other.

        Ranks, which take longest to find, are found once.

        Args:
            a: As for a call.
            valid: As for a call.

        Returns:
            What takes `b` and returns what a call with both would.
        """
        if self.metric != "spearman":
            return lambda b: self(a, b, valid=valid)
        x = self.prepared(a)
        compare = spearman_with(x.flatten(1, 2), valid=self._mask(x, valid))
        return lambda b: compare(self.prepared(b).flatten(1, 2))

    @staticmethod
    def _mask(x: Tensor, valid: Tensor | None) -> Tensor | None:
        """The mask for every channel."""
        return None if valid is None else valid.unsqueeze(1).expand_as(x).flatten(1, 2)

    def prepared(self, maps: Tensor) -> Tensor:
        """Raw maps after reduction and normalisation: `(N, C, H, W)`, C 1 where channels were reduced."""
        maps = maps if maps.ndim == 4 else maps.unsqueeze(1)
        if self.reduction == "sum_abs":
            maps = maps.abs().sum(dim=1, keepdim=True)
        elif self.reduction == "sum":
            maps = maps.sum(dim=1, keepdim=True)
        elif self.reduction == "abs_sum":
            maps = maps.sum(dim=1, keepdim=True).abs()
        elif self.reduction == "max_abs":
            maps = maps.abs().amax(dim=1, keepdim=True)
        return NORMALISED[self.normalisation](maps)


_LISTED = (
    Measure(
        "spearman_abs", "Spearman, absolute",
        "Whether the same pixels are ranked high, whatever their sign. Maps that multiply noise with the picture stay "
        "alike under it: they share the picture.",
        "spearman", "sum_abs", "percentile",
    ),
    Measure(
        "spearman_signed", "Spearman, signed",
        "Whether the same pixels speak for the class and the same against it.",
        "spearman", "sum", "percentile_signed",
    ),
    Measure(
        "ssim_paper", "SSIM, paper",
        "Local structure in windows of five pixels, maps in [-1, 1]; a map and its negative are alike to it.",
        "ssim", "none", "minmax_signed",
    ),
    Measure(
        "ssim_notebook", "SSIM, notebook",
        "As the released notebooks computed it: Gaussian window, maps in [0, 1], a data range of 2. High even for "
        "noise.",
        "ssim_gaussian", "none", "minmax",
    ),
    Measure(
        "ssim", "SSIM",
        "As scikit-image computes it today on maps in [0, 1]: Gaussian window, a data range of 1.",
        "ssim_gaussian", "none", "minmax", 1.0, "Wang et al. 2004",
    ),
    Measure(
        "hog_pearson", "HOG, Pearson",
        "Whether edges of the maps run alike, in cells of 16 pixels, as the paper defines it; undefined below 48 "
        "pixels.",
        "hog_pearson", "none", "minmax",
    ),
    Measure(
        "hog_spearman", "HOG, Spearman",
        "Whether edges of the maps run alike, in cells of 16 pixels, as the released notebooks computed it; undefined "
        "below 48 pixels.",
        "hog_spearman", "none", "minmax",
    ),
    Measure("pearson", "Pearson", "Linear agreement of the values with their sign.", "pearson", "sum", "none"),
    Measure(
        "cosine", "Cosine", "Angle between the maps as vectors, their sign included.", "cosine", "none", "none",
        citation="Sixt et al. 2020",
    ),
    Measure(
        "top_k", "Top 5 %", "How many of the most salient pixels are the same.", "top_k", "sum_abs", "none",
        citation="Ghorbani et al. 2019",
    ),
)  # fmt: skip

MEASURES: dict[str, Measure] = {measure.id: measure for measure in _LISTED}


def find_measure(id: str) -> Measure:
    """A measure by its id, as it is listed or changed: `spearman_abs+normalisation:max+reduction:max_abs`.

    Raises:
        RequestError: There is none, or it cannot be changed so; what exists is named.
    """
    listed, *changes = id.split("+")
    if listed not in MEASURES:
        raise RequestError(f"There is no similarity {listed!r}; there are {', '.join(MEASURES)}.")
    choices = dict(change.partition(":")[::2] for change in changes)
    if unknown := set(choices) - {"normalisation", "reduction"}:
        raise RequestError(f"A similarity has a normalisation and a reduction, but no {min(unknown)!r}.")
    return MEASURES[listed].changed(**choices) if choices else MEASURES[listed]


def entropy(maps: Tensor, *, bins: int = 100) -> Tensor:
    """Natural entropy of each map's histogram over its own range (Hedström et al. 2024, eMPRT).

    Args:
        maps: `(N, H, W)` or `(N, C, H, W)`; channels are added, signs kept.
        bins: Of equal width, as `numpy.histogram` makes them.

    Returns:
        `(N,)` in [0, ln bins]; 0 for a constant map, NaN where a map is not finite.
    """
    flat = (maps.sum(dim=1) if maps.ndim == 4 else maps).flatten(1)
    low, high = flat.amin(dim=1, keepdim=True), flat.amax(dim=1, keepdim=True)
    width = torch.where(high > low, high - low, torch.ones_like(high))
    place = ((flat - low) / width * bins).floor().clamp(0, bins - 1)
    defined = flat.isfinite().all(dim=1)
    place = torch.where(defined[:, None], place, 0.0).long()
    share = flat.new_zeros(len(flat), bins).scatter_add_(1, place, torch.ones_like(flat)) / flat.shape[1]
    return torch.where(defined, -torch.xlogy(share, share).sum(dim=1), torch.nan)
