"""Guided integrated gradients: a path that moves the pixels with the smallest gradients first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from salviz import kernels
from salviz.classifiers.classifier import Classifier
from salviz.methods.card import Attribution, MethodCard, Parameter, register
from salviz.methods.passes import blank_like, blank_logits, score_gradient, shared_logits
from salviz.methods.paths.integrated import BASELINE
from salviz.pieces import pieces
from salviz.targets import ClassTarget, Target
from salviz.work import Work

_ARRIVED = 1e-6
"""A feature this near to the top of its band is there, whatever rounding says."""


class GuidedPath:
    """Where each feature of each image is on its way: a share between 0, the baseline, and 1, the image.

    One step as in the released code (Kapishnikov et al., algorithm 1 with anchors): features that fell behind the band
    around the straight path are pulled to its lower end; then the features with the smallest gradients go to its upper
    end, a group at a time, until the way left is what it would be on the straight path. The last group goes as far as
    needed. The released code loops until it is there; as no group depends on how far another went, they are found at
    once by one sort.

    Attributes:
        share: `(N, F)`.
    """

    def __init__(self, length: Tensor, *, steps: int, fraction: float, max_dist: float) -> None:
        """Start at the baseline.

        Args:
            length: `(N, F)` absolute difference of image and baseline.
            steps: Of the whole path.
            fraction: Of the features, in a group.
            max_dist: Half the width of the band, as a share of the way.
        """
        self.share = torch.zeros_like(length)
        self._length = length
        self._total = length.sum(dim=1, keepdim=True)
        self._steps, self._max_dist = steps, max_dist
        features = length.shape[1]
        # NumPy's quantile with "lower".
        self._group = int(fraction * (features - 1)) + 1
        self._groups = -(-features // self._group)

    def advance(self, step: int, gradient: Tensor) -> Tensor:
        """Take a step.

        Args:
            step: From 0.
            gradient: `(N, F)` at the present place.

        Returns:
            `(N, F)` how much `share` grew.
        """
        middle = (step + 1) / self._steps
        low, high = max(middle - self._max_dist, 0.0), min(middle + self._max_dist, 1.0)
        found = kernels.advance(
            self.share, self._length, self._total, gradient, (low, high, middle), arrived=_ARRIVED, group=self._group
        )
        if found is not None:
            return found
        grown = torch.empty_like(self.share)
        for rows in pieces(self.share):
            before, length = self.share[rows], self._length[rows]
            share = before.clamp(min=low)
            room = (high - share).clamp_(min=0.0)
            way = room * length
            # Features at the top of the band, and those without a way to go, are in no group.
            size = gradient[rows].abs().masked_fill_((room <= _ARRIVED) | (length == 0), torch.inf)
            # Left: what the others must go so that the length that remains is that of the straight path.
            left = (way.sum(dim=1, keepdim=True) - (high - middle) * self._total[rows]).clamp(min=0.0)
            share.addcmul_(room, self._moves(size, way, left))
            torch.sub(share, before, out=grown[rows])
            before.copy_(share)
        return grown

    def _moves(self, size: Tensor, way: Tensor, left: Tensor) -> Tensor:
        """`(N, F)` how far each feature goes: 1 to the top of the band, 0 not at all."""
        last = size.shape[1] - 1
        ordered = _Ordered(size, [*range(self._group - 1, last, self._group), last])
        start = torch.zeros(len(size), 1, dtype=torch.long, device=size.device)
        gone = torch.zeros_like(left)
        whole, partly = torch.full_like(left, -1.0), torch.full_like(left, -1.0)
        share = torch.zeros_like(left)
        for _ in range(self._groups):
            # Equal gradients go together, so a group can be larger than asked for and the next one starts later.
            threshold = ordered.at((start + self._group - 1).clamp(max=last))
            is_below = size <= threshold
            start = is_below.sum(dim=1, keepdim=True)
            reach = torch.linalg.vecdot(way, is_below.to(way.dtype)).unsqueeze(1)
            is_whole = reach <= left
            is_last = ~is_whole & (gone <= left)
            whole = torch.where(is_whole, threshold, whole)
            partly = torch.where(is_last, threshold, partly)
            share = torch.where(is_last, (left - gone) / (reach - gone), share)
            gone = reach
        # Masks as numbers: choosing by Booleans takes several times as long.
        move = (size <= partly).to(way.dtype).mul_(share)
        return torch.maximum(move, (size <= whole).to(way.dtype))


class _Ordered:
    """Rows of numbers by rank: on the CPU only as far in order as is asked for."""

    def __init__(self, values: Tensor, ranks: Sequence[int]) -> None:
        """Put in order.

        Args:
            values: `(N, F)`, none negative.
            ranks: Ascending, from 0: the ranks likely to be asked for.
        """
        self._values = values
        self._sorted = None if values.device.type == "cpu" else values.sort(dim=1).values
        if self._sorted is None:
            self._ranks, self._known = torch.tensor(ranks), _at_ranks(values, ranks)

    def at(self, rank: Tensor) -> Tensor:
        """`(N, 1)` the number of each row that has the rank `(N, 1)`."""
        if self._sorted is not None:
            return self._sorted.gather(1, rank)
        place = torch.searchsorted(self._ranks, rank).clamp(max=len(self._ranks) - 1)
        found = self._known.gather(1, place)
        for row in (self._ranks[place] != rank).flatten().nonzero().flatten().tolist():
            found[row] = _at_ranks(self._values[row : row + 1], [int(rank[row])])[0]
        return found


def _at_ranks(values: Tensor, ranks: Sequence[int]) -> Tensor:
    """`(N, F)` -> `(N, len(ranks))` numbers with these ranks in their row; none of `values` is negative."""
    # Then their bits as integers have the same order, and NumPy puts integers in order twice as fast.
    numbers = values.numpy()
    bits = numbers.view(f"i{numbers.itemsize}").copy()
    _order(bits, ranks)
    return torch.from_numpy(bits[:, ranks].view(numbers.dtype))


def _order(rows: NDArray[Any], ranks: Sequence[int]) -> None:
    """Put the entries of each row that have these ascending ranks in their places.

    One rank at a time, the middle one first: for one NumPy has vector instructions, for several a loop that takes ten
    times as long.
    """
    if not ranks:
        return
    middle = len(ranks) // 2
    rank = ranks[middle]
    rows.partition(rank, axis=1)
    _order(rows[:, :rank], ranks[:middle])
    _order(rows[:, rank + 1 :], [other - rank - 1 for other in ranks[middle + 1 :]])


@register(
    MethodCard(
        id="guided_ig",
        title="Guided integrated gradients",
        family="paths",
        idea="Integrated gradients on a path of its own for every picture: at each step the pixels with the smallest "
        "gradients move first. So the path keeps away from places where the score jumps for reasons that have nothing "
        "to do with the picture. A band around the straight path keeps it from straying.",
        formula=r"M_i = \int_0^1 \frac{\partial f_c(\gamma(t))}{\partial x_i}\,\frac{d\gamma_i}{dt}\,dt,\quad "
        r"\big|\gamma_i(t) - (x_0 + t(x-x_0))_i\big| \le d\,|x-x_0|_i",
        citation="Kapishnikov, Venugopalan, Avci, Wedin, Terry, Bolukbasi: Guided Integrated Gradients: An Adaptive "
        "Path Method for Removing Noise. CVPR 2021.",
        evidence="magnitude",
        scaling="percentile",
        signed=True,
        completeness="the map adds up to {error} than the change of {score} from the blank image",
        passes=lambda parameters, size: 2.0 * float(parameters["steps"]) + 1.0,
        parameters=(
            Parameter(
                "steps",
                200,
                "Points on the path, one after the other; 200 in the authors' code.",
                low=1,
                high=1000,
                step=1,
            ),
            Parameter(
                "fraction",
                0.25,
                "Share of the features that move at a time; 0.25 in the authors' code.",
                low=0.05,
                high=1.0,
                step=0.05,
            ),
            Parameter(
                "max_dist",
                0.02,
                "How far a feature may be ahead of or behind the straight path, as a share of it; 1 lets it go free.",
                low=0.0,
                high=1.0,
                step=0.01,
            ),
            BASELINE,
        ),
        failures="Chaotic: which pixels go first hangs on tiny differences of the gradient, so rounding can change the "
        "map. Steps cannot share a pass.",
    )
)
def guided_ig(
    classifier: Classifier,
    x: Tensor,
    target: Target,
    *,
    generators: Sequence[torch.Generator],
    work: Work,
    steps: int,
    fraction: float,
    max_dist: float,
    baseline: str,
) -> Attribution:
    """Guided integrated gradients as in PAIR's `saliency` and COSE's code: `(N, 3, H, W)`; with completeness."""
    assert isinstance(target, ClassTarget)  # noqa: S101 - the engine resolves targets first
    blank = blank_like(classifier, x, baseline)
    difference = x - blank
    path = GuidedPath(difference.abs().flatten(1), steps=steps, fraction=fraction, max_dist=max_dist)
    total = torch.zeros_like(path.share)
    for step in range(steps):
        place = torch.addcmul(blank, difference, path.share.view_as(x))
        gradient = score_gradient(classifier, place, target)[0].flatten(1)
        work.tick(2 * len(x))
        total.addcmul_(path.advance(step, gradient), gradient)
    maps = difference * total.view_as(x)
    logits = shared_logits(classifier, x, work)
    gained = target.score(logits) - target.score(blank_logits(classifier, blank, work))
    return Attribution(maps, logits, completeness=maps.sum(dim=(1, 2, 3)) - gained)
