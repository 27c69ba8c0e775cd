"""The threads that PyTorch's own operators run on, for C functions of other origin.

A second set of threads would get in their way: between operators PyTorch's wait by spinning.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch

FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
"""A C function of one pointer."""


def _openmp() -> ctypes.CDLL | None:
    """PyTorch's OpenMP, or None where it has another one than GNU's, or another way to run in parallel."""
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")):
        try:
            # Only if it is loaded, hence in use: else another library of that name came first.
            return ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        except (OSError, AttributeError):
            continue
    return None


_OPENMP = _openmp()
IS_SHARED = _OPENMP is not None
"""Whether other functions can run on PyTorch's threads."""

_alone = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 0), ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 1)
_which = _alone if _OPENMP is None else (_OPENMP.omp_get_thread_num, _OPENMP.omp_get_num_threads)
THREAD, THREADS = (ctypes.cast(function, ctypes.c_void_p).value for function in _which)
"""Addresses of C functions `() -> int` that tell a thread its number, and how many there are."""


def run(function: int, data: int, threads: int) -> None:
    """Call a function in each of PyTorch's threads, or once where there are none to be had.

    Args:
        function: Address of a `FUNCTION`, which may not touch Python.
        data: Address of what it is given.
        threads: At the most.
    """
    if _OPENMP is None or threads <= 1:
        FUNCTION(function)(data)
    else:
        _OPENMP.GOMP_parallel(
            ctypes.c_void_p(function), ctypes.c_void_p(data), ctypes.c_uint(threads), ctypes.c_uint(0)
        )
