"""Bringing maps to one scale, each by itself: `(N, C, H, W)` in, the same shape out; flat maps become NaN."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import Tensor

Normalisation = Literal["none", "max", "second_moment", "minmax", "minmax_signed", "percentile", "percentile_signed"]


def percentile(flat: Tensor, share: float) -> Tensor:
    """Upper percentile of each row, linearly interpolated between order statistics: `(N, P)` -> `(N,)`.

    Args:
        flat: `(N, P)` floating point.
        share: In (0, 100), near its upper end: only the top of the order is looked at.
    """
    position = (flat.shape[1] - 1) * share / 100.0
    below = int(position)
    # A full sort would cost more than the similarity that follows.
    top = flat.topk(flat.shape[1] - below, dim=1).values
    low = top[:, -1]
    high = top[:, -2] if top.shape[1] > 1 else low
    return low + (high - low) * (position - below)


def _by_largest(maps: Tensor) -> Tensor:
    return maps / maps.abs().amax(dim=(1, 2, 3), keepdim=True)


def _by_second_moment(maps: Tensor) -> Tensor:
    # In units of the largest value, whose square cannot underflow.
    maps = _by_largest(maps)
    return maps / maps.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()


def _minmax(maps: Tensor) -> Tensor:
    low = maps.amin(dim=(1, 2, 3), keepdim=True)
    return (maps - low) / (maps.amax(dim=(1, 2, 3), keepdim=True) - low)


def _percentile(maps: Tensor, *, is_signed: bool) -> Tensor:
    high = percentile(maps.flatten(1), 99.0).view(-1, 1, 1, 1)
    if is_signed:
        span = high.abs()
        return ((maps + span) / (2 * span)).clamp(-1, 1)
    low = maps.amin(dim=(1, 2, 3), keepdim=True)
    return ((maps - low) / (high - low)).clamp(0, 1)


NORMALISED: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda maps: maps,
    "max": _by_largest,
    "second_moment": _by_second_moment,
    "minmax": _minmax,
    "minmax_signed": lambda maps: 2 * _minmax(maps) - 1,
    "percentile": partial(_percentile, is_signed=False),
    "percentile_signed": partial(_percentile, is_signed=True),
}
"""By name; the percentile forms are PAIR's `VisualizeImageGrayscale` and `VisualizeImageDiverging` at 99."""
