"""FullGrad's terms."""

from __future__ import annotations

import torch
from torch import Tensor

from salviz.kernels import arrays
from salviz.kernels.arrays import View

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
    step = max(1, _TOGETHER // channels) * channels
    is_same = constant.shape == (1, channels, 1, 1)
    if is_same:
        held = View(constant.view(1, -1).repeat(1, step // channels), (1, step))
    elif constant.shape == gradient.shape:
        held = arrays.flat(constant.contiguous(memory_format=torch.channels_last))
    else:
        return None
    from salviz.kernels import compiled

    images, _, height, width = gradient.shape
    score, drawn = gradient.new_empty(images), gradient.new_empty(images, height, width)
    compiled.terms(
        images, arrays.flat(gradient), held, int(is_same), step, channels, View(score, (images,)),
        View(drawn, (images, height * width)),
    )  # fmt: skip
    return score, drawn


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

    images, _, height, width = clipped.shape
    passed, scores = torch.empty_like(clipped), gradient.new_empty(2, images)
    drawn = gradient.new_empty(2, images, height, width)
    compiled.clip_terms(
        images, arrays.with_images(gradient), arrays.with_images(clipped), cap, arrays.row(bias),
        arrays.with_images(passed), View(scores, (2, images)), View(drawn, (2, images, height * width)),
    )  # fmt: skip
    cap_score, score = scores.unbind()
    cap_drawn, bias_drawn = drawn.unbind()
    return passed, (cap_score, cap_drawn), (score, bias_drawn)
