"""What PyTorch and C's library are told about threads and memory, each seen in a process of its own."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from salviz import work
from salviz.memory import total
from salviz.work import has_room_beside

on_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the system's C library is another")


def told_by(program: str) -> list[int]:
    """What a program prints last, as JSON."""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    found: list[int] = json.loads(done.stdout.splitlines()[-1])
    return found


_TEAMS = """
import json, torch
from pathlib import Path
from concurrent.futures import ThreadPoolExecutor
from salviz.work import helper

def computes():
    (torch.randn(1_000_000) * 2).sum()
    return torch.get_num_threads()

def threads():
    return len(list(Path("/proc/self/task").iterdir()))

torch.set_num_threads(3)
computes()
found = [threads()]
with helper("helper") as pool:
    found += [pool.submit(computes).result(), threads(), computes()]
with ThreadPoolExecutor(1) as pool:
    found += [pool.submit(computes).result(), threads()]
print(json.dumps(found))
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted as Linux tells them")
def test_a_helper_has_no_team_and_nobody_elses_is_changed() -> None:
    before, alone, beside, mine, other, with_team = told_by(_TEAMS)
    assert (alone, beside) == (1, before + 1)
    # The oracle: an ordinary thread brings two more.
    assert (mine, other, with_team) == (3, 3, before + 3)


@pytest.mark.parametrize(("threads", "has_room"), [(1, True), (2, True), (3, False), (4, False)])
def test_there_is_room_beside_a_model_that_leaves_a_core(
    threads: int, has_room: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 5}, raising=False)
    assert has_room_beside(torch.device("cpu")) == has_room
    assert has_room_beside(torch.device("meta"))


@pytest.mark.parametrize(("keeps", "gigabytes", "images"), [(True, 16, 16), (True, 8, 8), (False, 16, 8)])
def test_passes_are_larger_where_memory_is_kept_and_plentiful(
    keeps: bool, gigabytes: int, images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "keeps_freed", lambda: keeps)
    monkeypatch.setattr(work, "total", lambda: gigabytes * 2**30)
    assert work.fitting(torch.device("cpu")) == images
    assert work.fitting(torch.device("meta")) == 32


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="memory is told as Linux does")
def test_a_containers_limit_is_its_memory(tmp_path: Path) -> None:
    (line,) = (one for one in Path("/proc/meminfo").read_text().splitlines() if one.startswith("MemTotal"))
    machine = 1024 * int(line.split()[1])
    told = total.__wrapped__  # It is asked once in a process.
    assert told(tmp_path) == machine
    (tmp_path / "memory.max").write_text("max\n")
    assert told(tmp_path) == machine
    (tmp_path / "memory.max").write_text("4294967296\n")
    assert told(tmp_path) == 2**32
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("1048576\n")
    assert told(tmp_path) == 2**20


_FAULTS = """
import json, resource, torch
from salviz.memory import keep_freed, keeps_freed
from salviz.work import fitting

def images():
    return fitting(torch.device("cpu"))

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(16_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
found = [faults(), images()]
assert not keeps_freed()
assert keep_freed()
assert keeps_freed()
faults()
print(json.dumps([*found, faults(), images()]))
"""


@on_glibc
def test_freed_memory_is_kept() -> None:
    before, few, after, more = told_by(_FAULTS)
    # Twenty times 64 MB in pages of 4 kB, or of 2 MB where the system hands out large ones.
    assert before > 20 * 64 // 2
    assert after < before / 10
    # Larger passes cost no fresh memory any more.
    assert (few, more) == (8, 16 if total() >= 12 * 2**30 else 8)
