"""What is asked of a randomisation test, and what it found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from salviz.classifiers.randomising import Randomisation
from salviz.engine import Settings
from salviz.errors import RequestError
from salviz.metrics.randomisation import CALIBRATION, Curve, curve, efficient_mprt
from salviz.sanity.interventions import Intervention
from salviz.sanity.strip import Strip
from salviz.similarity.measures import find_measure


@dataclass(frozen=True)
class Check:
    """A randomisation test, fully specified but for its images.

    Attributes:
        methods: Settings that differ from the card's defaults, by method id.
        how: How the net is randomised, or what else takes its place.
        draws: How many times, each with other random weights or classes; a twin is the same every time.
        target: The class that is explained: `original`, which the trained net predicts, or `argmax`, which the net at
            hand predicts (the authors' code).
        measures: Ids of similarities.
        skips_baseline: Leave pixels of the colour that stands for nothing out of correlations: methods that multiply
            by the input are 0 there whatever the net (Sundararajan, Taly 2018).
        copies: Maps are averages over this many copies of the image, the last one itself and the others with noise:
            smooth MPRT (Hedström et al. 2024; 50 there). 1 takes the image alone.
        noise: Standard deviation of that noise, as a share of the image's range in model space.
        seed: Of everything random but the weights and classes, whose seed stands in `how`.
    """

    methods: Mapping[str, Settings | None]
    how: Intervention = field(default_factory=Randomisation)
    draws: int = 1
    target: Literal["original", "argmax"] = "original"
    measures: tuple[str, ...] = ("spearman_abs", "spearman_signed", "ssim")
    skips_baseline: bool = False
    copies: int = 1
    noise: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        """Check what can be checked without a classifier.

        Raises:
            RequestError: No method, no measure, no draw, or an unknown name.
        """
        if not self.methods:
            raise RequestError("No method was chosen. Choose at least one.")
        if not self.measures:
            raise RequestError("No similarity was chosen. Choose at least one.")
        if self.draws < 1:
            raise RequestError(f"Weights are drawn at least once, not {self.draws} times.")
        if self.copies < 1 or not 0 < self.noise < float("inf"):
            raise RequestError("A map is averaged over at least one copy, with noise above 0.")
        if self.target not in ("original", "argmax"):
            raise RequestError(f"The target is the original class or the argmax, not {self.target!r}.")
        for measure in self.measures:
            find_measure(measure)

    @property
    def rows(self) -> dict[str, Settings | None]:
        """The methods and the calibration rows."""
        return {**self.methods, **{name: None for name in CALIBRATION if name not in self.methods}}


@dataclass(frozen=True, eq=False)
class Checked:
    """What became of the maps. Arrays are float32 with NaN where undefined or, before the end, not yet known.

    Attributes:
        check: What was asked.
        stages: Names of the randomised nets, in their order.
        methods: Ids of the rows of `scores`: those asked for, then the calibration rows.
        scores: `(M, Q, D, S, N)` similarity with the trained net's map: methods, measures, draws, stages, images.
        itself: `(M, Q, N)` similarity of the trained net's map with one made under another seed.
        entropies: `(M, D, S, N)` of the randomised nets' maps.
        entropy: `(M, N)` of the trained net's maps.
        spread: `(D, S, N)` standard deviation of the logits over the classes, as a share of the trained net's: proof
            that the net changed, and how.
        agrees: `(D, S, N)` 1 where the net still predicts the trained net's class.
        classes: `(N,)` the trained net's predictions.
        done: Nets of all draws that are through.
        strip: Maps of the first image under the first draw, where they were to be kept.
        refused: Why methods that were asked for cannot explain the classifier, by id; they have no row.
    """

    check: Check
    stages: tuple[str, ...]
    methods: tuple[str, ...]
    scores: NDArray[np.float32]
    itself: NDArray[np.float32]
    entropies: NDArray[np.float32]
    entropy: NDArray[np.float32]
    spread: NDArray[np.float32]
    agrees: NDArray[np.float32]
    classes: NDArray[np.int64]
    done: int = 0
    strip: Strip | None = None
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes that the results take."""
        arrays = (self.scores, self.itself, self.entropies, self.entropy, self.spread, self.agrees, self.classes)
        return sum(array.nbytes for array in arrays) + (0 if self.strip is None else self.strip.nbytes)

    @property
    def is_complete(self) -> bool:
        """Whether all nets are through."""
        return self.done == self.check.draws * len(self.stages)

    def curve(self, method: str, measure: str) -> Curve:
        """Means and intervals of one method under one measure; stages that are not through are undefined."""
        row, column = self.methods.index(method), self.check.measures.index(measure)
        return self._curves(row, column)

    def _curves(self, row: int, column: int) -> Curve:
        return curve(self.scores[row, column], self.itself[row, column], seed=self.check.seed)

    @cached_property
    def efficient_mprt(self) -> NDArray[np.float64]:
        """`(M, N)` relative rise of entropy under full randomisation, averaged over draws; last stage of a cascade."""
        found: NDArray[np.float64] = efficient_mprt(self.entropy[:, None], self.entropies[:, :, -1]).mean(axis=1)
        return found
