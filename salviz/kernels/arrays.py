"""Which tensors a loop may take, and as which arrays."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float32]

_FEW = 4
"""Threads at the most beside which a loop is worth it wherever it runs: on one it was as fast as two of them on a
chain."""


def is_free(*tensors: Tensor) -> bool:
    """Whether a loop may take them: all of them are float32 on the CPU, with values to work on.

    And threads are few. How many images there are may not count: an image's last digits would depend on its batch.
    """
    return torch.get_num_threads() <= _FEW and all(
        tensor.device.type == "cpu" and tensor.dtype == torch.float32 and tensor.numel() > 0 for tensor in tensors
    )


def is_apt(*tensors: Tensor) -> bool:
    """Whether a loop may take them and they have their channels last."""
    return is_free(*tensors) and all(is_last(tensor) for tensor in tensors)


def is_last(tensor: Tensor) -> bool:
    """Whether it is `(N, C, h, w)` with its channels last in memory."""
    return tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)


def is_baseline(z0: Tensor, z: Tensor) -> bool:
    """Whether one may stand for the other's baselines: one for each image, or one for all."""
    return len(z0) in (1, len(z)) and z0.shape[1:] == z.shape[1:]


def rows(tensor: Tensor, *, of_features: bool = False) -> Array | None:
    """`(N, ..., C)` as `(R, C)`, the same memory, or None where its memory is in another order.

    Args:
        tensor: Any number of dimensions from two on.
        of_features: Whether it is `(N, C, h, w)` with its channels last.
    """
    if of_features:
        return places(tensor) if is_last(tensor) else None
    if tensor.ndim < 2 or not tensor.is_contiguous():
        return None
    found: Array = tensor.detach().view(-1, tensor.shape[-1]).numpy()
    return found


def along(tensor: Tensor, dim: int) -> Array | None:
    """As `rows`, with that dimension as the columns; None where it is not the one that comes last in memory."""
    return rows(tensor, of_features=dim == -3) if dim in (-1, -3) else None


def with_images(tensor: Tensor) -> Array:
    """`(N, C, h, w)` with its channels last as `(N, h w, C)`, the same memory."""
    images, channels, height, width = tensor.shape
    found: Array = tensor.detach().permute(0, 2, 3, 1).view(images, height * width, channels).numpy()
    return found


def places(tensor: Tensor) -> Array:
    """The same as `(N h w, C)`."""
    return with_images(tensor).reshape(-1, tensor.shape[1])
