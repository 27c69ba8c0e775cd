"""Loops on PyTorch's threads: who does what, what they are given, and what they do where there are no such threads."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from salviz.kernels import team
from salviz.kernels.loops import F1, F2, F3, I2, L1, REAL, WHOLE, loop, part


@loop(L1, L1)
def who(call: Any) -> None:
    """Who does each thing: the first thing of its thread; and how often it was done."""
    count, firsts, times = call[0]
    first, last = part(count)
    for place in range(first, last):
        firsts[place] = first
        times[place] += 1


@loop(F3, REAL, F1, WHOLE, I2, REAL, L1, F2)
def told(call: Any) -> None:
    """What a loop finds behind its pointer."""
    count, cube, real, row, whole, square, other, numbers, found = call[0]
    found[0, 0], found[0, 1], found[0, 2] = (
        cube[1, 2, 3],
        cube.shape[0] * 100 + cube.shape[1] * 10 + cube.shape[2],
        real,
    )
    found[1, 0], found[1, 1], found[1, 2] = row[-1], whole, square[1, 0]
    found[2, 0], found[2, 1], found[2, 2] = other, numbers[0], count


@pytest.fixture
def threads() -> Any:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("wanted", [1, 2, 3, 5])
def test_every_thing_is_done_once_and_each_thread_has_its_share(wanted: int, count: int, threads: Any) -> None:
    threads(wanted)
    firsts, times = np.full(count, -1), np.zeros(count, np.int64)
    who(count, firsts, times)
    assert (times == 1).all()
    workers = min(wanted, count) if team.IS_SHARED else 1
    assert sorted({*firsts.tolist()}) == [count * worker // workers for worker in range(workers)]


def test_this_pytorchs_threads_are_known() -> None:
    libraries = list((Path(torch.__file__).parent / "lib").glob("libgomp*"))
    assert bool(libraries) == team.IS_SHARED


def test_a_loop_finds_what_it_was_given() -> None:
    cube = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    row, square = np.array([1.0, 2.5], np.float32), np.array([[1], [-7]], np.int32)
    numbers, found = np.array([2**40], np.int64), np.zeros((3, 3), np.float32)
    told(1, cube, 0.1, row, 2**20, square, float("inf"), numbers, found)
    expected = [[23, 234, 0.1], [2.5, 2**20, -7], [np.inf, 2**40, 1]]
    assert found.tolist() == np.array(expected, np.float32).tolist()


def test_what_a_loop_cannot_take_is_refused() -> None:
    good = np.zeros(4, np.int64)
    for bad in (np.zeros(4), np.zeros((2, 2), np.int64), np.zeros(8, np.int64)[::2], 3, None):
        with pytest.raises(TypeError, match="A loop takes"):
            who(4, good, bad)
    with pytest.raises(ValueError, match="argument"):
        who(4, good)
    assert not good.any()


def test_without_pytorchs_threads_one_thread_does_it_all(tmp_path: Path) -> None:
    script = """
import torch
torch.__file__ = "nowhere/torch/__init__.py"
from salviz import kernels
from salviz.kernels import team
assert not team.IS_SHARED
torch.set_num_threads(3)
z = torch.randn(5, 4, 3, 3).to(memory_format=torch.channels_last)
found = kernels.terms(z, z)
torch.testing.assert_close(found[0], (z * z).sum((1, 2, 3)))
torch.testing.assert_close(found[1], (z * z).sum(1))
"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
