"""SSIM of map pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from salviz.pieces import pieces
from salviz.similarity.pairs import total, validated
from salviz.transforms.alignment import Validity

Window = Literal["uniform", "gaussian"]

_WINDOW = 5
_BORDER = _WINDOW // 2
_SIGMA, _RADIUS = 1.5, 5
"""Of the Gaussian window: scikit-image cuts it at three and a half deviations."""
_K1, _K2 = 0.01, 0.03


def ssim(
    a: Tensor,
    b: Tensor,
    *,
    valid: Tensor | Validity | None = None,
    data_range: float | Literal["pair"] = "pair",
    window: Window = "uniform",
) -> Tensor:
    """Structural similarity as COSE measures it (Daroya et al. 2023; released code, `get_similarity`).

    scikit-image's `structural_similarity` with a uniform 5x5 window, sample covariance, K1 = 0.01 and K2 =
    0.03. Without a mask, the local values are averaged over the frame minus a border of 2 pixels; with a
    mask, over the mask eroded by 5x5, where the outside of the frame counts as valid.

    Args:
        a: `(N, H, W)` floating point. May be one map expanded.
        b: `(N, H, W)` like `a`.
        valid: `(N, H, W)` bool masks for every pair; or a `Validity`, which says pair by pair whether there
            is a mask; or None for no masks.
        data_range: `pair`, the larger of the two maps' ranges over the whole frame, as in the released code;
            or a number, 2.0 for the published table.
        window: `uniform`, 5x5; or `gaussian`, 11x11 with a deviation of 1.5 pixels, as Adebayo et al. (2018) measure
            it in their notebooks. That one takes no masks and leaves a border of 5 pixels out.

    Returns:
        `(N,)` in [-1, 1]; NaN where the data range is 0, a map is not finite or no pixel is left to average.

    Raises:
        ValueError: If the maps do not match, are smaller than the window, the data range is not positive, or a mask
            meets a Gaussian window.
    """
    pixels, masked = validated(a, b, valid)
    side = _WINDOW if window == "uniform" else 2 * _RADIUS + 1
    if min(a.shape[1:]) < side:
        raise ValueError(f"maps must be at least {side}x{side} for SSIM, not {tuple(a.shape[1:])}")
    if pixels is not None and window == "gaussian":
        raise ValueError("SSIM with a Gaussian window takes no masks")
    if data_range == "pair":
        span = torch.maximum(_span(a), _span(b)).view(-1, 1, 1)
    elif data_range > 0:
        span = torch.full((len(a), 1, 1), float(data_range), dtype=a.dtype, device=a.device)
    else:
        raise ValueError(f'data_range must be positive or "pair", not {data_range}')
    if window == "gaussian":
        return _gaussian_ssim(a / span, b / span)
    # One map beside many is summed up once. Elsewhere than on a CPU it would cost a wait for the device to know.
    is_one = a.device.type == "cpu" and len(a) > 1 and a.stride(0) == 0 and bool((span == span[0]).all())
    found = []
    for part in pieces(a):
        first = slice(0, 1) if is_one else part
        local = _local_ssim(a[first] / span[first], b[part] / span[part])
        found.append(_mean_ssim(local, pixels, masked, part))
    return torch.cat(found)


def _mean_ssim(local: Tensor, pixels: Tensor | None, masked: Tensor, part: slice) -> Tensor:
    """`(n,)` of a part's pairs; masks are of all pairs."""
    inner = local[:, _BORDER:-_BORDER, _BORDER:-_BORDER]
    unmasked = total(inner) / (inner.shape[1] * inner.shape[2])
    if pixels is None:
        return unmasked
    kept = _erode(pixels[part])
    # where, not a product: a local value outside the mask may be NaN.
    return torch.where(masked[part], total(torch.where(kept, local, 0.0)) / kept.sum(dim=(1, 2)), unmasked)


def _span(maps: Tensor) -> Tensor:
    """Largest minus smallest value of each map, `(N,)`."""
    return maps.amax(dim=(1, 2)) - maps.amin(dim=(1, 2))


def _local_ssim(x: Tensor, y: Tensor) -> Tensor:
    """SSIM in the window around each pixel, `(N, H, W)`, of maps in units of their data range.

    Windows reach over the edge into the mirrored map (d c b a | a b c d), as scipy's `reflect` does.
    Maps are divided by the data range first, which leaves SSIM as it is and keeps the products of tiny maps
    (raw gradients) from underflowing in single precision.

    Args:
        x: `(N, H, W)`, or `(1, H, W)` for all, which gives the same to the last bit.
        y: `(N, H, W)`.
    """
    x, y = _mirror(x), _mirror(y)
    n = _WINDOW**2
    c1, c2 = _K1**2 * n * n, _K2**2 * n * (n - 1)
    sum_x, sum_y = _window_sum(x), _window_sum(y)
    # In place from here on: on a CPU a new plane costs more than what is done to it.
    product, squares = sum_x * sum_y, sum_y.square_().add_(sum_x.square_())
    # n^2 times the means' products and n (n - 1) times the sample variances: with one division at the end,
    # maps that are flat in a window come out as exactly flat, which single precision would otherwise miss by
    # a part of c2.
    covariance = _window_sum(x * y).mul_(n).sub_(product)
    variances = _window_sum(y.square_()).add_(_window_sum(x.square_())).mul_(n).sub_(squares)
    luminance = product.mul_(2).add_(c1).div_(squares.add_(c1))
    return luminance.mul_(covariance.mul_(2).add_(c2).div_(variances.add_(c2)))


def _gaussian_ssim(x: Tensor, y: Tensor) -> Tensor:
    """Mean SSIM of maps in units of their data range under a Gaussian window, but for a border: `(N,)`."""
    place = torch.arange(-_RADIUS, _RADIUS + 1, device=x.device, dtype=x.dtype)
    bell = torch.exp(-0.5 * (place / _SIGMA) ** 2)
    bell = bell / bell.sum()
    # Variances are differences of squares: taken about each map's own mean they keep their digits.
    centre_x, centre_y = (total(m).view(-1, 1, 1) / (m.shape[1] * m.shape[2]) for m in (x, y))
    x, y = x - centre_x, y - centre_y
    planes = torch.stack((x, y, x * x, y * y, x * y), dim=1)
    # Only windows that lie wholly inside are averaged, so nothing needs to be mirrored.
    flat = planes.view(-1, 1, *planes.shape[2:])
    means = F.conv2d(F.conv2d(flat, bell.view(1, 1, -1, 1)), bell.view(1, 1, 1, -1))
    means = means.view(len(x), 5, *means.shape[2:])
    mean_x, mean_y, xx, yy, xy = means.unbind(1)
    number = (2 * _RADIUS + 1) ** 2
    sample = number / (number - 1)
    c1, c2 = _K1**2, _K2**2
    variances = xx + yy - mean_x * mean_x - mean_y * mean_y
    structure = (2 * sample * (xy - mean_x * mean_y) + c2) / (sample * variances + c2)
    mean_x, mean_y = mean_x + centre_x, mean_y + centre_y
    local = (2 * mean_x * mean_y + c1) / (mean_x * mean_x + mean_y * mean_y + c1) * structure
    return total(local) / (local.shape[1] * local.shape[2])


def _mirror(maps: Tensor) -> Tensor:
    """Two more pixels on each side, mirrored with the edge repeated."""
    wide = torch.cat((maps[..., :_BORDER].flip(-1), maps, maps[..., -_BORDER:].flip(-1)), dim=-1)
    return torch.cat((wide[:, :_BORDER].flip(1), wide, wide[:, -_BORDER:].flip(1)), dim=1)


def _window_sum(padded: Tensor) -> Tensor:
    """Sum of every 5x5 window inside, `(N, H+4, W+4)` -> `(N, H, W)`."""
    return _slide(_slide(padded, 1), 2)


def _slide(values: Tensor, dim: int, joined: Callable[[Tensor, Tensor], Tensor] = torch.add) -> Tensor:
    """Sums of five neighbours along `dim`, or what else joins two, in three operations."""
    count = values.shape[dim]
    pairs = joined(values.narrow(dim, 0, count - 1), values.narrow(dim, 1, count - 1))
    fours = joined(pairs.narrow(dim, 0, count - 3), pairs.narrow(dim, 2, count - 3))
    return joined(fours.narrow(dim, 0, count - 4), values.narrow(dim, 4, count - 4))


def _erode(pixels: Tensor) -> Tensor:
    """Masks eroded by 5x5; the outside of the frame counts as True."""
    # As bytes: unions of bools go one by one on a CPU.
    holes = F.pad((~pixels).view(torch.uint8), (_BORDER,) * 4)
    return ~_slide(_slide(holes, 1, torch.maximum), 2, torch.maximum).view(torch.bool)
