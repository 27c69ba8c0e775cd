"""Guided integrated gradients: a path that moves the pixels with the smallest gradients first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from salviz.classifiers.classifier import Classifier
from salviz.methods.card import Attribution, MethodCard, Parameter, register
from salviz.methods.passes import blank_like, score_gradient, shared_logits
from salviz.methods.paths.integrated import BASELINE
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
        before = self.share
        share = before.clamp(min=low)
        room = (high - share).clamp_(min=0.0)
        way = room * self._length
        # Features at the top of the band, and those without a way to go, are in no group.
        size = gradient.abs().masked_fill_((room <= _ARRIVED) | (self._length == 0), torch.inf)
        # Left: what the others must go so that the length that remains is that of the straight path.
        left = (way.sum(dim=1, keepdim=True) - (high - middle) * self._total).clamp(min=0.0)
        move = self._moves(size, way, left)
        self.share = share.addcmul_(room, move)
        return self.share - before

    def _moves(self, size: Tensor, way: Tensor, left: Tensor) -> Tensor:
        """`(N, F)` how far each feature goes: 1 to the top of the band, 0 not at all."""
        ordered = _sorted(size)
        start = torch.zeros(len(size), 1, dtype=torch.long, device=size.device)
        gone = torch.zeros_like(left)
        whole, partly = torch.full_like(left, -1.0), torch.full_like(left, -1.0)
        share = torch.zeros_like(left)
        for _ in range(self._groups):
            # Equal gradients go together, so a group can be larger than asked for and the next one starts later.
            threshold = ordered.gather(1, (start + self._group - 1).clamp(max=ordered.shape[1] - 1))
            start = torch.searchsorted(ordered, threshold, right=True)
            reach = torch.linalg.vecdot(way, (size <= threshold).to(way.dtype)).unsqueeze(1)
            is_whole = reach <= left
            is_last = ~is_whole & (gone <= left)
            whole = torch.where(is_whole, threshold, whole)
            partly = torch.where(is_last, threshold, partly)
            share = torch.where(is_last, (left - gone) / (reach - gone), share)
            gone = reach
        # Masks as numbers: choosing by Booleans takes several times as long.
        move = (size <= partly).to(way.dtype).mul_(share)
        return torch.maximum(move, (size <= whole).to(way.dtype))


def _sorted(values: Tensor) -> Tensor:
    """Rows in ascending order."""
    if values.device.type == "cpu":
        # The same memory: NumPy sorts numbers alone, which is three times as fast as numbers with their places.
        return torch.from_numpy(np.sort(values.numpy(), axis=1))
    return values.sort(dim=1).values


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
        passes=lambda parameters, size: 2.0 * float(parameters["steps"]) + 1.0,
        parameters=(
            Parameter("steps", 200, "Points on the path, one after the other.", low=1, high=1000, step=1),
            Parameter(
                "fraction",
                0.25,
                "Share of the features that move at a time.",
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
    gained = target.score(logits) - target.score(classifier.predict(blank))
    work.tick(len(x))
    return Attribution(maps, logits, completeness=maps.sum(dim=(1, 2, 3)) - gained)
