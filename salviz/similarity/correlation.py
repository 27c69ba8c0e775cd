"""Correlations of map pairs: Spearman, Pearson, cosine."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from salviz.similarity.pairs import total, validated
from salviz.transforms.alignment import Validity


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
    return spearman_with(a, valid=valid)(b)


def spearman_with(a: Tensor, *, valid: Tensor | Validity | None = None) -> Callable[[Tensor], Tensor]:
    """`spearman` of the same maps with one batch after the other: they are ranked once.

    Args:
        a: `(N, H, W)` floating point.
        valid: As for `spearman`.

    Returns:
        What takes the other maps and returns `(N,)`.
    """
    pixels, _ = validated(a, a, valid)
    own = _ranks(a, pixels)

    def compare(b: Tensor) -> Tensor:
        validated(a, b, valid)
        return _correlation(own, _ranks(b, pixels))

    return compare


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
    pixels, _ = validated(a, b, valid)
    kept = torch.ones_like(a, dtype=torch.bool) if pixels is None else pixels
    return _correlation(_deviations(a, kept), _deviations(b, kept))


def cosine(a: Tensor, b: Tensor, *, valid: Tensor | Validity | None = None) -> Tensor:
    """Cosine of the angle between map pairs over their valid pixels: Pearson's correlation without centring.

    Args:
        a: `(N, H, W)` floating point.
        b: `(N, H, W)` like `a`.
        valid: As for `ssim`, but the masks are not eroded.

    Returns:
        `(N,)` in [-1, 1]; NaN where a map is 0 on the valid pixels or not finite.

    Raises:
        ValueError: If the maps do not match.
    """
    pixels, _ = validated(a, b, valid)
    x, y = (m if pixels is None else torch.where(pixels, m, 0.0) for m in (a, b))
    # In units of the largest value: squares of raw gradients would underflow.
    return _correlation(*(m / m.abs().amax(dim=(1, 2), keepdim=True) for m in (x, y)))


def _ranks(maps: Tensor, kept: Tensor | None) -> Tensor:
    """Average ranks among the kept pixels, centred and divided by their number: `(N, H, W)` in [-0.5, 0.5].

    One sort of each whole map serves every mask: a rank is a count of kept pixels along that order. 0 for
    pixels that are not kept, NaN for kept ones that are NaN; exactly 0 for a constant map.
    """
    count, height, width = maps.shape
    # An expanded map has stride 0: the same values for every pair, so one sort.
    once = maps[:1] if count > 1 and maps.stride(0) == 0 else maps
    values, order = _sorted(once.flatten(1))
    step = values[:, 1:] != values[:, :-1]
    edge = torch.ones_like(step[:, :1])
    # Positions where a run of equal values starts and ends, carried to every member of the run.
    place = torch.arange(values.shape[1], device=maps.device, dtype=torch.int32)
    first = torch.where(torch.cat((edge, step), 1), place, 0).cummax(dim=1).values
    last_place = torch.where(torch.cat((step, edge), 1), place, values.shape[1] - 1)
    last = last_place.flip(1).cummin(dim=1).values.flip(1)
    # The average rank is (below + 1 + up_to) / 2 and their mean (total + 1) / 2: whole numbers until the
    # division.
    if kept is None:
        total = values.shape[1]
        centred = first.add_(last).add_(1 - total).to(maps.dtype).div_(2 * total)
        ranks = torch.empty_like(centred).scatter_(1, order, centred).view(-1, height, width).expand(count, -1, -1)
        return torch.where(torch.isnan(maps), torch.nan, ranks)
    order = order.expand(count, -1)
    running = kept.flatten(1).gather(1, order).cumsum(dim=1, dtype=torch.int32)
    first, last = first.long(), last.long()
    up_to = running.gather(1, last.expand(count, -1))
    below = running.gather(1, (first - 1).clamp(min=0).expand(count, -1)).masked_fill(first == 0, 0)
    many = running[:, -1:]
    centred = (below + up_to - many).to(maps.dtype) / (2 * many).to(maps.dtype)
    ranks = torch.empty_like(centred).scatter_(1, order, centred).view(count, height, width)
    return torch.where(kept, torch.where(torch.isnan(maps), torch.nan, ranks), 0.0)


def _sorted(values: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in ascending order, and where each value was; NaN stands at an end.

    On a CPU numpy sorts whole numbers many times faster than torch sorts pairs, so a value and its place are packed
    into one: the bits of a float of single precision, turned where it is negative, are ordered as the floats are.
    """
    if values.device.type != "cpu" or values.dtype != torch.float32 or values.shape[1] >= 2**31:
        ascending, order = values.sort(dim=1)
        return ascending, order
    bits = values.contiguous().view(torch.int32)
    # In place where it can be: memory that is new to the process costs more than what is done in it.
    packed = (bits >> 31).bitwise_and_(0x7FFFFFFF).bitwise_xor_(bits).long()
    packed.bitwise_left_shift_(32).bitwise_or_(torch.arange(values.shape[1]))
    packed.numpy().sort(axis=1)
    order = packed.bitwise_and_(0xFFFFFFFF)
    return values.gather(1, order), order


def _deviations(maps: Tensor, kept: Tensor) -> Tensor:
    """Deviations from the kept pixels' mean, at most 1 and 0 elsewhere; NaN for constant maps."""
    number = kept.sum(dim=(1, 2), keepdim=True)
    mean = total(torch.where(kept, maps, 0.0)).view(-1, 1, 1) / number
    deviations = torch.where(kept, maps - mean, 0.0)
    # Compared as they are, because the deviations of a constant map need not round to 0.
    high = torch.where(kept, maps, -torch.inf).amax(dim=(1, 2), keepdim=True)
    low = torch.where(kept, maps, torch.inf).amin(dim=(1, 2), keepdim=True)
    largest = deviations.abs().amax(dim=(1, 2), keepdim=True)
    return torch.where(high > low, deviations / largest, torch.nan)


def _correlation(x: Tensor, y: Tensor) -> Tensor:
    """Correlation of centred values, `(N,)`; NaN where either is all 0."""
    product, xx, yy = (total(p * q) for p, q in ((x, y), (x, x), (y, y)))
    return (product / (xx.sqrt() * yy.sqrt())).clamp(-1, 1)
