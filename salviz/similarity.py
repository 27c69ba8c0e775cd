"""How alike two saliency maps are: SSIM, Spearman's and Pearson's correlation, batched and masked.

All functions take `(N, H, W)` pairs and return `(N,)` on the same device in the same dtype, without a host
round trip. What is undefined - a constant map, no valid pixel, no range - is NaN.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from salviz.transforms.alignment import Validity

_WINDOW = 5
_BORDER = _WINDOW // 2
_K1, _K2 = 0.01, 0.03


def ssim(
    a: Tensor,
    b: Tensor,
    *,
    valid: Tensor | Validity | None = None,
    data_range: float | Literal["pair"] = "pair",
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

    Returns:
        `(N,)` in [-1, 1]; NaN where the data range is 0, a map is not finite or no pixel is left to average.

    Raises:
        ValueError: If the maps do not match, are smaller than 5x5, or the data range is not positive.
    """
    pixels, masked = _validated(a, b, valid)
    if min(a.shape[1:]) < _WINDOW:
        raise ValueError(f"maps must be at least {_WINDOW}x{_WINDOW} for SSIM, not {tuple(a.shape[1:])}")
    if data_range == "pair":
        span = torch.maximum(_span(a), _span(b)).view(-1, 1, 1)
    elif data_range > 0:
        span = torch.full((1, 1, 1), float(data_range), dtype=a.dtype, device=a.device)
    else:
        raise ValueError(f'data_range must be positive or "pair", not {data_range}')
    local = _local_ssim(a, b, span)
    inner = local[:, _BORDER:-_BORDER, _BORDER:-_BORDER]
    unmasked = _total(inner) / (inner.shape[1] * inner.shape[2])
    if pixels is None:
        return unmasked
    kept = _erode(pixels)
    # where, not a product: a local value outside the mask may be NaN.
    return torch.where(masked, _total(torch.where(kept, local, 0.0)) / kept.sum(dim=(1, 2)), unmasked)


def spearman(a: Tensor, b: Tensor, *, valid: Tensor | Validity | None = None) -> Tensor:
    """Spearman's rank correlation of map pairs over their valid pixels; ties get their average rank.

    Args:
        a: `(N, H, W)` floating point. One map expanded is sorted once.
        b: `(N, H, W)` like `a`.
        valid: As for `ssim`, but the masks are not eroded.

    Returns:
        `(N,)` in [-1, 1]; NaN where a map is constant or anywhere NaN on the valid pixels, or has fewer than
        two of them.

    Raises:
        ValueError: If the maps do not match.
    """
    pixels, _ = _validated(a, b, valid)
    kept = torch.ones_like(a, dtype=torch.bool) if pixels is None else pixels
    # Ranks among the kept pixels are centred already, and exactly 0 for a constant map.
    return _correlation(_ranks(a, kept), _ranks(b, kept))


def pearson(a: Tensor, b: Tensor, *, valid: Tensor | Validity | None = None) -> Tensor:
    """Pearson's correlation of map pairs over their valid pixels.

    Args:
        a: `(N, H, W)` floating point.
        b: `(N, H, W)` like `a`.
        valid: As for `ssim`, but the masks are not eroded.

    Returns:
        `(N,)` in [-1, 1]; NaN where a map is constant on the valid pixels, not finite, or has fewer than two
        of them.

    Raises:
        ValueError: If the maps do not match.
    """
    pixels, _ = _validated(a, b, valid)
    kept = torch.ones_like(a, dtype=torch.bool) if pixels is None else pixels
    return _correlation(_deviations(a, kept), _deviations(b, kept))


def _validated(a: Tensor, b: Tensor, valid: Tensor | Validity | None) -> tuple[Tensor | None, Tensor]:
    """The masks, None for none at all, and `(N,)` bool: which pairs have one."""
    if a.ndim != 3 or a.shape != b.shape:
        raise ValueError(f"maps must be two (N, H, W) batches alike, not {tuple(a.shape)} and {tuple(b.shape)}")
    if a.dtype != b.dtype or not a.is_floating_point():
        raise ValueError(f"maps must share a floating point dtype, not {a.dtype} and {b.dtype}")
    if isinstance(valid, Validity):
        pixels: Tensor | None = valid.pixels
        masked = valid.masked
    else:
        pixels = valid
        masked = torch.ones(len(a), dtype=torch.bool, device=a.device)
    if pixels is not None and (pixels.shape != a.shape or pixels.dtype != torch.bool):
        raise ValueError(f"valid must be {tuple(a.shape)} bool, not {tuple(pixels.shape)} {pixels.dtype}")
    return pixels, masked


def _total(values: Tensor) -> Tensor:
    """Sum of each `(H, W)` plane, row by row first.

    One sum over fifty thousand numbers of single precision can miss its sixth digit; sums of sums do not.
    """
    return values.sum(dim=2).sum(dim=1)


def _span(maps: Tensor) -> Tensor:
    """Largest minus smallest value of each map, `(N,)`."""
    return maps.amax(dim=(1, 2)) - maps.amin(dim=(1, 2))


def _local_ssim(a: Tensor, b: Tensor, span: Tensor) -> Tensor:
    """SSIM in the window around each pixel, `(N, H, W)`.

    Windows reach over the edge into the mirrored map (d c b a | a b c d), as scipy's `reflect` does.
    Maps are divided by the data range first, which leaves SSIM as it is and keeps the products of tiny maps
    (raw gradients) from underflowing in single precision.
    """
    x, y = _mirror(a / span), _mirror(b / span)
    n = _WINDOW**2
    sum_x, sum_y = _window_sum(x), _window_sum(y)
    product, squares = sum_x * sum_y, sum_x * sum_x + sum_y * sum_y
    # n^2 times the means' products and n (n - 1) times the sample variances: with one division at the end,
    # maps that are flat in a window come out as exactly flat, which single precision would otherwise miss by
    # a part of c2.
    variances = n * _window_sum(x * x + y * y) - squares
    covariance = n * _window_sum(x * y) - product
    c1, c2 = _K1**2 * n * n, _K2**2 * n * (n - 1)
    luminance = (2 * product + c1) / (squares + c1)
    return luminance * ((2 * covariance + c2) / (variances + c2))


def _mirror(maps: Tensor) -> Tensor:
    """Two more pixels on each side, mirrored with the edge repeated."""
    wide = torch.cat((maps[..., :_BORDER].flip(-1), maps, maps[..., -_BORDER:].flip(-1)), dim=-1)
    return torch.cat((wide[:, :_BORDER].flip(1), wide, wide[:, -_BORDER:].flip(1)), dim=1)


def _window_sum(padded: Tensor) -> Tensor:
    """Sum of every 5x5 window inside, `(N, H+4, W+4)` -> `(N, H, W)`."""
    return _slide(_slide(padded, 1), 2)


def _slide(values: Tensor, dim: int) -> Tensor:
    """Sums (floating point) or unions (bool) of five neighbours along `dim`, in three operations."""
    count = values.shape[dim]
    pairs = values.narrow(dim, 0, count - 1) + values.narrow(dim, 1, count - 1)
    fours = pairs.narrow(dim, 0, count - 3) + pairs.narrow(dim, 2, count - 3)
    return fours.narrow(dim, 0, count - 4) + values.narrow(dim, 4, count - 4)


def _erode(pixels: Tensor) -> Tensor:
    """Masks eroded by 5x5; the outside of the frame counts as True."""
    holes = torch.nn.functional.pad(~pixels, (_BORDER,) * 4, value=False)
    return ~_slide(_slide(holes, 1), 2)


def _ranks(maps: Tensor, kept: Tensor) -> Tensor:
    """Average ranks among the kept pixels, centred and divided by their number: `(N, H, W)` in [-0.5, 0.5].

    One sort of each whole map serves every mask: a rank is a count of kept pixels along that order. 0 for
    pixels that are not kept, NaN for kept ones that are NaN.
    """
    count, height, width = maps.shape
    # An expanded map has stride 0: the same values for every pair, so one sort.
    once = maps[:1] if count > 1 and maps.stride(0) == 0 else maps
    values, order = once.flatten(1).sort(dim=1)
    order = order.expand(count, -1)
    running = kept.flatten(1).gather(1, order).cumsum(dim=1, dtype=torch.int32)
    step = values[:, 1:] != values[:, :-1]
    edge = torch.ones_like(step[:, :1])
    # Positions where a run of equal values starts and ends, carried to every member of the run.
    place = torch.arange(values.shape[1], device=maps.device)
    first = torch.where(torch.cat((edge, step), 1), place, 0).cummax(dim=1).values
    last_place = torch.where(torch.cat((step, edge), 1), place, values.shape[1] - 1)
    last = last_place.flip(1).cummin(dim=1).values.flip(1)
    up_to = running.gather(1, last.expand(count, -1))
    below = running.gather(1, (first - 1).clamp(min=0).expand(count, -1)).masked_fill(first == 0, 0)
    total = running[:, -1:]
    # The average rank is (below + 1 + up_to) / 2 and their mean (total + 1) / 2: whole numbers until the
    # division.
    centred = (below + up_to - total).to(maps.dtype) / (2 * total).to(maps.dtype)
    ranks = torch.empty_like(centred).scatter_(1, order, centred).view(count, height, width)
    return torch.where(kept, torch.where(torch.isnan(maps), torch.nan, ranks), 0.0)


def _deviations(maps: Tensor, kept: Tensor) -> Tensor:
    """Deviations from the kept pixels' mean, at most 1 and 0 elsewhere; NaN for constant maps."""
    number = kept.sum(dim=(1, 2), keepdim=True)
    mean = _total(torch.where(kept, maps, 0.0)).view(-1, 1, 1) / number
    deviations = torch.where(kept, maps - mean, 0.0)
    # Compared as they are, because the deviations of a constant map need not round to 0.
    high = torch.where(kept, maps, -torch.inf).amax(dim=(1, 2), keepdim=True)
    low = torch.where(kept, maps, torch.inf).amin(dim=(1, 2), keepdim=True)
    largest = deviations.abs().amax(dim=(1, 2), keepdim=True)
    return torch.where(high > low, deviations / largest, torch.nan)


def _correlation(x: Tensor, y: Tensor) -> Tensor:
    """Correlation of centred values, `(N,)`; NaN where either is all 0."""
    product, xx, yy = (_total(p * q) for p, q in ((x, y), (x, x), (y, y)))
    return (product / (xx.sqrt() * yy.sqrt())).clamp(-1, 1)
