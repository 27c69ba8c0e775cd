"""Histograms of oriented gradients of maps (Dalal, Triggs 2005), as scikit-image's `feature.hog` makes them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_ORIENTATIONS = 9
_BLOCK = 3
_EPS = 1e-5
_CLIP = 0.2

SMALLEST = 16 * _BLOCK
"""Pixels along each side that maps must have for cells of the usual size."""


def hog(maps: Tensor, *, cell: int = 16) -> Tensor:
    """HOG features of a batch of maps.

    Central differences with zero borders; of several channels the one with the largest gradient counts, pixel by
    pixel; nine unsigned orientations without interpolation; blocks of 3x3 cells at every cell, L2-Hys. Cells that the
    map cuts are dropped.

    Args:
        maps: `(N, H, W)` or `(N, C, H, W)` floating point.
        cell: Pixels along each side of a cell.

    Returns:
        `(N, F)` with `F = 81 (H // cell - 2) (W // cell - 2)`, in the maps' dtype.

    Raises:
        ValueError: If the maps have fewer than 3x3 cells.
    """
    maps = maps if maps.ndim == 4 else maps.unsqueeze(1)
    rows, columns = maps.shape[2] // cell, maps.shape[3] // cell
    if min(rows, columns) < _BLOCK:
        raise ValueError(f"maps must have 3x3 cells of {cell} pixels for HOG, not {tuple(maps.shape[2:])} pixels")
    down, across = torch.zeros_like(maps), torch.zeros_like(maps)
    down[:, :, 1:-1] = maps[:, :, 2:] - maps[:, :, :-2]
    across[..., 1:-1] = maps[..., 2:] - maps[..., :-2]
    magnitude = torch.hypot(across, down)
    strongest = magnitude.argmax(dim=1, keepdim=True)
    magnitude, across, down = (part.gather(1, strongest) for part in (magnitude, across, down))
    # On a multiple of the bin's width rounding decides; scikit-image works in degrees, so this does.
    degrees = torch.rad2deg(torch.atan2(down, across)).remainder(180)
    # What is not finite has no orientation; its magnitude makes the features NaN wherever they are put.
    place = (degrees / (180 / _ORIENTATIONS)).floor().nan_to_num(0).long()
    # A tiny negative angle wraps to 180 itself, which scikit-image puts in no bin.
    histogram = maps.new_zeros(len(maps), _ORIENTATIONS + 1, *maps.shape[2:]).scatter_(1, place, magnitude)
    cells = F.avg_pool2d(histogram[:, :_ORIENTATIONS], cell)
    blocks = cells.unfold(2, _BLOCK, 1).unfold(3, _BLOCK, 1)
    # (N, 9, rows, columns, 3, 3) -> blocks by row and column, in each cells by row and column, in each orientations.
    features = blocks.permute(0, 2, 3, 4, 5, 1).flatten(3)
    features = (features / (features.square().sum(dim=3, keepdim=True) + _EPS**2).sqrt()).clamp(max=_CLIP)
    features = features / (features.square().sum(dim=3, keepdim=True) + _EPS**2).sqrt()
    return features.flatten(1)
