"""Runs of a server: asked for, queued, made by a worker, stopped, resumed; told by their files alone."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock

from salviz.errors import RequestError
from salviz.runs import presence, worker
from salviz.runs.folder import RunFolder
from salviz.runs.presence import Teller, holding
from salviz.runs.shelf import TRIES, Shelf
from tests.runs.conftest import spec

ROOT = Path(__file__).parents[2]


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "shelf")


def workers(shelf: Shelf) -> list[int]:
    """Process ids of the workers of a shelf."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
        except (OSError, UnicodeDecodeError):
            continue
        if "work" in words and str(shelf.root) in words:
            found.append(int(path.parent.name))
    return found


def waits(shelf: Shelf, name: str, *states: str, seconds: float = 90) -> None:
    """Wait until a run is in one of some states."""
    until = time.monotonic() + seconds
    while shelf.standing(name).state not in states:
        assert time.monotonic() < until, shelf.standing(name)
        time.sleep(0.05)


def test_a_worker_makes_what_waits_in_the_order_it_was_asked_for(shelf: Shelf, undisturbed: RunFolder) -> None:
    first, second = shelf.submit(spec(), "cpu"), shelf.submit(spec(seed=1, images=3), "cpu")
    assert shelf.submit(spec(), "cpu") == first
    assert shelf.submit(spec(), "cuda:0") != first
    assert shelf.queue("cpu") == [first, second]
    assert [shelf.standing(name).place for name in (first, second)] == [0, 1]
    assert {shelf.standing(name).state for name in (first, second)} == {"waiting"}
    worker.work(shelf, "cpu")
    assert shelf.queue("cpu") == []
    assert shelf.folder(first).digest() == undisturbed.digest()
    one = shelf.standing(first)
    assert (one.state, one.done, one.total) == ("complete", 20, 20)
    # What is complete is not made again.
    assert shelf.submit(spec(), "cpu") == first
    assert shelf.queue("cpu") == []
    assert set(shelf.names()) >= {first, second}


def test_a_run_that_cannot_be_fails_with_a_sentence_and_can_be_tried_again(shelf: Shelf) -> None:
    name = shelf.submit(spec(data="folder:nowhere"), "cpu")
    worker.work(shelf, "cpu")
    standing = shelf.standing(name)
    assert standing.state == "failed"
    assert "nowhere" in standing.error
    shelf.resume(name)
    assert shelf.standing(name).state == "waiting"


def test_what_waits_can_be_cancelled_and_comes_back(shelf: Shelf) -> None:
    name = shelf.submit(spec(), "cpu")
    shelf.cancel(name)
    assert shelf.standing(name).state == "cancelled"
    assert shelf.queue("cpu") == []
    worker.work(shelf, "cpu")
    assert not shelf.folder(name).exists
    assert shelf.submit(spec(), "cpu") == name
    assert shelf.standing(name).state == "waiting"


def test_another_worker_leaves_the_device_to_the_first(shelf: Shelf) -> None:
    name = shelf.submit(spec(), "cpu")
    with FileLock(shelf.root / ".worker-cpu.lock"):
        worker.work(shelf, "cpu")
    assert shelf.standing(name).state == "waiting"


def test_a_run_that_the_command_line_makes_is_left_to_it(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    name = shelf.submit(spec(), "cpu")
    monkeypatch.setattr(presence, "_PATIENCE", 0.1)
    with holding(shelf.folder(name).path, is_shared=True):
        worker.work(shelf, "cpu")
        assert shelf.standing(name).state == "running"
        # A third one is not kept from its work.
        with holding(shelf.folder(name).path, is_shared=True) as tell:
            tell(1, 2, "something")
        assert shelf.standing(name).total == 0
    assert shelf.standing(name).state == "interrupted"
    shelf.ended(name, error="It broke.")
    assert shelf.standing(name).state == "failed"
    with holding(shelf.folder(name).path, is_shared=True):
        pass
    assert shelf.standing(name).state == "interrupted"


def test_a_run_is_running_exactly_while_somebody_holds_it(shelf: Shelf) -> None:
    name = shelf.submit(spec(), "cpu")
    with holding(shelf.folder(name).path):
        Teller(shelf.folder(name).path)(3, 20, "something")
        standing = shelf.standing(name)
        assert (standing.state, standing.done, standing.total, standing.what) == ("running", 3, 20, "something")
        with pytest.raises(RequestError, match="cancel it first"):
            shelf.remove(name)
    assert shelf.standing(name).state == "waiting"
    shelf.remove(name)
    assert name not in shelf.names()


def test_the_rate_counts_from_where_the_worker_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    tell = Teller(tmp_path)
    tell(40, 100, "a")
    now[0] += 10
    tell(60, 100, "b")
    assert json.loads((tmp_path / "progress.json").read_text()) == {"done": 60, "total": 100, "what": "b", "rate": 2.0}


def test_a_run_that_kills_its_workers_is_given_up(shelf: Shelf) -> None:
    name = shelf.submit(spec(), "cpu")
    for _ in range(TRIES):
        assert shelf.begins(name)
    assert not shelf.begins(name)
    standing = shelf.standing(name)
    assert standing.state == "failed"
    assert "memory" in standing.error


@pytest.mark.parametrize("name", ["", "..", "../up", "UPPER", "a/b", "nothing"])
def test_names_lead_nowhere_else(shelf: Shelf, name: str) -> None:
    with pytest.raises(RequestError, match="There is no run"):
        shelf.folder(name)


def test_a_picture_of_a_run_is_opened_by_its_place(shelf: Shelf) -> None:
    name = shelf.submit(spec(), "cpu")
    worker.work(shelf, "cpu")
    sample = shelf.folder(name).sample
    assert shelf.open(name, 4).source == sample[4].name
    with pytest.raises(RequestError, match="no picture 10"):
        shelf.open(name, 10)


@pytest.mark.slow
def test_a_worker_outlives_who_started_it_and_a_killed_one_loses_nothing(shelf: Shelf, undisturbed: RunFolder) -> None:
    # Long enough to be caught in the midst of it.
    long = spec(methods={"integrated_gradients": {"steps": 200}}, images=60)
    name, after = shelf.submit(long, "cpu"), shelf.submit(spec(), "cpu")
    starter = (
        "from salviz.runs.shelf import Shelf; from salviz.runs.worker import ensure; import sys; "
        "ensure(Shelf(sys.argv[1]), 'cpu')"
    )
    subprocess.run([sys.executable, "-c", starter, str(shelf.root)], cwd=ROOT, check=True, timeout=60)
    waits(shelf, name, "running")
    assert shelf.standing(after).state == "waiting"
    (pid,) = workers(shelf)
    until = time.monotonic() + 60
    while not shelf.folder(name).exists or not shelf.folder(name).present():
        assert time.monotonic() < until
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    waits(shelf, name, "waiting")
    shelf.cancel(name)
    assert shelf.standing(name).state == "cancelled"
    assert 0 < shelf.standing(name).done < 60
    # Whoever looks next starts another worker.
    worker.ensure(shelf, "cpu")
    waits(shelf, after, "complete")
    assert shelf.folder(after).digest() == undisturbed.digest()
    while any(thread.name == "salviz-worker" for thread in threading.enumerate()):
        assert time.monotonic() < until + 120
        time.sleep(0.05)
