"""The loops behind `kernels`, compiled by Numba when first called and kept on disk for the next process.

Arrays are float32 `(N, P, C)`: images, places, channels. Each loop over channels has vector instructions only as long
as nothing in it depends on an order: sums may be made in any (`reassoc`), and the largest of some sizes is found
among their bits, which as integers have the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_ZERO: Any = np.float32(0)
_ONE: Any = np.float32(1)
_INFINITE: Any = np.float32(np.inf)
_NONE_YET: Any = np.int32(np.float32(np.inf).view(np.int32))


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    # Nothing is assumed of infinities and of what is no number: they come out as they would of PyTorch's operators.
    options: Any = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "nsz", "contract"}}
    try:
        compiled: Callable[..., Any] = numba.njit(cache=True, **options)(function)
    except RuntimeError:
        # There is nowhere to keep it: neither here nor in a home may anything be written.
        compiled = numba.njit(**options)(function)
    return compiled


@_compile
def terms(gradient: Array, constant: Array, sizes: Array, scores: Array, ends: Array) -> None:
    """See `kernels.terms`; `constant` `(1 or N, 1 or P, C)`, `sizes` `(N, P)`, `scores` `(N,)`, `ends` `(2, N)`."""
    images, places, channels = gradient.shape
    for n in range(images):
        score, low, high = 0.0, _NONE_YET, np.int32(0)
        for p in range(places):
            given, held = gradient[n, p], constant[n % len(constant), p % constant.shape[1]]
            total, size = _ZERO, _ZERO
            for c in range(channels):
                term = given[c] * held[c]
                total += term
                term = abs(term)
                size += term
                bits = np.float32(term).view(np.int32)
                low, high = min(low, bits), max(high, bits)
            sizes[n, p] = size
            score += total
        scores[n] = score
        ends[0, n], ends[1, n] = low, high


@_compile
def draw(sizes: Array, ends: Array, channels: int, drawn: Array) -> None:
    """See `kernels.draw`; `(N, P)`, `(2, N)` and `(N, P)`."""
    for n in range(len(sizes)):
        low, high = ends[0, n], ends[1, n]
        offset, share = low * np.float32(channels), _ONE / (high - low) if high > low else _ZERO
        for p in range(sizes.shape[1]):
            drawn[n, p] += (sizes[n, p] - offset) * share


@_compile
def clip_terms(
    gradient: Array,
    clipped: Array,
    cap: np.float32,
    bias: Array,
    passed: Array,
    sizes: Array,
    scores: Array,
    ends: Array,
) -> None:
    """See `kernels.clip_terms`; those of the cap first: `sizes` `(2, N, P)`, `scores` `(2, N)`, `ends` `(2, 2, N)`."""
    images, places, channels = gradient.shape
    for n in range(images):
        score, low, high = 0.0, _NONE_YET, np.int32(0)
        cap_score, cap_low, cap_high = 0.0, _NONE_YET, np.int32(0)
        for p in range(places):
            given, result, left = gradient[n, p], clipped[n, p], passed[n, p]
            total, size = _ZERO, _ZERO
            cap_total, cap_size = _ZERO, _ZERO
            for c in range(channels):
                # Read once, into names: else the compiler asks memory again.
                here, at = given[c], result[c]
                held = here if at >= cap else _ZERO
                let = _ZERO if at >= cap else here
                let = _ZERO if at <= _ZERO else let
                left[c] = let
                cap_total += held
                held = abs(held)
                cap_size += held
                bits = np.float32(held).view(np.int32)
                cap_low, cap_high = min(cap_low, bits), max(cap_high, bits)
                term = let * bias[c]
                total += term
                term = abs(term)
                size += term
                bits = np.float32(term).view(np.int32)
                low, high = min(low, bits), max(high, bits)
            sizes[0, n, p], sizes[1, n, p] = cap_size, size
            score += total
            cap_score += cap_total
        scores[0, n], scores[1, n] = cap_score, score
        ends[0, 0, n], ends[0, 1, n] = cap_low, cap_high
        ends[1, 0, n], ends[1, 1, n] = low, high


@_compile
def clip_slopes(z: Array, low: np.float32, high: np.float32, z0: Array, slope: Array) -> None:
    """See `kernels.clip_slopes`; `z0` `(1 or N, P, C)`."""
    images, places, channels = z.shape
    for n in range(images):
        m = n % len(z0)
        for p in range(places):
            given, before, found = z[n, p], z0[m, p], slope[n, p]
            for c in range(channels):
                here, start = given[c], before[c]
                # What is no number stays none: it is on neither side.
                above, above0 = low if here < low else here, low if start < low else start
                made, made0 = high if above > high else above, high if above0 > high else above0
                quotient = (made - made0) / (here - start)
                # Of no difference at all the derivative.
                still = _ONE if start > low else _ZERO
                still = still if start < high else _ZERO
                found[c] = still if here == start else quotient
                given[c] = made


@_compile
def slopes(z: Array, out: Array, z0: Array, out0: Array, near: np.float32, slope: Array, counts: Array) -> None:
    """See `kernels.slopes`; `z0` `(1 or N, P, C)`, `counts` `(N, P)` how many are near."""
    images, rows, length = z.shape
    for n in range(images):
        m = n % len(z0)
        for p in range(rows):
            given, before, made, made0, found = z[n, p], z0[m, p], out[n, p], out0[m, p], slope[n, p]
            count = 0
            for c in range(length):
                run = given[c] - before[c]
                found[c] = (made[c] - made0[c]) / run
                count += abs(run) < near
            counts[n, p] = count


@_compile
def near_ones(z: Array, z0: Array, near: np.float32, counts: Array, places: Array, half_ways: Array) -> None:
    """Flat places `(K,)` in `z` of what `slopes` counted, and the means of both ends there."""
    images, rows, length = z.shape
    found = 0
    for n in range(images):
        m = n % len(z0)
        for p in range(rows):
            if counts[n, p]:
                given, before = z[n, p], z0[m, p]
                for c in range(length):
                    if abs(given[c] - before[c]) < near:
                        places[found] = (n * rows + p) * length + c
                        half_ways[found] = (given[c] + before[c]) / 2
                        found += 1


@_compile
def _mean_and_deviation(row: Array, share: np.float32, eps: np.float32) -> tuple[np.float32, np.float32]:
    total = _ZERO
    for c in range(len(row)):
        total += row[c]
    mean = total * share
    squares = _ZERO
    for c in range(len(row)):
        centred = row[c] - mean
        squares += centred * centred
    return mean, np.float32(np.sqrt(squares * share + eps))


@_compile
def norms(z: Array, z0: Array, eps: np.float32, out: Array, both: Array, out0: Array, scales: Array) -> None:
    """See `kernels.norms`; `z0` and `out0` `(1 or N, P, C)`, `scales` `(N, P)`."""
    images, rows, length = z.shape
    baselines = len(z0)
    of_row = np.float32(1 / length)
    means0, deviations0 = np.empty((baselines, rows), np.float32), np.empty((baselines, rows), np.float32)
    for m in range(baselines):
        for p in range(rows):
            mean, deviation = _mean_and_deviation(z0[m, p], of_row, eps)
            means0[m, p], deviations0[m, p] = mean, deviation
            before, made0 = z0[m, p], out0[m, p]
            for c in range(length):
                made0[c] = (before[c] - mean) / deviation
    for n in range(images):
        m = n % baselines
        for p in range(rows):
            mean, deviation = _mean_and_deviation(z[n, p], of_row, eps)
            mean0, deviation0 = means0[m, p], deviations0[m, p]
            scale = _ONE / deviation
            share = -of_row * scale / (deviation + deviation0)
            given, before, made, held = z[n, p], z0[m, p], out[n, p], both[n, p]
            for c in range(length):
                centred = given[c] - mean
                made[c] = centred * scale
                held[c] = (centred + (before[c] - mean0)) * share
            scales[n, p] = scale


@_compile
def norms_back(gradient: Array, both: Array, out0: Array, scales: Array, back: Array) -> None:
    """See `kernels.norms_back`; shapes as in `norms`."""
    images, rows, length = gradient.shape
    for n in range(images):
        m = n % len(out0)
        for p in range(rows):
            given, held, made0, left = gradient[n, p], both[n, p], out0[m, p], back[n, p]
            total, shares, handed = _ZERO, _ZERO, _ZERO
            for c in range(length):
                here = given[c]
                total += here
                shares += held[c]
                handed += here * made0[c]
            mean = (scales[n, p] * total + handed * shares) / np.float32(length)
            for c in range(length):
                left[c] = given[c] * scales[n, p] + held[c] * handed - mean


@_compile
def _of_rank(order: Array, coarse: Array, fine: Array, rank: int) -> np.int32:
    """The number of `order` that has a rank, from 0; `coarse` counts numbers by their upper bits, `fine` is room."""
    upper, before = 0, 0
    while before + coarse[upper] <= rank:
        before += coarse[upper]
        upper += 1
    fine[:] = 0
    for f in range(len(order)):
        if order[f] >> 15 == upper:
            fine[order[f] & 0x7FFF] += 1
    lower = 0
    while before + fine[lower] <= rank:
        before += fine[lower]
        lower += 1
    return np.int32((upper << 15) + lower)


@_compile
def advance(
    share: Array,
    length: Array,
    totals: Array,
    gradient: Array,
    low: np.float32,
    high: np.float32,
    middle: np.float32,
    arrived: np.float32,
    group: int,
    grown: Array,
) -> None:
    """See `kernels.advance`; `(N, F)`, and `totals` `(N,)`."""
    images, features = share.shape
    way, order = np.empty(features, np.float32), np.empty(features, np.int32)
    coarse, fine = np.empty(2**16, np.int64), np.empty(2**15, np.int64)
    for n in range(images):
        at, path, slope, grew = share[n], length[n], gradient[n], grown[n]
        left = _ZERO
        for f in range(features):
            here = at[f] if at[f] > low else low
            room = high - here
            room = room if room > _ZERO else _ZERO
            way[f] = room * path[f]
            left += way[f]
            # Features at the top of the band, and those without a way to go, are in no group.
            size = np.float32(abs(slope[f]))
            size = _INFINITE if room <= arrived or path[f] == _ZERO else size
            order[f] = np.float32(size).view(np.int32)
        left = max(left - (high - middle) * totals[n], _ZERO)
        coarse[:] = 0
        for f in range(features):
            coarse[order[f] >> 15] += 1
        whole, partly, part, gone, start = np.int32(-1), np.int32(-1), _ZERO, _ZERO, 0
        while start < features and partly < 0:
            threshold = _of_rank(order, coarse, fine, min(start + group, features) - 1)
            # Equal gradients go together, so a group can be larger than asked for and the next one starts later.
            start, reach = 0, _ZERO
            for f in range(features):
                start += order[f] <= threshold
                reach += way[f] if order[f] <= threshold else _ZERO
            if reach <= left:
                whole = threshold
            else:
                partly, part = threshold, (left - gone) / (reach - gone)
            gone = reach
        for f in range(features):
            here = at[f] if at[f] > low else low
            room = high - here
            room = room if room > _ZERO else _ZERO
            move = part if order[f] <= partly else _ZERO
            move = _ONE if order[f] <= whole else move
            here += room * move
            grew[f] = here - at[f]
            at[f] = here


@_compile
def clip_shares(value: Array, whole: Array, cap: np.float32, stabiliser: np.float32) -> None:
    """See `kernels.clip_shares`."""
    images, places, channels = value.shape
    for n in range(images):
        for p in range(places):
            made, found = value[n, p], whole[n, p]
            for c in range(channels):
                here, total = made[c], found[c] + stabiliser
                clipped = _ZERO if here < _ZERO else here
                clipped = cap if clipped > cap else clipped
                made[c] = clipped
                found[c] = clipped / total
