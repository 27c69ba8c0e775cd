"""The threads that PyTorch's own operators run on, for C functions of other origin.

A second set of threads would get in their way: between operators PyTorch's wait by spinning.
"""

from __future__ import annotations

import ctypes

import torch

FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
"""A C function of one pointer."""


def _openmp() -> ctypes.CDLL | None:
    """The OpenMP that PyTorch's own calls lead to, or None where that is not one as GNU has it, or none at all.

    PyTorch loads what it depends on for the whole process to see, and both look there first.
    """
    try:
        found = ctypes.CDLL(None)
    except (OSError, TypeError):
        return None
    is_used = torch.backends.openmp.is_available()  # type: ignore[no-untyped-call]
    names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
    if not is_used or not all(hasattr(found, name) for name in names):
        return None
    found.GOMP_parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    found.GOMP_parallel.restype = None
    return found


OPENMP = _openmp()
"""What other functions can run on PyTorch's threads with, or None."""

_alone = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 0), ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 1)
_which = _alone if OPENMP is None else (OPENMP.omp_get_thread_num, OPENMP.omp_get_num_threads)
THREAD, THREADS = (ctypes.cast(function, ctypes.c_void_p).value for function in _which)
"""Addresses of C functions `() -> int` that tell a thread its number, and how many there are."""


def run(function: int, data: int, *, is_alone: bool = False) -> None:
    """Call a function in each of PyTorch's threads, or once where there are none to be had.

    In all of them: OpenMP ends the threads that a smaller team leaves out, and PyTorch's next operator makes new ones.

    Args:
        function: Address of a `FUNCTION`. It runs where the interpreter's lock is not held.
        data: Address of what it is given.
        is_alone: Whether it is called once anyway.
    """
    threads = torch.get_num_threads()
    if OPENMP is None or is_alone or threads == 1:
        FUNCTION(function)(data)
    else:
        OPENMP.GOMP_parallel(function, data, threads, 0)
