"""The terms that FullGrad's score is made of, found on a backward pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from salviz.pieces import parts, pieces

_Piece = tuple[Tensor, Tensor, Tensor, Tensor]
"""What `_seen` returns."""


class FullGradTerms:
    """Sums the terms of one backward pass as their gradients come by (section 3 of the paper).

    Every term is a gradient times a constant: `g * b` for a bias, `g * x` for the input. What each adds to the score
    is summed in `score`; what the terms that lie on the picture look like after the paper's post-processing (absolute
    value, rescaled to [0, 1] a layer at a time, resized to the input) is summed for `saliency`.

    Attributes:
        score: `(N,)` sum of all terms.
    """

    def __init__(self, x: Tensor) -> None:
        """Start with nothing.

        Args:
            x: `(N, 3, H, W)` of the pictures' shape, type and device.
        """
        self.score = torch.zeros(len(x), device=x.device, dtype=x.dtype)
        self._drawn: dict[tuple[int, int], Tensor] = {}

    def add(self, gradient: Tensor, constant: Tensor) -> None:
        """Terms of every channel and place.

        Args:
            gradient: `(N, C, h, w)` of the score with respect to the layer's output.
            constant: `(C,)` a bias, or `(N, C, h, w)`.
        """
        constant = _of_places(constant)
        if gradient.shape[2] * gradient.shape[3] == 1:
            # It has no place in the picture.
            self.score += (gradient * constant).sum((1, 2, 3))
            return
        scratch, found = _room(gradient), []
        for given, held in parts(gradient, constant):
            found.append(_seen(torch.mul(given, held, out=scratch[: len(given)])))
        self.take(found, gradient.shape[1])

    def take(self, found: Sequence[_Piece], channels: int) -> None:
        """What `_seen` found of all pictures of a layer of so many channels, piece by piece."""
        scores, sizes, low, high = (torch.cat(each) for each in zip(*found, strict=True))
        self.score += scores
        span = high - low
        scale = torch.where(span > 0, 1 / span, torch.zeros_like(span)).view(-1, 1, 1)
        # The same for all channels of the layer, so it can follow their sum.
        rescaled = (sizes - channels * low.view(-1, 1, 1)) * scale
        key = (rescaled.shape[1], rescaled.shape[2])
        self._drawn[key] = self._drawn[key] + rescaled if key in self._drawn else rescaled

    def saliency(self, size: tuple[int, int]) -> Tensor:
        """The paper's map: `(N, height, width)`, never negative."""
        # Resizing is linear, so layers of one size are resized together.
        parts = [
            F.interpolate(drawn.unsqueeze(1), size=size, mode="bilinear", align_corners=False)
            for drawn in self._drawn.values()
        ]
        return torch.cat(parts, dim=1).sum(dim=1)


def _seen(terms: Tensor, scale: float = 1.0) -> _Piece:
    """A layer's terms of some pictures: `(n,)` their sum; of their sizes `(n, h, w)` the sum over the channels.

    The last two are `(n,)` the smallest and the largest size.

    Args:
        terms: `(n, C, h, w)`, overwritten: new memory would cost more than the arithmetic.
        scale: What all of them are still to be multiplied by; positive.
    """
    score = terms.sum(dim=(1, 2, 3))
    size = terms.abs_()
    found = score, size.sum(dim=1), _smallest(size), size.amax(dim=(1, 2, 3))
    return found if scale == 1.0 else tuple(part * scale for part in found)  # type: ignore[return-value]


def _smallest(size: Tensor) -> Tensor:
    """`(n,)` the smallest entry of each picture; none is negative."""
    first = size[:, :, :1].amin(dim=(1, 2, 3))
    # Rectifiers leave nothing at so many places that mostly the first line has one. A device would have to be waited
    # for.
    if size.device.type == "cpu" and not first.any():
        return first
    return size.amin(dim=(1, 2, 3))


def _of_places(constant: Tensor) -> Tensor:
    """`(C,)` as `(1, C, 1, 1)`; what has places as it is."""
    return constant.view(1, -1, 1, 1) if constant.ndim == 1 else constant


@dataclass
class Bias:
    """A layer's bias on its way: whoever computes the gradient at the layer can find its terms while at it.

    Attributes:
        value: `(C,)`.
        gradient: What `parts` are of, or None.
        version: Of that gradient: autograd adds to gradients in place.
        parts: From `_seen`.
    """

    value: Tensor
    gradient: Tensor | None = None
    version: int = 0
    parts: Sequence[_Piece] = ()

    def tell(self, terms: FullGradTerms, gradient: Tensor) -> None:
        """Give the terms their share, once the gradient at the layer is whole."""
        if gradient is self.gradient and gradient._version == self.version:
            terms.take(self.parts, gradient.shape[1])
        else:
            terms.add(gradient, self.value)
        self.gradient, self.parts = None, ()


class ClipWithTerms(torch.autograd.Function):
    """ReLU or ReLU6 in place whose way back finds the terms of its cap, and of the bias before it, while at it.

    Each reads what the other has just written: one way through memory for the three of them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, high: float, terms: FullGradTerms, bias: Bias | None) -> Tensor:
        """`(N, C, h, w)`, overwritten."""
        x.clamp_(0.0, high)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        ctx.high, ctx.terms, ctx.bias = high, terms, bias
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient as the rectifier lets it pass."""
        (result,) = ctx.saved_tensors
        high, bias = ctx.high, ctx.bias
        if bias is not None and len(bias.value) != gradient.shape[1]:
            # Somebody turned the tensor in between.
            bias = None
        passed, scratch = torch.empty_like(gradient), _room(gradient)
        caps, biases = [], []
        for given, clipped, left in parts(gradient, result, passed):
            room = scratch[: len(given)]
            if high < math.inf:
                # The gradient where the cap holds.
                torch.ops.aten.threshold_backward.grad_input(given, clipped, under(high), grad_input=room)
                caps.append(_seen(room, high))
                torch.ops.aten.hardtanh_backward.grad_input(given, clipped, 0.0, high, grad_input=left)
            else:
                torch.ops.aten.threshold_backward.grad_input(given, clipped, 0.0, grad_input=left)
            if bias is not None:
                biases.append(_seen(torch.mul(left, _of_places(bias.value), out=room)))
        if caps:
            ctx.terms.take(caps, gradient.shape[1])
        if bias is not None:
            bias.gradient, bias.version, bias.parts = passed, passed._version, biases
        return passed, None, None, None


def under(high: float) -> float:
    """The threshold above which a clamp's cap holds: the largest float under it."""
    return high * (1 - 2**-24)


def _room(gradient: Tensor) -> Tensor:
    """Memory for one of its pieces."""
    return torch.empty_like(gradient[next(pieces(gradient))])
