"""Loops on PyTorch's threads: who does what, what they are given, and what they do where there are no such threads."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from salviz.kernels import team
from salviz.kernels.loops import F1, F2, F3, I2, L1, REAL, WHOLE, Loop, loop, number, part


@loop(L1, L1, L1)
def who(call: Any) -> None:
    """Who does each thing: the first thing of its thread, and its number; and how often it was done."""
    count, firsts, numbers, times = call[0]
    first, last = part(count)
    for place in range(first, last):
        firsts[place], numbers[place] = first, number()
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
    firsts, numbers, times = np.full(count, -1), np.full(count, -1), np.zeros(count, np.int64)
    who(count, firsts, numbers, times)
    assert (times == 1).all()
    workers = wanted if team.OPENMP and count > 1 else 1
    of_worker = [range(count * worker // workers, count * (worker + 1) // workers) for worker in range(workers)]
    assert firsts.tolist() == [things.start for things in of_worker for _ in things]
    assert numbers.tolist() == [worker for worker, things in enumerate(of_worker) for _ in things]


def test_this_pytorchs_threads_are_known() -> None:
    # One that does not come with PyTorch may be known as well.
    if list((Path(torch.__file__).parent / "lib").glob("libgomp*")):
        assert team.OPENMP is not None


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted as Linux counts them")
def test_pytorchs_threads_stay(threads: Any) -> None:
    threads(3)
    values = torch.randn(1000, 1000)
    room = np.zeros(1000, np.int64), np.zeros(1000, np.int64), np.zeros(1000, np.int64)

    def known() -> set[str]:
        values.exp()
        return {entry.name for entry in Path("/proc/self/task").iterdir()}

    before = known()
    for count in (1, 2, 3, 1000):
        who(count, *(part[:count] for part in room))
        assert known() == before


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
            who(4, good, good, bad)
    with pytest.raises(ValueError, match="argument"):
        who(4, good)
    assert not good.any()
    for given, bad in ((REAL, None), (REAL, good), (WHOLE, 2.7), (WHOLE, None)):
        with pytest.raises(TypeError, match="A loop takes"):
            Loop(lambda call: None, (given,))(1, bad)


def test_two_threads_may_both_be_the_first_to_call() -> None:
    again = Loop(who._function, who._given)
    room = [(np.full(1000, -1), np.full(1000, -1), np.zeros(1000, np.int64)) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda held: again(1000, *held), room))
    for firsts, _, times in room:
        assert (times == 1).all()
        assert firsts[0] == 0


def _in_a_new_process(script: str, cache: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_was_compiled_serves_the_next_process(tmp_path: Path) -> None:
    # The addresses of the functions that tell threads apart are others there.
    script = """
import sys
import torch
from salviz import kernels
from salviz.kernels import compiled
z = torch.randn(5, 4, 3, 3).to(memory_format=torch.channels_last)
for threads in (2, 1):
    torch.set_num_threads(threads)
    found = kernels.terms(z, z)
    torch.testing.assert_close(found[0], (z * z).sum((1, 2, 3)))
assert compiled.terms._compiled.cache_hits == int(sys.argv[1]), compiled.terms._compiled.cache_hits
"""
    for hits in (0, 1):
        _in_a_new_process(f"import sys; sys.argv = ['', '{hits}']\n{script}", tmp_path)


def test_without_pytorchs_threads_one_thread_does_it_all(tmp_path: Path) -> None:
    script = """
import torch
import ctypes
known = ctypes.CDLL
ctypes.CDLL = lambda name, *args, **options: known(name, *args, **options) if name else object()
from salviz import kernels
from salviz.kernels import team
assert team.OPENMP is None
torch.set_num_threads(3)
z = torch.randn(5, 4, 3, 3).to(memory_format=torch.channels_last)
found = kernels.terms(z, z)
torch.testing.assert_close(found[0], (z * z).sum((1, 2, 3)))
"""
    _in_a_new_process(script, tmp_path)
