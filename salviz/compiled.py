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
_NONE_YET: Any = np.int32(np.float32(np.inf).view(np.int32))


def _compile(function: Callable[..., None]) -> Callable[..., None]:
    # Nothing is assumed of infinities and of what is no number: they come out as they would of PyTorch's operators.
    options: Any = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "nsz", "contract"}}
    try:
        compiled: Callable[..., None] = numba.njit(cache=True, **options)(function)
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
                let = here if at < cap else _ZERO
                let = let if at > _ZERO else _ZERO
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
                above, above0 = here if here > low else low, start if start > low else low
                made, made0 = above if above < high else high, above0 if above0 < high else high
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
def clip_shares(value: Array, whole: Array, cap: np.float32, stabiliser: np.float32) -> None:
    """See `kernels.clip_shares`."""
    images, places, channels = value.shape
    for n in range(images):
        for p in range(places):
            made, found = value[n, p], whole[n, p]
            for c in range(channels):
                here, total = made[c], found[c] + stabiliser
                clipped = here if here > _ZERO else _ZERO
                clipped = clipped if clipped < cap else cap
                made[c] = clipped
                found[c] = clipped / total
