"""Who works on a run, and how far it is: told by two files in its folder, whoever it is and wherever it runs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from salviz.errors import RequestError
from salviz.plain import json_text, write_files
from salviz.runs.bench import Told, quiet

_LOCK, _PROGRESS = ".lock", "progress.json"
FAILURE = "failure.json"
"""Why a run failed, until somebody begins anew."""

_SECONDS = 0.5
_PATIENCE = 10.0
"""Seconds: pages try a lock for a moment to see whether somebody holds it."""
_TOLD = ("done", "total", "what", "rate")


def is_held(path: Path) -> bool:
    """Whether somebody works on the run of a folder."""
    lock = FileLock(path / _LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return True
    except OSError:
        # Of another account, or on a file system without locks: nobody can tell.
        return False
    lock.release()
    return False


@contextmanager
def holding(path: Path, *, is_shared: bool = False) -> Iterator[Told]:
    """Hold a run's lock, so that pages see that somebody works on it; it ends with the process however that ends.

    Args:
        path: Of the run's folder.
        is_shared: Whether others may make parts of it at the same time: then the first of them is seen, and the
            others are not kept from their work.

    Yields:
        What is called as the work comes along.

    Raises:
        filelock.Timeout: Somebody else works on it, where it is not shared.
    """
    lock = FileLock(path / _LOCK, timeout=1 if is_shared else _PATIENCE)
    with suppress(Timeout, OSError) if is_shared else nullcontext():
        lock.acquire()
    if not lock.is_locked:
        yield quiet
        return
    try:
        with suppress(OSError):
            # Of somebody before.
            (path / _PROGRESS).unlink(missing_ok=True)
            (path / FAILURE).unlink(missing_ok=True)
        yield Teller(path)
    finally:
        lock.release()


def how_far(path: Path) -> dict[str, Any]:
    """What whoever works on a run said last: `done`, `total`, `what` and `rate`, as far as they are known."""
    now = read_json(path / _PROGRESS) or {}
    return {key: now[key] for key in _TOLD if key in now}


def read_json(path: Path) -> dict[str, Any] | None:
    """What a small file says, or None where there is none, or half of one."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


class Teller:
    """Writes how far a run is, at most twice a second.

    Args:
        path: Of the run's folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last = 0.0
        self._began: tuple[float, int] | None = None

    def __call__(self, done: int, total: int, what: str) -> None:
        """See `bench.Told`."""
        now = time.monotonic()
        if self._began is None or done < self._began[1]:
            self._began = (now, done)
        if now - self._last < _SECONDS:
            return
        self._last = now
        began, before = self._began
        rate = (done - before) / (now - began) if now > began else 0.0
        content = {"done": done, "total": total, "what": what, "rate": rate}
        # No run ends because nobody could be told.
        with suppress(RequestError):
            write_files(self.path, {_PROGRESS: json_text(content).encode()})
