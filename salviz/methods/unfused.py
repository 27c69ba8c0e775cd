"""PyTorch's fused attention functions written out in their steps, so that a method can see and change what is inside.

A `TorchFunctionMode` sees a fused function as one call. It hands the call to `UNFUSED` with itself switched on again,
and then sees its matrix products and its softmax, as it does where a net writes them out itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from salviz.errors import MethodError


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`F.scaled_dot_product_attention` of an eval-mode net: `(..., L, E)`, `(..., S, E)`, `(..., S, V)`."""
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
    if is_causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~allowed, float("-inf"))
    if attn_mask is not None:
        is_bool = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, float("-inf")) if is_bool else scores + attn_mask
    return scores.softmax(dim=-1) @ value


def _multi_head(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    need_weights: bool = True,
    **others: Any,
) -> tuple[Tensor, Tensor | None]:
    """`F.multi_head_attention_forward` of plain self-attention: `(T, N, E)` thrice -> `(T, N, E)`.

    Raises:
        MethodError: Attention with masks, extra keys or separate projections, which image classifiers do not have.
    """
    is_special = in_proj_weight is None or bias_k is not None or add_zero_attn or query.ndim != 3
    unusual = ("key_padding_mask", "attn_mask", "static_k", "static_v", "q_proj_weight")
    if is_special or any(others.get(name) is not None for name in unusual):
        raise MethodError(
            "The attention of this classifier has masks or extra keys, which cannot be taken apart. Choose a gradient "
            "or perturbation method."
        )
    assert in_proj_weight is not None  # noqa: S101 - looked at above
    weights = in_proj_weight.chunk(3)
    biases: tuple[Tensor | None, ...] = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)

    def heads(tokens: Tensor, part: int) -> Tensor:
        projected = F.linear(tokens, weights[part], biases[part])
        length, batch, width = projected.shape
        return projected.view(length, batch, num_heads, width // num_heads).permute(1, 2, 0, 3)

    q, k, v = heads(query, 0), heads(key, 1), heads(value, 2)
    weight = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1)
    mixed = (weight @ v).permute(2, 0, 1, 3).reshape(query.shape)
    output = F.linear(mixed, out_proj_weight, out_proj_bias)
    if not need_weights:
        return output, None
    return output, weight.mean(dim=1) if others.get("average_attn_weights", True) else weight


UNFUSED: dict[Any, Callable[..., Any]] = {
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _multi_head,
}
"""Fused function -> the same in steps."""
