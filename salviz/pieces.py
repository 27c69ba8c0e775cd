"""Work on large activations a piece at a time, so that what one step writes is in the cache for the next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

_BYTES = 2 * 2**20
"""Of an activation in one piece; several of them have room in the cache that cores share."""
_STRIP_BYTES = 2**20
"""Of an activation in one strip; several of them have room in the caches that each core has for itself."""


def pieces(activation: Tensor, size: int = _BYTES) -> Iterator[slice]:
    """Slices of the first dimension, in order, one at least; on a device with its own memory one for all.

    For chains of elementwise steps, which on the CPU wait for memory and not for arithmetic.

    Args:
        activation: `(N, ...)`.
        size: Bytes of it in one piece, where an image is no larger.
    """
    count = len(activation)
    if activation.device.type == "cpu" and count:
        each = activation[0].numel() * activation.element_size()
        step = max(1, size // max(1, each))
    else:
        step = max(1, count)
    for start in range(0, max(count, 1), step):
        yield slice(start, start + step)


def strips(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same places of several tensors, a strip of memory at a time: views to read from and to write to.

    For chains of elementwise steps, as `pieces` is, where an image can be larger than a core's own cache. Strips of
    large images have one dimension.

    Args:
        tensors: `(N, ...)` each, of one shape but for the first dimension: it may be 1, of what counts for all images.
    """
    for rows in pieces(tensors[0], _STRIP_BYTES):
        parts = tuple(tensor if len(tensor) == 1 else tensor[rows] for tensor in tensors)
        first = parts[0]
        step = _STRIP_BYTES // first.element_size()
        if first.device.type == "cpu" and first.numel() > step and _lie_alike(parts):
            flat = [part.as_strided((part.numel(),), (1,)) for part in parts]
            yield from zip(*(torch.split(part, step) for part in flat), strict=True)
        else:
            yield parts


def _lie_alike(parts: Sequence[Tensor]) -> bool:
    """Whether the same place in memory, counted from each one's first, is the same entry of all."""
    if any(part.shape != parts[0].shape for part in parts):
        return False
    formats = [torch.contiguous_format, torch.channels_last][: 2 if parts[0].ndim == 4 else 1]
    return any(all(part.is_contiguous(memory_format=one) for part in parts) for one in formats)
