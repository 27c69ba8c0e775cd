"""The loops behind `kernels`, compiled by Numba when first called and kept on disk for the next process.

Arrays are float32 `(N, P, C)`, images, places and channels, or `(R, C)` where places of all images are alike. Each
loop over channels has vector instructions only as long as nothing in it depends on an order: sums may be made in any
(`reassoc`), and the largest of some sizes is found among their bits, which as integers have the same order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from salviz.kernels.loops import (
    F1,
    F2,
    F3,
    I2,
    NONE_YET,
    ONE,
    REAL,
    WHOLE,
    ZERO,
    Array,
    inner,
    loop,
    number,
    part,
)  # fmt: skip

_INFINITE: Any = np.float32(np.inf)


@inner
def _rescale(sizes: Array, low_bits: np.int32, high_bits: np.int32, channels: int) -> None:
    """Change sums of sizes, so that each size lies between 0 and 1; or is 0, where all are alike."""
    low, high = np.int32(low_bits).view(np.float32), np.int32(high_bits).view(np.float32)
    offset, share = low * np.float32(channels), ONE / (high - low) if high > low else ZERO
    for p in range(len(sizes)):
        rescaled = (sizes[p] - offset) * share
        # Rounding of what is nearly alike.
        sizes[p] = ZERO if rescaled < ZERO else rescaled


@loop(F2, F2, WHOLE, WHOLE, WHOLE, F1, F2)
def terms(call: Any) -> None:
    """See `kernels.terms`; `gradient` `(N, P C)`, `scores` `(N,)`, `drawn` `(N, P)`.

    As many places as `step` has entries are looked at in one. All of them are alike to a `constant` `(1, step)` that
    `is_same`, else it is `(N, P C)`.
    """
    images, gradient, constant, is_same, step, channels, scores, drawn = call[0]
    first, last = part(images)
    for n in range(first, last):
        score, low, high = 0.0, NONE_YET, np.int32(0)
        for start in range(0, gradient.shape[1], step):
            given = gradient[n, start : start + step]
            held = constant[0, : len(given)] if is_same else constant[n, start : start + step]
            # What does not ask which channel it is goes over places and channels in one, many at a time.
            total = ZERO
            for f in range(len(given)):
                term = given[f] * held[f]
                total += term
                bits = np.float32(abs(term)).view(np.int32)
                low, high = min(low, bits), max(high, bits)
            score += total
            place = start // channels
            for f in range(0, len(given), channels):
                size, here, of_here = ZERO, given[f : f + channels], held[f : f + channels]
                for c in range(channels):
                    size += abs(here[c] * of_here[c])
                drawn[n, place] = size
                place += 1
        scores[n] = score
        _rescale(drawn[n], low, high, channels)


@loop(F3, F3, REAL, F1, F3, F2, F3)
def clip_terms(call: Any) -> None:
    """See `kernels.clip_terms`; those of the cap first: `scores` `(2, N)`, `drawn` `(2, N, P)`."""
    images, gradient, clipped, bound, bias, passed, scores, drawn = call[0]
    first, last = part(images)
    cap = np.float32(bound)
    places, channels = gradient.shape[1:]
    for n in range(first, last):
        score, low, high = 0.0, NONE_YET, np.int32(0)
        cap_score, cap_low, cap_high = 0.0, NONE_YET, np.int32(0)
        for p in range(places):
            given, result, left = gradient[n, p], clipped[n, p], passed[n, p]
            total, size = ZERO, ZERO
            cap_total, cap_size = ZERO, ZERO
            for c in range(channels):
                # Read once, into names: else the compiler asks memory again.
                here, at = given[c], result[c]
                held = here if at >= cap else ZERO
                let = ZERO if at >= cap else here
                let = ZERO if at <= ZERO else let
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
            drawn[0, n, p], drawn[1, n, p] = cap_size, size
            score += total
            cap_score += cap_total
        scores[0, n], scores[1, n] = cap_score, score
        _rescale(drawn[0, n], cap_low, cap_high, channels)
        _rescale(drawn[1, n], low, high, channels)


@inner
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


@loop(F2, F2, F1, F2, REAL, REAL, REAL, REAL, WHOLE, F2, I2, I2, I2)
def advance(call: Any) -> None:
    """See `kernels.advance`; `(N, F)`, `totals` `(N,)`, and room for each thread: `F`, `2**16` and `2**15`."""
    (
        images, share, length, totals, gradient, low_, high_, middle, near, group, grown, orders, coarses, fines
    ) = call[0]  # fmt: skip
    first, last = part(images)
    features = share.shape[1]
    order, coarse, fine = orders[number()], coarses[number()], fines[number()]
    low, high, arrived = np.float32(low_), np.float32(high_), np.float32(near)
    for n in range(first, last):
        at, path, slope, grew = share[n], length[n], gradient[n], grown[n]
        # What it grew is written last, and is room until then.
        way = grew
        left = ZERO
        for f in range(features):
            here = at[f] if at[f] > low else low
            room = high - here
            room = room if room > ZERO else ZERO
            way[f] = room * path[f]
            left += way[f]
            # Features at the top of the band, and those without a way to go, are in no group.
            size = np.float32(abs(slope[f]))
            size = _INFINITE if room <= arrived or path[f] == ZERO else size
            order[f] = np.float32(size).view(np.int32)
        left = max(left - (high - np.float32(middle)) * totals[n], ZERO)
        coarse[:] = 0
        for f in range(features):
            coarse[order[f] >> 15] += 1
        whole, partly, share_, gone, start = np.int32(-1), np.int32(-1), ZERO, ZERO, 0
        while start < features and partly < 0:
            threshold = _of_rank(order, coarse, fine, min(start + group, features) - 1)
            # Equal gradients go together, so a group can be larger than asked for and the next one starts later.
            start, reach = 0, ZERO
            for f in range(features):
                start += order[f] <= threshold
                reach += way[f] if order[f] <= threshold else ZERO
            if reach <= left:
                whole = threshold
            else:
                partly, share_ = threshold, (left - gone) / (reach - gone)
            gone = reach
        for f in range(features):
            here = at[f] if at[f] > low else low
            room = high - here
            room = room if room > ZERO else ZERO
            move = share_ if order[f] <= partly else ZERO
            move = ONE if order[f] <= whole else move
            here += room * move
            grew[f] = here - at[f]
            at[f] = here


@loop(F2, F2, REAL, REAL)
def clip_shares(call: Any) -> None:
    """See `kernels.clip_shares`; `(R, C)`."""
    rows, value, whole, top, added = call[0]
    first, last = part(rows)
    cap, stabiliser = np.float32(top), np.float32(added)
    for r in range(first, last):
        made, found = value[r], whole[r]
        for c in range(value.shape[1]):
            here, total = made[c], found[c] + stabiliser
            clipped = ZERO if here < ZERO else here
            clipped = cap if clipped > cap else clipped
            made[c] = clipped
            found[c] = clipped / total


@loop(F2, F2)
def split(call: Any) -> None:
    """See `kernels.split`; `(R, C)` and `(R, 2 C)`."""
    rows, x, both = call[0]
    first, last = part(rows)
    length = x.shape[1]
    for r in range(first, last):
        given, over, under = x[r], both[r, :length], both[r, length:]
        for c in range(length):
            here = given[c]
            # What is no number is none in both.
            over[c] = ZERO if here < ZERO else here
            under[c] = ZERO if here > ZERO else here


@loop(F2, F2, F2)
def unite(call: Any) -> None:
    """See `kernels.unite`; `(R, 2 C)` and `(R, C)`."""
    rows, both, gradient, back = call[0]
    first, last = part(rows)
    length = back.shape[1]
    for r in range(first, last):
        held, of_over, of_under, made = both[r], gradient[r, :length], gradient[r, length:], back[r]
        for c in range(length):
            over, under = of_over[c], of_under[c]
            made[c] = under if held[c] <= ZERO else over


@loop(F1, F3, F2, F2)
def between(call: Any) -> None:
    """See `kernels.between`; `(P,)`, `(L, P, 3)`, and `(P, 3)`."""
    pixels, strength, levels, colours, steps = call[0]
    first, last = part(pixels)
    top = len(levels) - 1
    for p in range(first, last):
        place = strength[p] * np.float32(top)
        # Compared before it is cut: what is no number, or infinite, is no integer either.
        inside = place if place > ZERO else ZERO
        below = int(inside) if inside < np.float32(top) else top - 1
        share = place - np.float32(below)
        for c in range(3):
            held = levels[below, p, c]
            step = levels[below + 1, p, c] - held
            colours[p, c], steps[p, c] = held + step * share, step


@loop(F2, F1, F2, F2)
def add_sample(call: Any) -> None:
    """See `kernels.add_sample`; `(N, F)`, and `counts` `(N,)`."""
    images, sample, counts, means, squares = call[0]
    first, last = part(images)
    for n in range(first, last):
        given, mean, square, share = sample[n], means[n], squares[n], ONE / counts[n]
        for f in range(sample.shape[1]):
            here, before = given[f], mean[f]
            delta = here - before
            after = before + delta * share
            mean[f] = after
            square[f] += delta * (here - after)


@loop(F2, F1, F2, F2, F2, F2)
def add_sample_to_four(call: Any) -> None:
    """As `add_sample`, with the third power and the fourth."""
    images, sample, counts, means, squares, cubes, fourths = call[0]
    first, last = part(images)
    for n in range(first, last):
        given, mean, square, cube, fourth = sample[n], means[n], squares[n], cubes[n], fourths[n]
        count = counts[n]
        share, less = ONE / count, count - ONE
        of_fourth = count * count - np.float32(3) * count + np.float32(3)
        for f in range(sample.shape[1]):
            here, before, held, third = given[f], mean[f], square[f], cube[f]
            delta = here - before
            step = delta * share
            term = delta * step * less
            twice = step * step
            fourth[f] += term * twice * of_fourth + np.float32(6) * twice * held - np.float32(4) * step * third
            cube[f] = third + term * step * (count - np.float32(2)) - np.float32(3) * step * held
            # As `add_sample` does: the same samples have the same variance.
            after = before + delta * share
            square[f] = held + delta * (here - after)
            mean[f] = after


@loop(F2, F2, REAL, F1)
def dots(call: Any) -> None:
    """See `kernels.dots`; `(R, C)` and `(R,)`."""
    rows, a, b, scale, made = call[0]
    first, last = part(rows)
    for r in range(first, last):
        total = ZERO
        for c in range(a.shape[1]):
            total += a[r, c] * b[r, c]
        made[r] = total * np.float32(scale)
