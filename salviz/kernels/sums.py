"""FullGrad's terms."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from salviz.kernels import arrays

_TOGETHER = 2**12
"""Entries of a layer whose terms are looked at in one."""

Terms = tuple[Tensor, Tensor]
"""Of terms `(N, C, h, w)`: `(N,)` their sum; `(N, h, w)` their sizes, rescaled so that an image's smallest one is 0 and
its largest 1, or to 0 where all are alike, and then added up over the channels."""


def terms(gradient: Tensor, constant: Tensor) -> Terms | None:
    """What there is to know of `gradient * constant`, or None where PyTorch has to find it.

    Args:
        gradient: `(N, C, h, w)`.
        constant: The same, or `(1, C, 1, 1)`.
    """
    if not arrays.is_apt(gradient) or not arrays.is_free(constant):
        return None
    channels = gradient.shape[1]
    if constant.shape == gradient.shape:
        held = arrays.flat(constant.contiguous(memory_format=torch.channels_last))
    elif constant.shape == (1, channels, 1, 1):
        held = np.tile(arrays.row(constant.flatten()), (1, max(1, _TOGETHER // channels)))
    else:
        return None
    from salviz.kernels import compiled

    found = _Found(gradient, 1)
    compiled.terms(len(gradient), arrays.flat(gradient), held, channels, found.scores[0], found.drawn[0])
    return found.terms(0)


def clip_terms(gradient: Tensor, clipped: Tensor, cap: float, bias: Tensor) -> tuple[Tensor, Terms, Terms] | None:
    """The way back through a clamp from 0 to a cap, and FullGrad's terms on it; None where PyTorch has to find them.

    Args:
        gradient: `(N, C, h, w)` at what the clamp made.
        clipped: What it made.
        cap: May be infinite.
        bias: `(C,)` added to every place just before the clamp.

    Returns:
        The gradient before the clamp; of the gradient where the cap holds, not yet times the cap, the terms; and of
        that before the clamp times the bias.
    """
    if (
        not arrays.is_apt(clipped)
        or not arrays.is_free(gradient, bias)
        or gradient.shape != clipped.shape
        or len(bias) != clipped.shape[1]
    ):
        return None
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    from salviz.kernels import compiled

    found, passed = _Found(clipped, 2), torch.empty_like(clipped)
    compiled.clip_terms(
        len(clipped), arrays.with_images(gradient), arrays.with_images(clipped), cap,
        arrays.row(bias), arrays.with_images(passed), found.scores, found.drawn,
    )  # fmt: skip
    return passed, found.terms(0), found.terms(1)


class _Found:
    """Room for what a loop learns of several sets of terms."""

    def __init__(self, like: Tensor, count: int) -> None:
        images, _, *self._size = like.shape
        self.scores = np.empty((count, images), np.float32)
        self.drawn = np.empty((count, images, self._size[0] * self._size[1]), np.float32)

    def terms(self, place: int) -> Terms:
        """Of one set."""
        return torch.from_numpy(self.scores[place]), torch.from_numpy(self.drawn[place]).view(-1, *self._size)
