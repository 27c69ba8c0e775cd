"""Activations and norms in relevance propagation (Achtibat et al., AttnLRP, ICML 2024)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from salviz.methods.relevance.rules import NoRuleError, carry

_SLOPES = {"gelu": 0.5, "hardswish": 0.5, "mish": 0.6}
"""Slopes at zero of the activations where it is not 1."""


def is_cut_at_zero(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a function is a ReLU6 in one of its forms: a `hardtanh` from 0 is one."""
    bound = args[1] if len(args) > 1 else kwargs.get("min_val", -1.0)
    return name == "relu6" or (name == "hardtanh" and bound == 0)


def through(name: str, func: Callable[..., Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """An elementwise function by the identity rule: relevance goes through, so `g_in = g f(x) / x` (AttnLRP, eq. 9).

    Args:
        name: Of the function.
        func: The function, which is 0 at 0; perhaps one that works in place.
        args: Its arguments.
        kwargs: Its arguments by name.
    """
    x: Tensor = args[0] if args else kwargs["input"]
    if name in ("relu", "relu_"):
        return F.relu(x)
    flat = x.detach()
    if is_cut_at_zero(name, args, kwargs):
        high = args[2] if len(args) > 2 else kwargs.get("max_val", 6.0 if name == "relu6" else 1.0)
        # 0 for what was cut off below.
        above = flat.clamp(min=torch.finfo(flat.dtype).tiny)
        value = flat.clamp(min=0.0, max=high)
        return carry(x, torch.div(value, above, out=above), value)
    # Some work in place: they get a copy.
    others = {key: value for key, value in kwargs.items() if key != "input"}
    is_in_place = name.endswith("_") or others.get("inplace") or any(value is True for value in args)
    value = func(flat.clone() if is_in_place else flat, *args[1:], **others)
    if name == "silu":
        return carry(x, flat.sigmoid(), value)
    is_zero = flat == 0
    factor = torch.where(is_zero, _SLOPES.get(name, 1.0), value / torch.where(is_zero, 1.0, flat))
    return carry(x, factor, value)


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
