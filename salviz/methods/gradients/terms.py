"""The terms that FullGrad's score is made of, found on a backward pass."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from salviz import kernels
from salviz.kernels import Terms
from salviz.pieces import parts, pieces


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
        found = kernels.terms(gradient, constant)
        if found is None:
            scratch = _room(gradient)
            found = _joined(
                _seen(torch.mul(given, held, out=scratch[: len(given)])) for given, held in parts(gradient, constant)
            )
        self.take(found)

    def take(self, found: Terms, scale: float = 1.0) -> None:
        """Terms of a layer.

        Args:
            found: What there is to know of them.
            scale: What all of them are still to be multiplied by; positive. What is drawn does not change with it.
        """
        score, drawn = found
        self.score.add_(score, alpha=scale)
        key = (drawn.shape[1], drawn.shape[2])
        if key in self._drawn:
            self._drawn[key].add_(drawn)
        else:
            self._drawn[key] = drawn

    def saliency(self, size: tuple[int, int]) -> Tensor:
        """The paper's map: `(N, height, width)`, never negative."""
        # Resizing is linear, so layers of one size are resized together.
        whole = torch.zeros(len(self.score), *size, device=self.score.device, dtype=self.score.dtype)
        for drawn in self._drawn.values():
            whole += F.interpolate(drawn.unsqueeze(1), size=size, mode="bilinear", align_corners=False).squeeze(1)
        return whole


def _seen(terms: Tensor) -> Terms:
    """What there is to know of a layer's terms of some pictures.

    Args:
        terms: `(n, C, h, w)`, overwritten: new memory would cost more than the arithmetic.
    """
    score = terms.sum(dim=(1, 2, 3))
    size = terms.abs_()
    low, high = (end.view(-1, 1, 1) for end in (_smallest(size), size.amax(dim=(1, 2, 3))))
    span = high - low
    # Rescaling is the same for all channels, so it can follow their sum. Of what is nearly alike rounding is left.
    above = (size.sum(dim=1) - size.shape[1] * low).clamp_(min=0)
    return score, above * torch.where(span > 0, 1 / span, torch.zeros_like(span))


def _joined(found: Iterable[Terms]) -> Terms:
    """Of all pictures, from what was seen of some at a time."""
    scores, drawn = zip(*found, strict=True)
    return torch.cat(scores), torch.cat(drawn)


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
        gradient: What `terms` are of, or None.
        version: Of that gradient: autograd adds to gradients in place.
        terms: What was found of them.
    """

    value: Tensor
    gradient: Tensor | None = None
    version: int = 0
    terms: Terms | None = None

    def tell(self, terms: FullGradTerms, gradient: Tensor) -> None:
        """Give the terms their share, once the gradient at the layer is whole."""
        if self.terms is not None and gradient is self.gradient and gradient._version == self.version:
            terms.take(self.terms)
        else:
            terms.add(gradient, self.value)
        self.gradient = self.terms = None


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
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient as the rectifier lets it pass."""
        (result,) = ctx.saved_tensors
        high, bias, channels = ctx.high, ctx.bias, gradient.shape[1]
        if bias is not None and len(bias.value) != channels:
            # Somebody turned the tensor in between.
            bias = None
        added = gradient.new_zeros(channels) if bias is None else bias.value
        found = kernels.clip_terms(gradient, result, high, added)
        passed, caps, biases = _clip_terms(gradient, result, high, bias) if found is None else found
        if caps is not None and high < math.inf:
            ctx.terms.take(caps, high)
        if bias is not None:
            bias.gradient, bias.version, bias.terms = passed, passed._version, biases
        return passed, None, None, None


def _clip_terms(
    gradient: Tensor, clipped: Tensor, cap: float, bias: Bias | None
) -> tuple[Tensor, Terms | None, Terms | None]:
    """As `kernels.clip_terms`, of whatever PyTorch computes with, and only what there is: a cap, a bias."""
    passed, scratch = torch.empty_like(gradient), _room(gradient)
    caps, biases = [], []
    for given, clipped_, left in parts(gradient, clipped, passed):
        room = scratch[: len(given)]
        if cap < math.inf:
            torch.ops.aten.threshold_backward.grad_input(given, clipped_, under(cap), grad_input=room)
            caps.append(_seen(room))
        torch.ops.aten.hardtanh_backward.grad_input(given, clipped_, 0.0, cap, grad_input=left)
        if bias is not None:
            biases.append(_seen(torch.mul(left, _of_places(bias.value), out=room)))
    return passed, _joined(caps) if caps else None, _joined(biases) if biases else None


def under(high: float) -> float:
    """The threshold above which a clamp's cap holds: the largest float under it."""
    return high * (1 - 2**-24)


def _room(gradient: Tensor) -> Tensor:
    """Memory for one of its pieces."""
    return torch.empty_like(gradient[next(pieces(gradient))])
