"""Activations and norms in relevance propagation (Achtibat et al., AttnLRP, ICML 2024)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from salviz.methods.rectifiers import Activation, overwrite
from salviz.methods.relevance.rules import NoRuleError, carry, clip_carried, settle
from salviz.pieces import parts

_SLOPES = {"gelu": 0.5, "hardswish": 0.5, "mish": 0.6}
"""Slopes at zero of the activations where it is not 1."""


class _Clipped(torch.autograd.Function):
    """A value between 0 and a cap, with the identity rule's way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, high: float, is_inplace: bool) -> Tensor:
        value, factor, tiny = x if is_inplace else torch.empty_like(x), torch.empty_like(x), torch.finfo(x.dtype).tiny
        for x_, value_, factor_ in parts(x, value, factor):
            # 0 for what is cut off below.
            torch.clamp(x_, min=tiny, out=factor_)
            torch.div(torch.clamp(x_, 0.0, high, out=value_), factor_, out=factor_)
        if is_inplace:
            ctx.mark_dirty(x)
        ctx.factor = factor
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.factor.mul_(grad), None, None


def rectified(call: Activation, *, is_untouched: bool) -> Tensor:
    """A ReLU or ReLU6 by the identity rule (AttnLRP, eq. 9).

    Args:
        call: Of a clamp from 0.
        is_untouched: Whether a rule has just made what it is called on, and nobody has read that.
    """
    x, (_, high) = call.x, call.bounds or (0.0, math.inf)
    if call.is_inplace and is_untouched and clip_carried(x, high):
        return x
    settle(x)
    is_inplace = call.is_inplace and not (x.is_leaf or x._is_view())
    result: Tensor = F.relu(x, inplace=is_inplace) if math.isinf(high) else _Clipped.apply(x, high, is_inplace)
    return result if result is x else overwrite(call, result)


def through(call: Activation) -> Tensor:
    """An elementwise function by the identity rule: relevance goes through, so `g_in = g f(x) / x` (AttnLRP, eq. 9).

    Args:
        call: Of a function that is 0 at 0.
    """
    settle(call.x)
    flat = call.x.detach()
    value = call.apply(flat)
    if call.name == "silu":
        return overwrite(call, carry(call.x, flat.sigmoid(), value))
    is_zero = flat == 0
    factor = torch.where(is_zero, _SLOPES.get(call.name, 1.0), value / torch.where(is_zero, 1.0, flat))
    return overwrite(call, carry(call.x, factor, value))


_ARGUMENTS = {
    "normalize": ("input", "p", "dim", "eps"),
    "layer_norm": ("input", "normalized_shape", "weight", "bias", "eps"),
    "rms_norm": ("input", "normalized_shape", "weight", "eps"),
    "group_norm": ("input", "num_groups", "weight", "bias", "eps"),
    "instance_norm": ("input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps"),
}


def norm(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """A norm whose scale is taken as a constant (AttnLRP, eq. 11); the mean that is subtracted is linear.

    Args:
        name: Of the function in `torch.nn.functional`.
        args: Its arguments.
        kwargs: Its arguments by name.
    """
    given = {**dict(zip(_ARGUMENTS[name], args, strict=False)), **kwargs}
    x: Tensor = given["input"]
    if name == "normalize":
        size: Tensor = torch.linalg.vector_norm(
            x.detach(), ord=given.get("p", 2.0), dim=given.get("dim", 1), keepdim=True
        )
        return x / size.clamp(min=given.get("eps", 1e-12))
    if name in ("layer_norm", "rms_norm"):
        axes = tuple(range(-len(given["normalized_shape"]), 0))
        eps = given.get("eps")
        if eps is None:
            eps = torch.finfo(x.dtype).eps if name == "rms_norm" else 1e-5
        scaled = _scaled(x, axes, eps, is_centred=name == "layer_norm")
        return _affine(scaled, given.get("weight"), given.get("bias"))
    if given.get("running_mean") is not None:
        raise NoRuleError("an instance norm with fixed statistics")
    grouped = x.reshape(len(x), given.get("num_groups", x.shape[1]), -1)
    scaled = _scaled(grouped, (-1,), given.get("eps", 1e-5), is_centred=True).reshape(x.shape)
    by_channel = (1, -1, *[1] * (x.ndim - 2))
    weight, bias = (None if given.get(k) is None else given[k].view(by_channel) for k in ("weight", "bias"))
    return _affine(scaled, weight, bias)


def _scaled(x: Tensor, axes: tuple[int, ...], eps: float, *, is_centred: bool) -> Tensor:
    centred = x - x.mean(dim=axes, keepdim=True) if is_centred else x
    return centred * (centred.detach().square().mean(dim=axes, keepdim=True) + eps).rsqrt()


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias
