"""What relevance propagation does with a value: its shares, and its parts of either sign."""

from __future__ import annotations

from torch import Tensor
from torch.autograd.graph import increment_version

from salviz.kernels import arrays


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
    if not arrays.is_apt(value, whole) or value.shape != whole.shape:
        return False
    from salviz.kernels import compiled

    value_ = arrays.places(value)
    compiled.clip_shares(value_.shape[0], value_, arrays.places(whole), cap, stabiliser)
    increment_version((value, whole))
    return True


def split(x: Tensor, dim: int, both: Tensor) -> bool:
    """The positive and the negative part of a value, one after the other along a dimension.

    Args:
        x: `(N, ...)`.
        dim: Of a split layer's channels: -1, or -3 of features; others are left alone.
        both: Gets them; twice as long in that dimension.

    Returns:
        Whether it was done; else nothing was.
    """
    if not arrays.is_free(x, both):
        return False
    x_, both_ = arrays.along(x, dim), arrays.along(both, dim)
    if x_ is None or both_ is None or both_.shape != (x_.shape[0], 2 * x_.shape[1]):
        return False
    from salviz.kernels import compiled

    compiled.split(x_.shape[0], x_, both_)
    return True


def unite(both: Tensor, gradient: Tensor, dim: int, back: Tensor) -> bool:
    """The way back through `split`: of a positive value the first part's gradient, of any other the second's.

    Args:
        both: What `split` made.
        gradient: Of that.
        dim: As above.
        back: Gets the gradient of what was split.

    Returns:
        Whether it was done; else nothing was.
    """
    if not arrays.is_free(both, gradient, back) or gradient.shape != both.shape:
        return False
    both_, gradient_, back_ = (arrays.along(part, dim) for part in (both, gradient, back))
    if both_ is None or gradient_ is None or back_ is None or both_.shape != (back_.shape[0], 2 * back_.shape[1]):
        return False
    from salviz.kernels import compiled

    compiled.unite(both_.shape[0], both_, gradient_, back_)
    return True
