"""Work on pixels: colours between blurs, and a guided path."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from salviz.kernels import arrays
from salviz.kernels.arrays import View


def between(strength: Tensor, levels: Tensor) -> tuple[Tensor, Tensor] | None:
    """Colours between two levels, chosen at every pixel, or None where PyTorch has to find them.

    Args:
        strength: `(N, H, W)` in [0, 1], from the first level to the last.
        levels: `(L, N, H, W, 3)`, two at least.

    Returns:
        `(N, H, W, 3)` colours, and the steps from the level below to the one above.
    """
    if not arrays.is_free(strength, levels) or not (strength.is_contiguous() and levels.is_contiguous()):
        return None
    if levels.shape[1:] != (*strength.shape, 3) or len(levels) < 2:
        return None
    from salviz.kernels import compiled

    colours, steps = (torch.empty_like(levels[0]) for _ in range(2))
    pixels = strength.numel()
    compiled.between(
        pixels, View(strength, (pixels,)), View(levels, (len(levels), pixels, 3)), View(colours, (pixels, 3)),
        View(steps, (pixels, 3)),
    )  # fmt: skip
    return colours, steps


def dots(a: Tensor, b: Tensor, scale: float) -> Tensor | None:
    """Sums of products over the last dimension, times a scale: `(N, ..., C)` twice -> `(N, ...)`; None as above."""
    if not arrays.is_free(a, b) or a.shape != b.shape:
        return None
    a_, b_ = arrays.rows(a), arrays.rows(b)
    if a_ is None or b_ is None:
        return None
    from salviz.kernels import compiled

    made = a.new_empty(a.shape[:-1])
    compiled.dots(a_.shape[0], a_, b_, scale, View(made, (a_.shape[0],)))
    return made


def advance(
    share: Tensor,
    length: Tensor,
    totals: Tensor,
    gradient: Tensor,
    band: tuple[float, float, float],
    *,
    arrived: float,
    group: int,
) -> Tensor | None:
    """A step of guided integrated gradients (see `methods.paths.guided.GuidedPath`), or None where PyTorch takes it.

    Numbers that are never negative have the order of their bits, so the ones with a rank are found by counting.

    Args:
        share: `(N, F)` where each feature is; overwritten.
        length: `(N, F)` of its way.
        totals: `(N, 1)` of all ways.
        gradient: `(N, F)` at the present place.
        band: Its lower end, its upper end and the straight path between them.
        arrived: A feature so near to the top of its band is there.
        group: Features that move together, at the least.

    Returns:
        `(N, F)` how much `share` grew.
    """
    given = (share, length, totals, gradient)
    if not arrays.is_free(*given) or not all(part.is_contiguous() for part in given):
        return None
    if not share.shape == length.shape == gradient.shape or totals.shape != (len(share), 1):
        return None
    from salviz.kernels import compiled

    grown = torch.empty_like(share)
    # Each thread has a row of them.
    rooms = (np.empty((torch.get_num_threads(), numbers), np.int32) for numbers in (share.shape[1], 2**16, 2**15))
    images = len(share)
    compiled.advance(
        images, *(View(part, (images, share.shape[1])) for part in (share, length)), View(totals, (images,)),
        View(gradient, (images, share.shape[1])), *band, arrived, group, View(grown, (images, share.shape[1])), *rooms,
    )  # fmt: skip
    return grown
