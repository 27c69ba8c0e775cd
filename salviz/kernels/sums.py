"""FullGrad's terms."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from salviz.kernels import arrays

Terms = tuple[Tensor, Tensor, Tensor]
"""Of terms `(N, C, h, w)`: `(N,)` their sum; `(N, h, w)` their sizes, added up over the channels; `(2, N)` the smallest
and the largest size."""


def terms(gradient: Tensor, constant: Tensor) -> Terms | None:
    """What there is to know of `gradient * constant`, or None where PyTorch has to find it.

    Args:
        gradient: `(N, C, h, w)`.
        constant: The same, or `(1, C, 1, 1)`.
    """
    if not arrays.is_apt(gradient) or not arrays.is_free(constant):
        return None
    if constant.shape == gradient.shape:
        constant = constant.contiguous(memory_format=torch.channels_last)
    elif constant.shape != (1, gradient.shape[1], 1, 1):
        return None
    else:
        constant = constant.detach().flatten().contiguous().view(1, -1, 1, 1)
    from salviz.kernels import compiled

    found = _Found(gradient, 1)
    compiled.terms(
        len(gradient),
        arrays.with_images(gradient),
        arrays.with_images(constant),
        found.sizes[0],
        found.scores[0],
        found.ends[0],
    )
    return found.terms(0)


def draw(sizes: Tensor, ends: Tensor, channels: int, drawn: Tensor) -> bool:
    """Add a layer's sizes, rescaled so that they lie between 0 and 1 in every channel; nothing where all are alike.

    Args:
        sizes: `(N, h, w)`, added up over the channels.
        ends: `(2, N)` the smallest and the largest in any channel.
        channels: Of the layer.
        drawn: `(N, h, w)`, added to.

    Returns:
        Whether it was done; else nothing was.
    """
    given = (sizes, ends, drawn)
    if not arrays.is_free(*given) or not all(part.is_contiguous() for part in given):
        return False
    if drawn.shape != sizes.shape or ends.shape != (2, len(sizes)):
        return False
    from salviz.kernels import compiled

    compiled.draw(
        len(sizes), sizes.view(len(sizes), -1).numpy(), ends.numpy(), channels, drawn.view(len(drawn), -1).numpy()
    )
    return True


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
        bias.detach().contiguous().numpy(), arrays.with_images(passed), found.sizes, found.scores, found.ends,
    )  # fmt: skip
    return passed, found.terms(0), found.terms(1)


class _Found:
    """Room for what a loop learns of several sets of terms."""

    def __init__(self, like: Tensor, count: int) -> None:
        images, _, *self._size = like.shape
        self.sizes = np.empty((count, images, self._size[0] * self._size[1]), np.float32)
        self.scores = np.empty((count, images), np.float32)
        # Numbers that are never negative have the order of their bits.
        self.ends = np.empty((count, 2, images), np.int32)

    def terms(self, place: int) -> Terms:
        """Of one set."""
        ends = torch.from_numpy(self.ends[place].view(np.float32))
        sizes = torch.from_numpy(self.sizes[place]).view(-1, *self._size)
        return torch.from_numpy(self.scores[place]), sizes, ends
