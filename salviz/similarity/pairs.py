"""What every similarity does first: checking a pair of batches, and exact sums over planes."""

from __future__ import annotations

import torch
from torch import Tensor

from salviz.transforms.alignment import Validity


def validated(a: Tensor, b: Tensor, valid: Tensor | Validity | None) -> tuple[Tensor | None, Tensor]:
    """The masks, None for none at all, and `(N,)` bool: which pairs have one."""
    if a.ndim != 3 or a.shape != b.shape:
        raise ValueError(f"maps must be two (N, H, W) batches alike, not {tuple(a.shape)} and {tuple(b.shape)}")
    if a.dtype != b.dtype or not a.is_floating_point():
        raise ValueError(f"maps must share a floating point dtype, not {a.dtype} and {b.dtype}")
    if isinstance(valid, Validity):
        pixels: Tensor | None = valid.pixels
        masked = valid.masked
    else:
        pixels = valid
        masked = torch.ones(len(a), dtype=torch.bool, device=a.device)
    if pixels is not None and (pixels.shape != a.shape or pixels.dtype != torch.bool):
        raise ValueError(f"valid must be {tuple(a.shape)} bool, not {tuple(pixels.shape)} {pixels.dtype}")
    return pixels, masked


def total(values: Tensor) -> Tensor:
    """Sum of each `(H, W)` plane, row by row first.

    One sum over fifty thousand numbers of single precision can miss its sixth digit; sums of sums do not.
    """
    return values.sum(dim=2).sum(dim=1)
