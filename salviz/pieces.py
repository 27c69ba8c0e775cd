"""Work on large activations a few images at a time, so that what one step writes is in the cache for the next."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

_BYTES = 2 * 2**20
"""Of an activation in one piece; several of them have room in the cache that cores share."""


def pieces(activation: Tensor) -> Iterator[slice]:
    """Slices of the first dimension, in order, one at least; on a device with its own memory one for all.

    For chains of elementwise steps, which on the CPU wait for memory and not for arithmetic.

    Args:
        activation: `(N, ...)`.
    """
    count = len(activation)
    if activation.device.type == "cpu" and count:
        each = activation[0].numel() * activation.element_size()
        step = max(1, _BYTES // max(1, each))
    else:
        step = max(1, count)
    for start in range(0, max(count, 1), step):
        yield slice(start, start + step)


def parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same images of several tensors, a piece at a time: views to read from and to write to.

    Args:
        tensors: `(N, ...)` each, the first one as large as any; or `(1, ...)` of what counts for all images.
    """
    for images in pieces(tensors[0]):
        yield tuple(tensor if len(tensor) == 1 else tensor[images] for tensor in tensors)
