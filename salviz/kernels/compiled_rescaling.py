"""The loops behind `kernels.rescaling`, as those of `compiled`.

Arrays are float32 `(R, C)`, the places of all images. A baseline may be one for all of them: then row `r` is compared
with its row `r % (R / N)`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from salviz.kernels.loops import F1, F2, L1, NONE_YET, ONE, REAL, ZERO, Array, inner, loop, part

_BLOCK = 2**13
"""Entries of a baseline that stay near while they are compared with those of each image in turn."""
_PIECE = 64
"""Channels among which a rare one is looked for at once."""


@inner
def _rows_near(length: int) -> int:
    return max(1, _BLOCK // length)


@loop(F2, REAL, REAL, F2, F2)
def clip_slopes(call: Any) -> None:
    """See `kernels.clip_slopes`; `(R, C)`, and `z0` `(R / N or R, C)`."""
    places, z, bottom, top, z0, slope = call[0]
    first, last = part(places)
    low, high, near = np.float32(bottom), np.float32(top), _rows_near(z.shape[1])
    for block in range(first, last, near):
        for image in range(0, len(z), places):
            for p in range(block, min(block + near, last)):
                given, before, found = z[image + p], z0[p], slope[image + p]
                for c in range(z.shape[1]):
                    here, start = given[c], before[c]
                    # What is no number stays none: it is on neither side.
                    above, above0 = low if here < low else here, low if start < low else start
                    made, made0 = high if above > high else above, high if above0 > high else above0
                    quotient = (made - made0) / (here - start)
                    # Of no difference at all the derivative.
                    still = ONE if start > low else ZERO
                    still = still if start < high else ZERO
                    found[c] = still if here == start else quotient
                    given[c] = made


@loop(F2, F2, F2, F2, REAL, F2, L1)
def slopes(call: Any) -> None:
    """See `kernels.slopes`; `(R, C)`, `z0` and `out0` `(R / N or R, C)`, `counts` `(R,)` how many are near."""
    places, z, out, z0, out0, distance, slope, counts = call[0]
    first, last = part(places)
    close, near = np.float32(distance), _rows_near(z.shape[1])
    for block in range(first, last, near):
        for image in range(0, len(z), places):
            for p in range(block, min(block + near, last)):
                r = image + p
                given, before, made, made0, found = z[r], z0[p], out[r], out0[p], slope[r]
                count = 0
                for c in range(z.shape[1]):
                    run = given[c] - before[c]
                    found[c] = (made[c] - made0[c]) / run
                    count += abs(run) < close
                counts[r] = count


@loop(F2, F2, REAL, L1, L1, F1)
def near_ones(call: Any) -> None:
    """Flat places `(K,)` in `z` of what `slopes` counted, and the means of both ends there.

    A row's first one has the number `starts[r]`, and `starts` has an entry more than there are rows.
    """
    rows, z, z0, close, starts, places, half_ways = call[0]
    first, last = part(rows)
    near, length = np.float32(close), z.shape[1]
    for r in range(first, last):
        found = starts[r]
        for start in range(0, length, _PIECE):
            given, before = z[r, start : start + _PIECE], z0[r % len(z0), start : start + _PIECE]
            # Most pieces have none, and the smallest is found of many at a time.
            smallest = NONE_YET
            for c in range(len(given)):
                smallest = min(smallest, np.float32(abs(given[c] - before[c])).view(np.int32))
            if np.int32(smallest).view(np.float32) < near:
                for c in range(len(given)):
                    if abs(given[c] - before[c]) < near:
                        places[found] = r * length + start + c
                        half_ways[found] = (given[c] + before[c]) / 2
                        found += 1


@inner
def _mean_and_deviation(row: Array, share: np.float32, eps: np.float32) -> tuple[np.float32, np.float32]:
    # Groups of channels make rows of a hundred thousand and more, of which single precision would lose some digits.
    total, squares = 0.0, 0.0
    for start in range(0, len(row), _BLOCK):
        near, part_ = row[start : start + _BLOCK], ZERO
        for c in range(len(near)):
            part_ += near[c]
        total += part_
    mean = np.float32(total * share)
    for start in range(0, len(row), _BLOCK):
        near, part_ = row[start : start + _BLOCK], ZERO
        for c in range(len(near)):
            centred = near[c] - mean
            part_ += centred * centred
        squares += part_
    return mean, np.float32(np.sqrt(squares * share + eps))


@loop(F2, REAL, F2, F1, F1)
def baseline_norms(call: Any) -> None:
    """Of baselines `(R, C)` what `norms` needs: the norm, and `(R,)` means and deviations."""
    rows, z0, added, out0, means, deviations = call[0]
    first, last = part(rows)
    of_row, eps = np.float32(1 / z0.shape[1]), np.float32(added)
    for r in range(first, last):
        mean, deviation = _mean_and_deviation(z0[r], of_row, eps)
        means[r], deviations[r] = mean, deviation
        before, made0 = z0[r], out0[r]
        for c in range(z0.shape[1]):
            made0[c] = (before[c] - mean) / deviation


@loop(F2, F2, F1, F1, REAL, F1, F1, F2, F2, F1)
def norms(call: Any) -> None:
    """See `kernels.norms`; `(R, C)`, `z0` `(R / N or R, C)` with its means and deviations, `scales` `(R,)`."""
    rows, z, z0, means0, deviations0, added, weight, bias, out, both, scales = call[0]
    first, last = part(rows)
    of_row, eps = np.float32(1 / z.shape[1]), np.float32(added)
    for r in range(first, last):
        m = r % len(z0)
        mean, deviation = _mean_and_deviation(z[r], of_row, eps)
        mean0 = means0[m]
        scale = ONE / deviation
        share = -of_row * scale / (deviation + deviations0[m])
        given, before, made, held = z[r], z0[m], out[r], both[r]
        for c in range(z.shape[1]):
            centred = given[c] - mean
            made[c] = centred * scale * weight[c] + bias[c]
            held[c] = (centred + (before[c] - mean0)) * share
        scales[r] = scale


@loop(F2, F2, F2, F1, F1, F2)
def norms_back(call: Any) -> None:
    """See `kernels.norms_back`; shapes as in `norms`."""
    rows, gradient, both, out0, scales, weight, back = call[0]
    first, last = part(rows)
    length = gradient.shape[1]
    for r in range(first, last):
        given, held, made0, left = gradient[r], both[r], out0[r % len(out0)], back[r]
        total, shares, handed_ = 0.0, 0.0, 0.0
        for start in range(0, length, _BLOCK):
            stop = start + _BLOCK
            near, held_, before, factor = given[start:stop], held[start:stop], made0[start:stop], weight[start:stop]
            part_, of_held, of_before = ZERO, ZERO, ZERO
            for c in range(len(near)):
                here = near[c] * factor[c]
                part_ += here
                of_held += held_[c]
                of_before += here * before[c]
            total, shares, handed_ = total + part_, shares + of_held, handed_ + of_before
        handed = np.float32(handed_)
        mean = np.float32((scales[r] * total + handed * shares) / length)
        for c in range(length):
            left[c] = given[c] * weight[c] * scales[r] + held[c] * handed - mean
