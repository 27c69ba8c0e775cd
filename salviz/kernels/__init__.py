"""Elementwise work on large activations in one way through memory, compiled for the CPU.

A chain of PyTorch's operators reads and writes an activation at every step, and that takes longer than the arithmetic.
What is here does in one loop what a chain does, and says so where it cannot: callers go on with PyTorch's own operators
then, which every device has.
"""

from salviz.kernels.arrays import layout
from salviz.kernels.moments import add_sample
from salviz.kernels.pixels import advance, between, dots
from salviz.kernels.rescaling import clip_slopes, norms, norms_back, slopes
from salviz.kernels.shares import clip_shares, split, unite
from salviz.kernels.sums import Terms, clip_terms, terms

__all__ = [
    "Terms",
    "add_sample",
    "advance",
    "between",
    "clip_shares",
    "clip_slopes",
    "clip_terms",
    "dots",
    "layout",
    "norms",
    "norms_back",
    "slopes",
    "split",
    "terms",
    "unite",
]
