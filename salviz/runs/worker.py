"""The worker: a process of its own that makes the runs which wait for a device, one after the other, and ends.

A page that asks for a run starts one where none is; closing the browser or the server leaves it at its work.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

import salviz
from salviz.errors import Cancelled, SalvizError
from salviz.runs import uploads
from salviz.runs.presence import holding
from salviz.runs.shelf import Shelf

logger = logging.getLogger(__name__)

LOG = "worker.log"

_started: dict[tuple[str, str], subprocess.Popen[bytes]] = {}
_starting = threading.Lock()


def _lock(shelf: Shelf, device: str) -> FileLock:
    return FileLock(shelf.root / f".worker-{device.replace(':', '-')}.lock")


def work(shelf: Shelf, device: str) -> None:
    """Make the runs that wait for a device until none waits; returns at once where another worker does so already.

    Args:
        shelf: Of the runs.
        device: Of `classifiers.store.devices()`.
    """
    shelf.root.mkdir(parents=True, exist_ok=True)
    while shelf.queue(device):
        try:
            with _lock(shelf, device).acquire(timeout=2):
                while waiting := shelf.queue(device):
                    _make(shelf, waiting[0], device)
                uploads.tidy(shelf)
        except Timeout:
            return
        # Asked for while the last one ended: the one who asked saw a worker and started none.


def _make(shelf: Shelf, name: str, device: str) -> None:
    from salviz.runs.bench import Changed, Options
    from salviz.runs.execution import begin, here, resume
    from salviz.runs.results import overview

    folder = shelf.folder(name)
    try:
        with holding(folder.path) as tell:
            if not shelf.begins(name):
                return
            options = Options(device)

            def told(done: int, total: int, what: str) -> None:
                if folder.is_cancelled:
                    raise Cancelled
                tell(done, total, what)

            loaded = None if folder.exists else begin(shelf.spec(name), folder, options, told=told)
            engine = partial(here, loaded=loaded)
            resume(folder, options, told=told, engine=engine, accepts_changes=shelf.accepts_changes(name))
            # The tables of a large run take a while; whoever opens its page should not wait for them.
            overview(folder)
            shelf.ended(name)
    except Cancelled:
        # Unless somebody asked for it again meanwhile.
        if folder.is_cancelled:
            shelf.ended(name)
    except SalvizError as error:
        shelf.ended(name, error=str(error), is_changed=isinstance(error, Changed))
    except Timeout:
        # Somebody makes it from the command line.
        shelf.ended(name)
    except Exception as error:
        logger.exception("the run %s failed", name)
        shelf.ended(name, error=f"The run failed ({type(error).__name__}); {LOG} beside the runs says why.")


def ensure(shelf: Shelf, device: str) -> None:
    """Start a worker where runs wait for a device and none is at work; it outlives whoever started it.

    Args:
        shelf: Of the runs.
        device: They wait for.
    """
    if not shelf.queue(device):
        return
    key = (str(shelf.root), device)
    with _starting:
        mine = _started.get(key)
        if mine is not None and mine.poll() is None:
            return
        lock = _lock(shelf, device)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return
        lock.release()
        with (shelf.root / LOG).open("ab") as log:
            _started[key] = subprocess.Popen(  # noqa: S603 - this program itself
                [sys.executable, "-m", "salviz", "work", "--device", device, str(shelf.root)],
                cwd=Path(salviz.__file__).parents[1],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                # Neither the server's end nor a Ctrl-C in its terminal is the worker's.
                start_new_session=True,
            )  # fmt: skip
        # What it leaves in the system's table when it ends is taken away.
        threading.Thread(target=_started[key].wait, name="salviz-worker", daemon=True).start()
