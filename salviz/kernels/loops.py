"""How loops are written that Numba compiles and PyTorch's threads run.

A loop is a C function of one pointer, which every thread calls (see `team`). What the loop works on lies behind the
pointer as Numba lays out a tuple of arrays and numbers.

What is compiled is kept beside the file of each loop, until that file changes. Whoever changes this one, of which all
of them have a copy, has to remove what is kept.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from numba import types
from numpy.typing import NDArray

from salviz.kernels import team

Array = NDArray[Any]

F1, F2, F3 = (types.Array(types.float32, dimensions, "C") for dimensions in (1, 2, 3))
I2 = types.Array(types.int32, 2, "C")
L1 = types.Array(types.int64, 1, "C")
REAL, WHOLE = types.float64, types.int64

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


class Loop:
    """A loop, compiled when it is first called.

    It may not ask for memory: where there was none it could not say so.
    """

    def __init__(self, function: Callable[[Any], None], given: tuple[types.Type, ...]) -> None:
        self._function, self._given = function, given
        self._compiled: Any = None

    def __call__(self, count: int, *values: Array | float) -> None:
        """Run it.

        Args:
            count: Things to do, in any order and one beside the other.
            *values: Of the types that were given.

        Raises:
            TypeError: One is of another type: the loop would read foreign memory.
        """
        words = [count]
        for of, value in zip(self._given, values, strict=True):
            words += _words(of, value)
        if self._compiled is None:
            given: Any = types.Tuple((WHOLE, *self._given))  # type: ignore[no-untyped-call]
            pointer = types.CPointer(given)  # type: ignore[no-untyped-call]
            self._compiled = _kept(numba.cfunc, types.void(pointer))(self._function)
        data = np.array(words, np.int64)
        team.run(self._compiled.address, data.ctypes.data, is_alone=count == 1)


def loop(*given: types.Type) -> Callable[[Callable[[Any], None]], Loop]:
    """Make a function of one pointer a loop.

    The pointer's first item is the number of things to do, which `part` shares out, and then what the loop is given.

    Args:
        *given: Types of that, of those at the top of this file.
    """
    return lambda function: Loop(function, given)


def _words(given: types.Type, value: Array | float) -> list[int]:
    """A value as the whole numbers of eight bytes that it is in a tuple of Numba's."""
    if given == WHOLE and isinstance(value, int | np.integer):
        return [int(value)]
    if given == REAL and isinstance(value, int | float | np.integer | np.floating):
        return list(struct.unpack("q", struct.pack("d", value)))
    if (
        isinstance(given, types.Array)
        and isinstance(value, np.ndarray)
        and value.dtype == np.dtype(str(given.dtype))
        and value.ndim == given.ndim
        and value.flags.c_contiguous
    ):
        # Nobody counts references to it: whoever calls the loop holds it meanwhile.
        return [0, 0, value.size, value.itemsize, value.ctypes.data, *value.shape, *value.strides]
    raise TypeError(f"A loop takes {given} and got {value!r}.")
