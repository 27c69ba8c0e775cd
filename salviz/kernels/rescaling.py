"""Slopes from a baseline (DeepLIFT's Rescale rule)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from salviz.kernels import arrays
from salviz.kernels.arrays import View


def clip_slopes(z: Tensor, bounds: tuple[float, float], z0: Tensor, slope: Tensor) -> bool:
    """A clamp in place, and its change from a baseline over its input's change (DeepLIFT's Rescale rule).

    Args:
        z: `(N, C, h, w)` input, overwritten.
        bounds: Of the clamp.
        z0: The baseline's input, of the same shape or one for all images.
        slope: Gets the slopes; where there is no change, the derivative.

    Returns:
        Whether it was done; else nothing was.
    """
    if not arrays.is_apt(z, z0, slope) or not arrays.is_baseline(z0, z) or slope.shape != z.shape:
        return False
    from salviz.kernels import compiled_rescaling as compiled

    z_ = arrays.places(z)
    z0_ = arrays.places(z0)
    compiled.clip_slopes(z0_.shape[0], z_, *bounds, z0_, arrays.places(slope))
    increment_version((z, slope))
    return True


def slopes(
    z: Tensor, out: Tensor, z0: Tensor, out0: Tensor, near: float, derivative: Callable[[Tensor], Tensor]
) -> Tensor | None:
    """A function's change from a baseline over its input's change, or None where PyTorch has to find it.

    Args:
        z: `(N, ...)` input.
        out: What the function makes of it.
        z0: The baseline's input, of the same shape or one for all images.
        out0: What the function makes of that.
        near: A change of the input below which its quotient is not to be trusted.
        derivative: Of the function, `(K,)` -> `(K,)`: counts half-way between what is so near.

    Returns:
        Of the shape of `z`.
    """
    if (
        not arrays.is_free(z, out, z0, out0)
        or not arrays.is_baseline(z0, z)
        or out0.shape != z0.shape
        or out.shape != z.shape
    ):
        return None
    slope = torch.empty_like(z)
    given = (z, out, z0, out0, slope)
    # Of equal shapes one may have its channels last and another not.
    z_, out_, z0_, out0_, slope_ = (arrays.rows(part, of_features=not z.is_contiguous()) for part in given)
    if z_ is None or out_ is None or z0_ is None or out0_ is None or slope_ is None:
        return None
    from salviz.kernels import compiled_rescaling as compiled

    starts = np.empty(z_.shape[0] + 1, np.int64)
    compiled.slopes(z0_.shape[0], z_, out_, z0_, out0_, near, slope_, starts[1:])
    starts[0] = 0
    np.cumsum(starts, out=starts)
    places, half_ways = torch.empty(starts[-1], dtype=torch.int64), z.new_empty(starts[-1])
    compiled.near_ones(z_.shape[0], z_, z0_, near, starts, arrays.row(places), arrays.row(half_ways))
    # In the order of memory.
    slope.as_strided((slope.numel(),), (1,))[places] = derivative(half_ways)
    return slope


def norms(
    z: Tensor, z0: Tensor, eps: float, weight: Tensor, bias: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]] | None:
    """`weight (z - mean) / deviation + bias` over the last dimension, and what its way back needs; None as above.

    With the centred `c` and its deviation `d` that is `(c + c0) / (-C d (d + d0))`, `c0 / d0` and `1 / d`.

    Args:
        z: `(N, ..., C)`.
        z0: The baseline's, of the same shape or one for all images.
        eps: Added to variances.
        weight: `(C,)`.
        bias: `(C,)`.
    """
    if not arrays.is_free(z, z0, weight, bias) or not arrays.is_baseline(z0, z) or z.ndim < 3:
        return None
    if not weight.shape == bias.shape == z.shape[-1:]:
        return None
    # Of a part of the tokens one image alone is in one piece, and several are not: all go the same way.
    z, z0 = z.contiguous(), z0.contiguous()
    z_, z0_ = arrays.table(z), arrays.table(z0)
    from salviz.kernels import compiled_rescaling as compiled

    out, both, out0 = torch.empty_like(z), torch.empty_like(z), torch.empty_like(z0)
    scales = z.new_empty(*z.shape[:-1], 1)
    means0, deviations0 = z.new_empty(2, z0_.shape[0]).unbind()
    out0_, of_means, of_deviations = View(out0, z0_.shape), arrays.row(means0), arrays.row(deviations0)
    compiled.baseline_norms(z0_.shape[0], z0_, eps, out0_, of_means, of_deviations)
    compiled.norms(
        z_.shape[0], z_, z0_, of_means, of_deviations, eps, arrays.row(weight), arrays.row(bias), View(out, z_.shape),
        View(both, z_.shape), View(scales, (z_.shape[0],)),
    )  # fmt: skip
    return out, (both, out0, scales)


def norms_back(gradient: Tensor, both: Tensor, out0: Tensor, scale: Tensor, weight: Tensor) -> Tensor | None:
    """The way back through what `norms` makes.

    Args:
        gradient: `(N, ..., C)`.
        both: As the others from `norms`.
        out0: As above.
        scale: As above.
        weight: As `norms` was given it.
    """
    if (
        not arrays.is_free(gradient, both, out0, scale, weight)
        or both.shape != gradient.shape
        or not arrays.is_baseline(out0, gradient)
        or scale.shape != (*gradient.shape[:-1], 1)
        or not scale.is_contiguous()
        or weight.shape != gradient.shape[-1:]
    ):
        return None
    given, held, made0 = arrays.table(gradient.contiguous()), arrays.rows(both), arrays.rows(out0)
    if held is None or made0 is None:
        return None
    from salviz.kernels import compiled_rescaling as compiled

    back = torch.empty_like(both)
    compiled.norms_back(
        given.shape[0], given, held, made0, View(scale, (given.shape[0],)), arrays.row(weight), View(back, given.shape)
    )
    return back
