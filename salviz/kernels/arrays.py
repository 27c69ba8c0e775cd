"""Which tensors a loop may take, and how it sees their memory."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class View(NamedTuple):
    """A tensor's memory as a loop sees it.

    Attributes:
        tensor: Dense: its memory is in one piece.
        shape: How that is read, the last dimension without a step.
    """

    tensor: Tensor
    shape: tuple[int, ...]


_FEW = 4
"""Threads up to which a loop takes the place of PyTorch's operators. Where a loop has but one of them (see `team`), it
still is as fast as a chain of operators on two; more than four may well overtake it there."""


def is_free(*tensors: Tensor) -> bool:
    """Whether a loop may take them: all of them are float32 on the CPU, with values to work on.

    And threads are few. How many images there are may not count: an image's last digits would depend on its batch.
    """
    for tensor in tensors:
        if tensor.dtype is not torch.float32 or not tensor.is_cpu or tensor.numel() == 0:
            return False
    return torch.get_num_threads() <= _FEW


def is_apt(*tensors: Tensor) -> bool:
    """Whether a loop may take them and they have their channels last."""
    for tensor in tensors:
        if not is_last(tensor):
            return False
    return is_free(*tensors)


def is_last(tensor: Tensor) -> bool:
    """Whether it is `(N, C, h, w)` with its channels last in memory."""
    return tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)


def layout(tensor: Tensor) -> torch.memory_format:
    """The order of its memory: `channels_last`, or else `contiguous_format`."""
    return torch.channels_last if is_last(tensor) else torch.contiguous_format


def is_baseline(z0: Tensor, z: Tensor) -> bool:
    """Whether one may stand for the other's baselines: one for each image, or one for all."""
    return len(z0) in (1, len(z)) and z0.shape[1:] == z.shape[1:]


def rows(tensor: Tensor, *, of_features: bool = False) -> View | None:
    """`(N, ..., C)` as `(R, C)`, or None where its memory is in another order.

    Args:
        tensor: Any number of dimensions from two on.
        of_features: Whether it is `(N, C, h, w)` with its channels last.
    """
    if of_features:
        return places(tensor) if is_last(tensor) else None
    return table(tensor) if tensor.ndim >= 2 and tensor.is_contiguous() else None


def table(tensor: Tensor) -> View:
    """A contiguous `(N, ..., C)` as `(R, C)`."""
    length = tensor.shape[-1]
    return View(tensor, (tensor.numel() // length, length))


def row(tensor: Tensor) -> View:
    """`(C,)`, copied where it is part of something larger."""
    return View(tensor.contiguous(), (len(tensor),))


def along(tensor: Tensor, dim: int) -> View | None:
    """As `rows`, with that dimension as the columns; None where it is not the one that comes last in memory."""
    return rows(tensor, of_features=dim == -3) if dim in (-1, -3) else None


def images_alike(*tensors: Tensor) -> list[View] | None:
    """`(N, ...)` each as `(N, F)`, or None where not all have their memory in the same order."""
    if not all(is_last(tensor) for tensor in tensors) and not all(tensor.is_contiguous() for tensor in tensors):
        return None
    return [View(tensor, (len(tensor), tensor.numel() // len(tensor))) for tensor in tensors]


def with_images(tensor: Tensor) -> View:
    """`(N, C, h, w)` with its channels last as `(N, h w, C)`."""
    images, channels, height, width = tensor.shape
    return View(tensor, (images, height * width, channels))


def flat(tensor: Tensor) -> View:
    """The same as `(N, h w C)`."""
    images, channels, height, width = tensor.shape
    return View(tensor, (images, height * width * channels))


def places(tensor: Tensor) -> View:
    """The same as `(N h w, C)`."""
    images, channels, height, width = tensor.shape
    return View(tensor, (images * height * width, channels))
