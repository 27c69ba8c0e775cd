"""How loops are written that Numba compiles and PyTorch's threads run.

A loop is a C function of one pointer, which every thread calls (see `team`). What the loop works on lies behind the
pointer as Numba lays out a tuple of arrays and numbers.

What is compiled is kept beside the file of each loop, until that file changes. Whoever changes this one, of which all
of them have a copy, has to remove what is kept.
"""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Callable
from typing import Any, NamedTuple

import llvmlite.binding
import numba
import numpy as np
import torch
from numba import types
from numpy.typing import NDArray

from salviz.kernels import team
from salviz.kernels.arrays import View

Array = NDArray[Any]

F1, F2, F3 = (types.Array(types.float32, dimensions, "C") for dimensions in (1, 2, 3))
I2 = types.Array(types.int32, 2, "C")
L1 = types.Array(types.int64, 1, "C")
REAL, WHOLE = types.float64, types.int64

ZERO: Any = np.float32(0)
ONE: Any = np.float32(1)
NONE_YET: Any = np.int32(np.float32(np.inf).view(np.int32))
"""Larger than the bits of any size: those of infinity."""

for _name, _address in (("salviz_thread", team.THREAD), ("salviz_threads", team.THREADS)):
    llvmlite.binding.add_symbol(_name, _address)
_thread: Any = types.ExternalFunction("salviz_thread", types.int32())
_threads: Any = types.ExternalFunction("salviz_threads", types.int32())


def _kept(compiler: Callable[..., Any], *signature: Any) -> Callable[..., Any]:
    """A decorator that keeps on disk for the next process what is compiled."""
    # Nothing is assumed of infinities and of what is no number: they come out as they would of PyTorch's operators.
    options: Any = {"error_model": "numpy", "fastmath": {"reassoc", "nsz", "contract"}}

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return compiler(*signature, cache=True, **options)(function)
        except (OSError, RuntimeError):
            # There is nowhere to keep it: neither here nor in a home may anything be written, or the disk is full.
            # What is wrong with the function itself is an error of Numba's own.
            return compiler(*signature, **options)(function)

    return decorate


def inner(function: Callable[..., Any]) -> Callable[..., Any]:
    """Have a function that loops call compiled as they are."""
    compiled: Callable[..., Any] = _kept(numba.njit)(function)
    return compiled


@inner
def number() -> int:
    """Of this thread, from 0 and below `torch.get_num_threads()`."""
    return int(_thread())


@inner
def part(count: int) -> tuple[int, int]:
    """The first of `count` things that this thread has to do, and the one after its last."""
    thread, threads = _thread(), _threads()
    return count * thread // threads, count * (thread + 1) // threads


Value = View | Array | int | float
"""What a loop is given: a tensor's memory or a contiguous array, or a number."""


class _Taken(NamedTuple):
    """What a loop takes at one place: an array of so many dimensions, or a number, which has none."""

    title: types.Type
    dimensions: int
    dtype: Any
    of_tensor: torch.dtype | None

    @staticmethod
    def of(given: types.Type) -> _Taken:
        if not isinstance(given, types.Array):
            return _Taken(given, 0, None, None)
        name = str(given.dtype)
        return _Taken(given, given.ndim, np.dtype(name), getattr(torch, name))

    def words(self, value: Value) -> list[int]:
        """A value as the whole numbers of eight bytes that it is in a tuple of Numba's."""
        if isinstance(value, View):
            if len(value.shape) == self.dimensions and value.tensor.dtype is self.of_tensor:
                return _words(value.tensor.data_ptr(), value.shape, value.tensor.element_size())
        elif isinstance(value, np.ndarray):
            if value.ndim == self.dimensions and value.dtype == self.dtype and value.flags.c_contiguous:
                return _words(value.ctypes.data, value.shape, value.itemsize)
        elif self.title == WHOLE and isinstance(value, int):
            return [value]
        elif self.title == REAL and isinstance(value, int | float):
            return list(struct.unpack("q", struct.pack("d", value)))
        raise TypeError(f"A loop takes {self.title} and got {value!r}.")


def _words(address: int, shape: tuple[int, ...], size: int) -> list[int]:
    """An array: nobody counts references to it, for whoever calls the loop holds it meanwhile."""
    steps = [size]
    for length in shape[:0:-1]:
        steps.append(steps[-1] * length)
    return [0, 0, math.prod(shape), size, address, *shape, *reversed(steps)]


class Loop:
    """A loop, compiled when it is first called.

    It may not ask for memory: where there was none it could not say so.
    """

    def __init__(self, function: Callable[[Any], None], given: tuple[types.Type, ...]) -> None:
        self._function, self._given = function, given
        self._taken = [_Taken.of(part) for part in given]
        self._compiled: Any = None
        self._address = 0

    def __call__(self, count: int, *values: Value) -> None:
        """Run it.

        Args:
            count: Things to do, in any order and one beside the other.
            *values: Of the types that were given.

        Raises:
            TypeError: One is of another type: the loop would read foreign memory.
        """
        # Between two large activations Python has to be fetched from memory itself: there is as little of it as can be.
        words = array("q", (count,))
        for taken, value in zip(self._taken, values, strict=True):
            words.extend(taken.words(value))
        if self._compiled is None:
            given: Any = types.Tuple((WHOLE, *self._given))  # type: ignore[no-untyped-call]
            pointer = types.CPointer(given)  # type: ignore[no-untyped-call]
            compiled = _kept(numba.cfunc, types.void(pointer))(self._function)
            # The address first: another thread calls it as soon as there is something compiled.
            self._address, self._compiled = compiled.address, compiled
        address, _ = words.buffer_info()
        team.run(self._address, address, is_alone=count == 1)


def loop(*given: types.Type) -> Callable[[Callable[[Any], None]], Loop]:
    """Make a function of one pointer a loop.

    The pointer's first item is the number of things to do, which `part` shares out, and then what the loop is given.

    Args:
        *given: Types of that, of those at the top of this file.
    """
    return lambda function: Loop(function, given)
