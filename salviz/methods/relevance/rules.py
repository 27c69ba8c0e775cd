"""Rules of layer-wise relevance propagation, written as changed gradients.

Relevance of a value is the value times its changed gradient, `R = z g`. Under the LRP-0 rule the changed gradient is
the gradient itself, so sums, means, poolings, reshapes and everything else that is linear needs no rule at all, and a
rule is a change of what a layer hands back: `R_i = x_i g_i` with `g_i = sum_j c_ij f_j g_j`. Each rule computes a
*carrier*, some function of `x` whose derivative is `c`, and the factor `f`; the layer's value stays what it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from salviz import kernels
from salviz.classifiers.lean import kernel_of_ones
from salviz.errors import MethodError
from salviz.pieces import parts

Layer = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""A convolution or linear map: `(x, weight, bias)` -> value."""
Rule = Callable[[Layer, Tensor, Tensor, Tensor | None, bool], Tensor]
"""`(layer, x, weight, bias, is_positive)` -> the layer's value with the rule's way back to `x`.

`is_positive` says that no entry of `x` can be negative, which halves the work of some rules.
"""

_STABILISER = 1e-9
"""Added to denominators, with their sign: far below any activation that matters."""


class NoRuleError(MethodError):
    """A net does something for which relevance propagation has no rule."""


class _Factors:
    """What a value's gradient is multiplied by on its way to each carrier.

    They are as large as activations, and touching fresh memory is what costs: they are made in place, and the way
    back, which is taken once, turns them into the gradients. A value's share of a whole is not made before something
    is done with the value: mostly that is a rectifier, which has to touch both as well.
    """

    def __init__(self, made: list[Tensor], part: Tensor | None = None) -> None:
        """Of a value.

        Args:
            made: Factors; with `part` a single one, of which there is but the whole so far (see `share`).
            part: The value.
        """
        self.made, self.part = made, part
        # Of the value, once it has a graph: whatever else writes into it raises that.
        self.version = 0

    def settle(self) -> list[Tensor]:
        """All of them, made while the value is what it was."""
        if self.part is not None:
            self.made = [share(self.part, self.made[0])]
            self.part = None
        return self.made

    def clip(self, value: Tensor, high: float) -> None:
        """Clip the value, and multiply what that lets back into the factors; see `clip_carried`."""
        if self.part is not None and kernels.clip_shares(value, self.made[0], high, _STABILISER):
            self.part = None
            return
        tiny = torch.finfo(value.dtype).tiny
        for value_, *factors_ in parts(value, *self.settle()):
            # 0 for what is cut off below.
            let_back = value_.clamp(min=tiny)
            torch.div(value_.clamp_(0.0, high), let_back, out=let_back)
            for factor in factors_:
                factor.mul_(let_back)


class _Carry(torch.autograd.Function):
    """A value whose gradient goes to carriers, to each times a factor of its own."""

    @staticmethod
    def forward(ctx: Any, value: list[Tensor], factors: _Factors, *carriers: Tensor) -> Tensor:
        ctx.factors = factors
        ctx.shapes = [carrier.shape for carrier in carriers]
        return value.pop()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # A carrier may be the same for all channels.
        gradients = [
            factor.mul_(grad) if factor.shape == shape else factor.mul_(grad).sum_to_size(shape)
            for factor, shape in zip(ctx.factors.settle(), ctx.shapes, strict=True)
        ]
        return None, None, *gradients


class _Split(torch.autograd.Function):
    """The positive and the negative part of a value, one after the other along a dimension.

    Each has the gradient where the value is its own; at zero, where neither is, the second has it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> Tensor:
        shape = list(x.shape)
        shape[dim] *= 2
        layout = kernels.layout(x)
        both = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)
        if not kernels.split(x, dim, both):
            for x_, over_, under_ in parts(x, *both.chunk(2, dim)):
                torch.clamp(x_, min=0, out=over_)
                torch.clamp(x_, max=0, out=under_)
        ctx.save_for_backward(both)
        ctx.dim, ctx.shape, ctx.layout = dim, x.shape, layout
        return both

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (both,) = ctx.saved_tensors
        back = torch.empty(ctx.shape, dtype=grad.dtype, device=grad.device, memory_format=ctx.layout)
        if not kernels.unite(both, grad, ctx.dim, back):
            over, _ = both.chunk(2, ctx.dim)
            passes = torch.ops.aten.threshold_backward
            for over_, over_grad_, under_grad_, back_ in parts(over, *grad.chunk(2, ctx.dim), back):
                # Each where it is asked for. `where` takes ten times as long on a CPU.
                passes.grad_input(over_grad_, over_, 0, grad_input=back_)
                back_.add_(under_grad_ - passes(under_grad_, over_, 0))
        return back, None


def carry(carrier: Tensor, factor: Tensor, value: Tensor) -> Tensor:
    """`value`, with `factor` times its gradient handed to `carrier`.

    Args:
        carrier: Of the value's shape, or broadcastable to it; its own values do not matter.
        factor: Of the value's shape, without a graph; used up on the way back.
        value: Without a graph, fresh.
    """
    return _carried(value, [factor], carrier)


def carry_share(carrier: Tensor, whole: Tensor, value: Tensor) -> Tensor:
    """As `carry` with the factor `share(value, whole)`, made as late as can be.

    Whoever is about to read or write the result calls `settle` or `clip_carried` first.
    """
    factors = _Factors([whole], value.detach())
    return _marked(_Carry.apply([value], factors, carrier), factors)


def _carried(value: Tensor, factors: list[Tensor], *carriers: Tensor) -> Tensor:
    """As `carry`, with a factor for each carrier."""
    held = _Factors(factors)
    return _marked(_Carry.apply([value], held, *carriers), held)


def _marked(result: Tensor, factors: _Factors) -> Tensor:
    factors.version = result._version
    result._factors = factors  # type: ignore[attr-defined]
    return result


def settle(value: Tensor) -> None:
    """Make what of a value's factors is still to be made of it."""
    factors: _Factors | None = getattr(value, "_factors", None)
    if factors is not None:
        factors.settle()


def clip_carried(value: Tensor, high: float) -> bool:
    """Clip what a rule has just made between 0 and `high`, in place, by the identity rule (AttnLRP, eq. 9).

    What the clipping lets back, `clip(z) / z`, is multiplied into the rule's own factors: one tensor less to keep, and
    one way through memory less each way.

    Args:
        value: Nobody has read it as it was.
        high: Infinite for a ReLU.

    Returns:
        Whether a rule made it; else nothing was done.
    """
    factors: _Factors | None = getattr(value, "_factors", None)
    if factors is None or factors.version != value._version:
        return False
    factors.clip(value.detach(), high)
    return True


def share(part: Tensor, whole: Tensor) -> Tensor:
    """`part / whole` for a whole that is never negative, with a stabilised denominator; of the shape of `part`.

    Args:
        part: Any shape.
        whole: Broadcastable to it. Of the same shape it is overwritten: a carrier's own values do not matter.
    """
    if part.shape != whole.shape:
        return part / (whole + _STABILISER)
    for whole_, part_ in parts(whole, part):
        torch.div(part_, whole_.add_(_STABILISER), out=whole_)
    return whole


def plain(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None, is_positive: bool) -> Tensor:
    """LRP-0: the gradient as it is."""
    return layer(x, weight, bias)


def epsilon(stabiliser: float) -> Rule:
    """The epsilon rule (Bach et al. 2015, eq. 58): `R_i = sum_j z_ij / (z_j + eps sign z_j) R_j`."""
    if stabiliser == 0:
        return plain

    def rule(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None, is_positive: bool) -> Tensor:
        value = layer(x, weight, bias)
        # |z| / (|z| + eps) as 1 - eps / (|z| + eps), in place.
        factor = value.detach().abs().add_(stabiliser).reciprocal_().mul_(-stabiliser).add_(1.0)
        value.register_hook(factor.mul_)  # type: ignore[no-untyped-call]
        return value

    return rule


def _positive_part(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None, is_positive: bool) -> Tensor:
    """Sum of the positive contributions `(x_i w_ij)+`, a bias counted as one of them."""
    above = None if bias is None else bias.clamp(min=0)
    if is_positive:
        return layer(x, weight.clamp(min=0), above)
    # Dimensions before the channels: the batch and, of what linear layers read, more.
    channels = 1 - weight.ndim
    if x.shape[channels] == weight.shape[1]:
        # One layer of twice the inputs: its output, which is mostly larger, is written once.
        joined = torch.cat([weight.detach()] * 2, dim=1)
        over, under = joined.chunk(2, dim=1)
        over.clamp_(min=0)
        under.clamp_(max=0)
        return layer(_Split.apply(x, channels), joined, above)
    positive, negative = _Split.apply(x, 0).chunk(2)
    return layer(positive, weight.clamp(min=0), above).add_(layer(negative, weight.clamp(max=0), None))


def z_plus(keeps_bias: bool) -> Rule:
    """The z+ or alpha1-beta0 rule (Montavon et al. 2017): `R_i = sum_j (z_ij)+ / sum_i (z_ij)+ R_j`.

    Args:
        keeps_bias: Whether a positive bias counts in the sum and so keeps its share of the relevance.
    """

    def rule(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None, is_positive: bool) -> Tensor:
        with torch.no_grad():
            value = layer(x, weight, bias)
        positive = _positive_part(layer, x, weight, bias if keeps_bias else None, is_positive)
        return carry_share(positive, positive.detach(), value)

    return rule


def alpha_beta(alpha: float, beta: float, keeps_bias: bool) -> Rule:
    """The alpha-beta rule (Bach et al. 2015, eq. 60): alpha parts for, beta parts against; `alpha - beta = 1`.

    Args:
        alpha: Weight of the positive contributions' shares.
        beta: Weight of the negative ones'.
        keeps_bias: See `z_plus`.
    """

    def rule(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None, is_positive: bool) -> Tensor:
        with torch.no_grad():
            value = layer(x, weight, bias)
        held = bias if keeps_bias else None
        positive = _positive_part(layer, x, weight, held, is_positive)
        # What is negative of it is minus what is positive of the same layer with all signs of its weights turned.
        negative = _positive_part(layer, x, -weight, None if held is None else -held, is_positive)
        factors = [share(value, positive.detach()).mul_(alpha), share(value, negative.detach()).mul_(-beta)]
        return _carried(value, factors, positive, negative)

    return rule


def gamma(strength: float) -> Rule:
    """The gamma rule for inputs and outputs of either sign (Montavon et al. 2019; Andéol et al. 2021).

    Contributions of the output's sign count `1 + gamma` times: `c_ij = w_ij + gamma w_ij [sign z_ij = sign z_j]`. With
    `(z_ij)+ = (z_ij + |z_ij|) / 2` that is one more product, of absolute values.
    """

    def rule(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None, is_positive: bool) -> Tensor:
        value = layer(x, weight, bias)
        sizes = layer(x if is_positive else x.abs(), weight.abs(), None if bias is None else bias.abs())
        flat = value.detach()
        # z_j over its sum of counted contributions, which is sign z_j ((1 + gamma / 2) |z_j| + gamma / 2 sum |z_ij|).
        size = flat.abs()
        whole = (sizes.detach() * (strength / 2)).add_(size, alpha=1 + strength / 2).add_(_STABILISER)
        factor = size.div_(whole)
        turned = torch.copysign(factor, flat).mul_(strength / 2)
        factors = [factor.mul_(1 + strength / 2), turned]
        return _carried(flat, factors, value, sizes)

    return rule


@dataclass(frozen=True, eq=False)
class Pixels:
    """What a layer that reads the image gets.

    Attributes:
        values: What the layer reads, without a graph.
        gate: Ones of the same shape, zero where the image was padded; its gradient is the pixels' relevance.
        low: Smallest possible values.
        high: Largest possible values.
    """

    values: Tensor
    gate: Tensor
    low: Tensor
    high: Tensor

    def each(self, change: Callable[[Tensor], Tensor], gate: Callable[[Tensor], Tensor] | None = None) -> Pixels:
        """All four changed in the same way, the gate perhaps in another."""
        return Pixels(change(self.values), (gate or change)(self.gate), change(self.low), change(self.high))


FirstRule = Callable[[Layer, Pixels, Tensor, Tensor | None], Tensor]
"""`(layer, pixels, weight, bias)` -> the layer's value; the gradient at the pixels' gate is their relevance."""


def as_elsewhere(rule: Rule) -> FirstRule:
    """The rule of inner layers at the image: `x` times the gate has the gradient `x g`, which is the relevance."""

    def first(layer: Layer, pixels: Pixels, weight: Tensor, bias: Tensor | None) -> Tensor:
        return rule(layer, pixels.values * pixels.gate, weight, bias, False)

    return first


def flat(layer: Layer, pixels: Pixels, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The flat rule (Lapuschkin et al. 2019): relevance spreads evenly over the pixels that a neuron sees."""
    with torch.no_grad():
        value = layer(pixels.values, weight, bias)
    # All neurons see the same pixels, unless channels are grouped.
    ones = kernel_of_ones(weight)
    if value.shape[1] == len(weight) and _is_ungrouped(pixels, weight):
        ones = ones[:1]
    count = layer(pixels.gate, ones, None)
    return carry(count, share(value, count.detach()), value)


def _is_ungrouped(pixels: Pixels, weight: Tensor) -> bool:
    return weight.ndim == pixels.gate.ndim and weight.shape[1] == pixels.gate.shape[1]


def z_box(layer: Layer, pixels: Pixels, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The z-B rule (Montavon et al. 2017) for values between `low` and `high`.

    `R_i = sum_j (x_i w_ij - l_i w_ij+ - h_i w_ij-) / (the same summed over i) R_j`.
    """
    with torch.no_grad():
        value = layer(pixels.values, weight, bias)
    box = (
        layer(pixels.values * pixels.gate, weight, None)
        - layer(pixels.low * pixels.gate, weight.clamp(min=0), None)
        - layer(pixels.high * pixels.gate, weight.clamp(max=0), None)
    )
    # Pixels outside the box, which augmented pictures may have, can leave a whole without a share that means anything.
    whole = box.detach()
    factor = torch.where(whole > 0, share(value, whole.clamp(min=0)), torch.zeros_like(value))
    return carry(box, factor, value)
