"""Elementwise work on large activations in one way through memory, compiled for the CPU.

A chain of PyTorch's operators reads and writes an activation at every step, and that takes longer than the arithmetic.
What is here does in one loop what a chain does, and says so where it cannot: callers go on with PyTorch's own operators
then, which every device has.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.graph import increment_version

_FEW = 4
"""Threads at the most beside which a loop on one of them is worth it: it was as fast as two of them on a chain."""

Terms = tuple[Tensor, Tensor, Tensor]
"""Of terms `(N, C, h, w)`: `(N,)` their sum; `(N, h, w)` their sizes, added up over the channels; `(2, N)` the smallest
and the largest size."""


def terms(gradient: Tensor, constant: Tensor) -> Terms | None:
    """What there is to know of `gradient * constant`, or None where PyTorch has to find it.

    Args:
        gradient: `(N, C, h, w)`.
        constant: The same, or `(1, C, 1, 1)`.
    """
    of_channels = (1, gradient.shape[1], 1, 1)
    if not _is_apt(gradient, constant) or constant.shape not in (gradient.shape, of_channels):
        return None
    from salviz import compiled

    found = _Found(gradient, 1)
    compiled.terms(_array(gradient), _array(constant), found.sizes[0], found.scores[0], found.ends[0])
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
    if not _is_free(sizes, ends, drawn):
        return False
    from salviz import compiled

    compiled.draw(sizes.flatten(1).numpy(), ends.numpy(), channels, drawn.view(len(drawn), -1).numpy())
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
    if not _is_apt(clipped) or gradient.shape != clipped.shape or len(bias) != clipped.shape[1]:
        return None
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    from salviz import compiled

    found, passed = _Found(clipped, 2), torch.empty_like(clipped)
    compiled.clip_terms(
        _array(gradient), _array(clipped), np.float32(cap), bias.numpy(), _array(passed), found.sizes, found.scores,
        found.ends,
    )  # fmt: skip
    return passed, found.terms(0), found.terms(1)


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
    if not _is_apt(z, z0, slope) or not _is_baseline(z0, z) or slope.shape != z.shape:
        return False
    from salviz import compiled

    low, high = (np.float32(bound) for bound in bounds)
    compiled.clip_slopes(_array(z), low, high, _array(z0), _array(slope))
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
    if not _is_free(z, out, z0, out0) or not _is_baseline(z0, z) or out0.shape != z0.shape or out.shape != z.shape:
        return None
    slope = torch.empty_like(z)
    given = (z, out, z0, out0, slope)
    # Of equal shapes one may have its channels last and another not.
    z_, out_, z0_, out0_, slope_ = (_rows(part, is_last=not z.is_contiguous()) for part in given)
    if z_ is None or out_ is None or z0_ is None or out0_ is None or slope_ is None:
        return None
    from salviz import compiled

    counts = np.empty(z_.shape[:2], np.int64)
    compiled.slopes(z_, out_, z0_, out0_, np.float32(near), slope_, counts)
    places, half_ways = np.empty(counts.sum(), np.int64), np.empty(counts.sum(), np.float32)
    compiled.near_ones(z_, z0_, np.float32(near), counts, places, half_ways)
    slope_.reshape(-1)[places] = derivative(torch.from_numpy(half_ways)).numpy()
    return slope


def norms(z: Tensor, z0: Tensor, eps: float) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]] | None:
    """`(z - mean) / deviation` over the last dimension, and what its way back from a baseline needs; None as above.

    With the centred `c` and its deviation `d` that is `(c + c0) / (-C d (d + d0))`, `c0 / d0` and `1 / d`.

    Args:
        z: `(N, ..., C)`.
        z0: The baseline's, of the same shape or one for all images.
        eps: Added to variances.
    """
    if not _is_free(z, z0) or not _is_baseline(z0, z) or z.ndim < 3:
        return None
    z_, z0_ = _rows(z), _rows(z0)
    if z_ is None or z0_ is None:
        return None
    from salviz import compiled

    out, both, out0, scales = np.empty_like(z_), np.empty_like(z_), np.empty_like(z0_), np.empty(z_.shape[:2], z_.dtype)
    compiled.norms(z_, z0_, np.float32(eps), out, both, out0, scales)
    made, held, held0 = (torch.from_numpy(part).view(-1, *z.shape[1:]) for part in (out, both, out0))
    return made, (held, held0, torch.from_numpy(scales).view(*z.shape[:-1], 1))


def norms_back(gradient: Tensor, both: Tensor, out0: Tensor, scale: Tensor) -> Tensor | None:
    """The way back through what `norms` makes.

    Args:
        gradient: `(N, ..., C)`.
        both: As the others from `norms`.
        out0: As above.
        scale: As above.
    """
    if not _is_free(gradient, both, out0) or both.shape != gradient.shape or not _is_baseline(out0, gradient):
        return None
    given, held, made0 = _rows(gradient.contiguous()), _rows(both), _rows(out0)
    if given is None or held is None or made0 is None:
        return None
    from salviz import compiled

    back = np.empty_like(given)
    compiled.norms_back(given, held, made0, scale.view(given.shape[:2]).numpy(), back)
    return torch.from_numpy(back).view(gradient.shape)


def advance(
    share: Tensor,
    length: Tensor,
    totals: Tensor,
    gradient: Tensor,
    band: tuple[float, float, float],
    *,
    arrived: float,
    group: int,
) -> Tensor | None:
    """A step of guided integrated gradients (see `methods.paths.guided.GuidedPath`), or None where PyTorch takes it.

    Numbers that are never negative have the order of their bits, so the ones with a rank are found by counting.

    Args:
        share: `(N, F)` where each feature is; overwritten.
        length: `(N, F)` of its way.
        totals: `(N, 1)` of all ways.
        gradient: `(N, F)` at the present place.
        band: Its lower end, its upper end and the straight path between them.
        arrived: A feature so near to the top of its band is there.
        group: Features that move together, at the least.

    Returns:
        `(N, F)` how much `share` grew.
    """
    given = (share, length, totals, gradient)
    if not _is_free(*given) or not all(part.is_contiguous() for part in given):
        return None
    if not share.shape == length.shape == gradient.shape:
        return None
    from salviz import compiled

    grown = torch.empty_like(share)
    low, high, middle = (np.float32(end) for end in band)
    compiled.advance(
        share.numpy(), length.numpy(), totals.view(-1).numpy(), gradient.numpy(), low, high, middle,
        np.float32(arrived), group, grown.numpy(),
    )  # fmt: skip
    return grown


def clip_shares(value: Tensor, whole: Tensor, cap: float, stabiliser: float) -> bool:
    """A clamp from 0 to a cap in place, and the share that what is left has in a whole.

    Args:
        value: `(N, C, h, w)`, overwritten.
        whole: The same, never negative; overwritten with the shares.
        cap: May be infinite.
        stabiliser: Added to the whole.

    Returns:
        Whether it was done; else nothing was.
    """
    if not _is_apt(value, whole) or value.shape != whole.shape:
        return False
    from salviz import compiled

    compiled.clip_shares(_array(value), _array(whole), np.float32(cap), np.float32(stabiliser))
    increment_version((value, whole))
    return True


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


def _is_baseline(z0: Tensor, z: Tensor) -> bool:
    """Whether one may stand for the other's baselines: one for each image, or one for all."""
    return len(z0) in (1, len(z)) and z0.shape[1:] == z.shape[1:]


def _is_free(*tensors: Tensor) -> bool:
    """Whether a loop may take them: few threads, and all of them float32 on the CPU with values to work on."""
    return torch.get_num_threads() <= _FEW and all(
        tensor.device.type == "cpu" and tensor.dtype == torch.float32 and tensor.numel() > 0 for tensor in tensors
    )


def _is_apt(*tensors: Tensor) -> bool:
    """Whether a loop may take them and they have their channels last."""
    return _is_free(*tensors) and all(_is_last(tensor) for tensor in tensors)


def _is_last(tensor: Tensor) -> bool:
    return tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)


def _rows(tensor: Tensor, *, is_last: bool = False) -> NDArray[np.float32] | None:
    """`(N, ..., C)` as `(N, P, C)`, the same memory, or None where its memory is in another order.

    Args:
        tensor: Any number of dimensions from two on.
        is_last: Whether it is `(N, C, h, w)` with its channels last.
    """
    if is_last:
        return _array(tensor) if _is_last(tensor) else None
    if tensor.ndim < 2 or not tensor.is_contiguous():
        return None
    found: NDArray[np.float32] = tensor.detach().view(len(tensor), -1, tensor.shape[-1]).numpy()
    return found


def _array(tensor: Tensor) -> NDArray[np.float32]:
    """`(N, C, h, w)` with its channels last as `(N, h w, C)`, the same memory."""
    images, channels, height, width = tensor.shape
    found: NDArray[np.float32] = tensor.detach().permute(0, 2, 3, 1).view(images, height * width, channels).numpy()
    return found
