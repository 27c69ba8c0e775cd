"""DeepLIFT's slopes: an operation's change between the baseline and the picture over its input's change."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from salviz import kernels
from salviz.methods.rectifiers import HOMOGENEOUS, Activation
from salviz.pieces import parts

_TINY = 1e-30
"""Added to a quotient of differences it changes nothing but 0/0."""

_Pool = Callable[[Tensor], tuple[Tensor, Tensor]]


class _Rescaled(torch.autograd.Function):
    """An activation with the Rescale rule (eq. 10): its slope is its change over its input's change."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, call: Activation, z0: Tensor) -> Tensor:
        is_straight = call.bounds is not None or call.name in HOMOGENEOUS
        out, slope = (_straight if is_straight else _curved)(call, z, z0)
        if call.is_inplace:
            ctx.mark_dirty(z)
        ctx.save_for_backward(slope)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        # Needed once; should somebody go back a second time, autograd sees that it was overwritten.
        return slope.mul_(grad), None, None


def _straight(call: Activation, z: Tensor, z0: Tensor) -> tuple[Tensor, Tensor]:
    """Values, over the input where the net does so, and slopes of an activation that is made of straight pieces.

    Differences on a piece are exact, so only no difference at all needs the derivative, which is the baseline's then.
    """
    # Memory is dear: the kernel clears what is new. So there is one new activation, overwritten until it is the slope.
    out, slope = z if call.is_inplace else torch.empty_like(z), torch.empty_like(z)
    if out is z and call.bounds is not None and kernels.clip_slopes(z, call.bounds, z0, slope):
        return out, slope
    out0 = call.apply(z0)
    # A number too small to change any other quotient brings it in: 0/0 becomes the derivative, without a mask.
    tiny = _derivative(call, z0, out0).mul_(_TINY)
    for z_, z0_, out_, out0_, slope_, tiny_ in parts(z, z0, out, out0, slope, tiny):
        run = z_ - z0_
        if call.bounds is None:
            out_.copy_(call.apply(z_))
        else:
            torch.clamp(z_, *call.bounds, out=out_)
        torch.sub(out_, out0_, out=slope_).add_(tiny_).div_(run.add_(_TINY))
    return out, slope


def _curved(call: Activation, z: Tensor, z0: Tensor) -> tuple[Tensor, Tensor]:
    """The same of any other.

    Of a small difference rounding leaves little. There the derivative half-way is nearer to the truth.
    """
    out, out0 = call.apply(z), call.apply(z0)
    slope = kernels.slopes(z, out, z0, out0, _close(z), lambda half_way: _derivative(call, half_way, half_way))
    if slope is None:
        slope = torch.empty_like(z)
        for z_, z0_, out_, out0_, slope_ in parts(z, z0, out, out0, slope):
            run = z_ - z0_
            half_way = _derivative(call, (z_ + z0_) / 2, out0_)
            rise = torch.sub(out_, out0_, out=slope_)
            torch.where(run.abs() < _close(z), half_way, rise.div_(run), out=rise)
    return z.copy_(out) if call.is_inplace else out, slope


def _close(z: Tensor) -> float:
    """Difference at which rounding and the error of the derivative half-way are about alike."""
    return float(torch.finfo(z.dtype).eps ** (1 / 3))


def _derivative(call: Activation, z: Tensor, out: Tensor) -> Tensor:
    if call.bounds is not None and call.bounds[0] == 0.0:
        return out.sign() if math.isinf(call.bounds[1]) else (call.bounds[1] - out).mul_(out).sign_()
    with torch.enable_grad():
        leaf = z.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(call.apply(leaf).sum(), leaf)
    return slope


class _RescaledPool(torch.autograd.Function):
    """Max pooling: where the picture's maximum is larger its place is handed the change, else the baseline's place.

    That place changed by at least as much as the maximum did, and in the same direction, so slopes lie between 0 and 1
    and the changes add up.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, pool: _Pool, z0: Tensor) -> Tensor:
        out, place = pool(z)
        out0, place0 = pool(z0)
        chosen = torch.where(out >= out0, place, place0)
        change = (z - z0).flatten(2).gather(2, chosen.flatten(2)).view_as(out)
        is_close = change == 0
        slope = torch.where(is_close, torch.ones_like(out), (out - out0) / change)
        ctx.save_for_backward(slope, torch.where(is_close, place, chosen))
        ctx.shape = z.shape
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        slope, place = ctx.saved_tensors
        back = grad.new_zeros(ctx.shape).flatten(2)
        # Windows overlap, so a place may be handed several signals.
        back.scatter_add_(2, place.flatten(2), (grad * slope).flatten(2))
        return back.view(ctx.shape), None, None


class _RescaledProduct(torch.autograd.Function):
    """A product: each factor's slope is the other's mean of picture and baseline, so the two changes add up."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, a0: Tensor, b0: Tensor) -> Tensor:
        ctx.save_for_backward((a + a0) / 2, (b + b0) / 2)
        ctx.shapes = a.shape, b.shape
        return a * b

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        a, b = ctx.saved_tensors
        return (grad * b).sum_to_size(ctx.shapes[0]), (grad * a).sum_to_size(ctx.shapes[1]), None, None


class _RescaledNorm(torch.autograd.Function):
    """`weight (z - mean) / deviation + bias` over the last dimension, as the product and chain of activations it is.

    With `c` the centred input and `d` its deviation, `c/d` changes by `1/d` times the change of `c`, and by `c0` times
    the change of `1/d`. That is `-1 / (d d0 (d + d0))` times the change of `d^2`, which is the mean of `c + c0` times
    the change of `c`. All changes add up and nothing grows beyond bounds, not even where the baseline is flat.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, z0: Tensor, eps: float, weight: Tensor, bias: Tensor) -> Tensor:
        found = kernels.norms(z, z0, eps, weight, bias)
        if found is not None:
            ctx.save_for_backward(*found[1], weight)
            return found[0]
        centred, centred0 = (part - part.mean(dim=-1, keepdim=True) for part in (z, z0))
        d, d0 = (part.square().mean(dim=-1, keepdim=True).add_(eps).sqrt_() for part in (centred, centred0))
        both = (centred + centred0) / (-centred.shape[-1] * d * (d + d0))
        ctx.save_for_backward(both, centred0 / d0, 1 / d, weight)
        return torch.addcmul(bias, centred / d, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        both, out0, scale, weight = ctx.saved_tensors
        back = kernels.norms_back(grad, both, out0, scale, weight)
        if back is None:
            grad = grad * weight
            back = grad * scale + both * (grad * out0).sum(dim=-1, keepdim=True)
            back = back - back.mean(dim=-1, keepdim=True)
        return back, None, None, None, None


def as_pooling(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, _Pool] | None:
    """Input and `z -> (maxima, flat places)` of a two-dimensional max pooling, or None."""
    if getattr(func, "__name__", "") not in ("max_pool2d", "adaptive_max_pool2d") or kwargs.get("return_indices"):
        return None
    x = args[0] if args else kwargs["input"]
    rest = {key: value for key, value in kwargs.items() if key not in ("input", "return_indices")}
    pool: Any = F.adaptive_max_pool2d if "adaptive" in func.__name__ else F.max_pool2d
    return x, lambda z: pool(z, *args[1:], **rest, return_indices=True)


def rescaled(call: Activation, z0: Tensor) -> Tensor:
    """An activation of the picture whose way back has the slope from the baseline, written over where the net does.

    Args:
        call: The picture's.
        z0: What the baseline gave to it: of the picture's shape, or one for all pictures.
    """
    out: Tensor = _Rescaled.apply(call.x, call, z0)
    return out


def rescaled_pool(z: Tensor, pool: _Pool, z0: Tensor) -> Tensor:
    """Max pooling likewise; `pool` from `as_pooling`."""
    out: Tensor = _RescaledPool.apply(z, pool, z0)
    return out


def rescaled_product(a: Tensor, b: Tensor, a0: Tensor, b0: Tensor) -> Tensor:
    """A product likewise, `a0` and `b0` being the baseline's factors."""
    out: Tensor = _RescaledProduct.apply(a, b, a0, b0)
    return out


def rescaled_norm(
    func: Any,
    z0: Tensor,
    z: Tensor,
    extent: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """A layer or group norm: `extent` is the normalised shape or the number of groups."""
    if func is F.layer_norm:
        flat, flat0 = (part.flatten(-len(extent)) for part in (z, z0))
        return _normed(flat, flat0, eps, weight, bias).reshape(z.shape)
    # A group has more channels than one, each with a weight of its own.
    flat, flat0 = (part.reshape(len(part), extent, -1) for part in (z, z0))
    out, affine = _normed(flat, flat0, eps).reshape(z.shape), (z.shape[1], *(1,) * (z.ndim - 2))
    out = out if weight is None else out * weight.view(affine)
    return out if bias is None else out + bias.view(affine)


def _normed(z: Tensor, z0: Tensor, eps: float, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """See `_RescaledNorm`; `weight` and `bias` have as many entries as the last dimension, or are left out."""
    length = z.shape[-1]
    scale = z.new_ones(length) if weight is None else weight.detach().flatten()
    shift = z.new_zeros(length) if bias is None else bias.detach().flatten()
    normed: Tensor = _RescaledNorm.apply(z, z0, eps, scale, shift)
    return normed
