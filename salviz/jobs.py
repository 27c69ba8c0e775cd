"""Work in the background, one piece a device at a time, shared by everybody who asks for the same thing.

A job belongs to its watchers. It is cancelled when the last of them leaves or stops looking, so that a closed
browser does not keep the machine busy, and a class of thirty that presses the same button computes once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from salviz.errors import Cancelled, Refusal, SalvizError

logger = logging.getLogger(__name__)

State = Literal["queued", "running", "done", "failed", "cancelled"]

LEASE_SECONDS = 180.0
"""A watcher that has not looked for this long has gone; browsers slow hidden tabs to one look a minute."""

GRACE_SECONDS = 10.0
"""A closed tab's work goes on for so long, for the tab that a reload opens."""


@dataclass(eq=False)
class Job:
    """One piece of work.

    Attributes:
        key: Digest of the request; jobs with equal keys are the same job.
        state: `queued`, `running`, `done`, `failed` or `cancelled`.
        done: Steps made.
        total: Steps expected.
        partial: What is known so far, while running.
        published: How often something new was published.
        result: What came out, once `done`.
        error: One sentence, once `failed`.
        is_refused: Whether it failed because what was asked cannot be, so that trying again is of no use.
        started: Monotonic time at which the work began.
    """

    key: str
    state: State = "queued"
    done: int = 0
    total: int = 0
    partial: Any = None
    published: int = 0
    result: Any = None
    error: str | None = None
    is_refused: bool = False
    started: float | None = None
    finished: threading.Event = field(default_factory=threading.Event)
    _watchers: dict[str, float] = field(default_factory=dict)
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def is_open(self) -> bool:
        """Whether the job still waits or works."""
        return self.state in ("queued", "running")

    def tick(self, done: int, total: int) -> None:
        """Called by the work between passes.

        Raises:
            Cancelled: Nobody waits for the result any more.
        """
        self.done, self.total = done, total
        oldest = time.monotonic() - LEASE_SECONDS
        with self._guard:
            # Noted, so that nobody who comes now is given a job that is about to stop.
            if all(seen < oldest for seen in self._watchers.values()):
                self._cancelled.set()
        if self._cancelled.is_set():
            raise Cancelled

    def publish(self, partial: Any) -> None:
        """Called by the work when it has something worth showing."""
        self.partial = partial
        self.published += 1

    def look(self, watcher: str) -> bool:
        """Note that a watcher still waits for the job.

        Returns:
            Whether the job goes on; False where its last watcher has left and it is about to stop.
        """
        with self._guard:
            self._watchers[watcher] = time.monotonic()
            return not self._cancelled.is_set()

    def leave(self, watcher: str) -> None:
        """A watcher no longer wants the job; the last one to leave cancels it."""
        with self._guard:
            self._watchers.pop(watcher, None)
            if not self._watchers:
                self._cancelled.set()

    def linger(self, watcher: str) -> None:
        """A watcher has gone who may come back at once, as a reload does: it counts for `GRACE_SECONDS` more."""
        with self._guard:
            if watcher in self._watchers:
                self._watchers[watcher] = time.monotonic() - LEASE_SECONDS + GRACE_SECONDS


Task = Callable[[Job], Any]


def _stopped(key: str) -> str:
    return f"{key}|stopped"


class JobRunner:
    """Runs jobs one after the other and remembers the latest results.

    Args:
        capacity: Bytes of results to keep.
        size: Bytes a result takes.
    """

    def __init__(self, *, capacity: int = 512 * 2**20, size: Callable[[Any], int] = lambda result: 2**20) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="salviz")
        self._lock = threading.Lock()
        self._open: OrderedDict[str, Job] = OrderedDict()
        self._kept: OrderedDict[str, tuple[Job, int]] = OrderedDict()
        self._capacity = capacity
        self._size = size

    def submit(self, key: str, task: Task, *, watcher: str) -> Job:
        """The job of a key: a finished one, one under way, or a new one.

        Args:
            key: Digest of everything that determines the result.
            task: Called with the job in the worker thread; returns the result.
            watcher: Who asks.
        """
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key][0]
            job = self._open.get(key)
            # A job whose last watcher just left is about to stop: somebody new needs a fresh one.
            if job is not None and job.look(watcher):
                return job
            job = Job(key)
            stopped = self._kept.get(_stopped(key))
            # What the one before had found is shown until this one has found more.
            job.partial = stopped[0].partial if stopped else None
            job.look(watcher)
            self._open[key] = job
            self._pool.submit(self._run, job, task)
            return job

    def peek(self, key: str) -> Any:
        """What is known of a key without asking for it: a result, what a stopped job had found, or None."""
        with self._lock:
            job = self._open.get(key)
            if job is not None:
                return job.partial
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key][0].result
            stopped = self._kept.get(_stopped(key))
            return stopped[0].partial if stopped else None

    def is_done(self, key: str) -> bool:
        """Whether the result of a key is at hand."""
        with self._lock:
            return key in self._kept

    def is_open(self, key: str) -> bool:
        """Whether somebody's job of this key waits or works."""
        with self._lock:
            return key in self._open

    def place(self, job: Job) -> int:
        """How many jobs are before this one (0: it runs or is over)."""
        with self._lock:
            waiting = [other for other in self._open.values() if other.is_open]
        return waiting.index(job) if job in waiting else 0

    def _run(self, job: Job, task: Task) -> None:
        if not job._cancelled.is_set():
            job.state, job.started = "running", time.monotonic()
        try:
            if job._cancelled.is_set():
                raise Cancelled
            job.result = task(job)
            job.state = "done"
        except Cancelled:
            job.state = "cancelled"
        except SalvizError as error:
            job.is_refused = isinstance(error, Refusal)
            job.error, job.state = str(error), "failed"
        except Exception:
            logger.exception("job %s failed", job.key)
            job.error, job.state = (
                "Something went wrong inside Salviz; the log of the server says what.",
                "failed",
            )
        finally:
            with self._lock:
                if self._open.get(job.key) is job:
                    del self._open[job.key]
                if job.state == "done":
                    job.partial = None
                    self._kept.pop(_stopped(job.key), None)
                    self._keep(job.key, job, job.result)
                elif job.partial is not None:
                    # What a stopped job had found stays on the page until something else is asked for.
                    self._keep(_stopped(job.key), job, job.partial)
            job.finished.set()

    def _keep(self, key: str, job: Job, result: Any) -> None:
        self._kept.pop(key, None)
        self._kept[key] = (job, self._size(result))
        while len(self._kept) > 1 and sum(size for _, size in self._kept.values()) > self._capacity:
            self._kept.popitem(last=False)
