"""What visitors share - classifiers, jobs, results - and what ends with a visit."""

from __future__ import annotations

import threading
import uuid
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import streamlit as st

from salviz.jobs import Job, JobRunner

_warm = threading.Event()
_warming = threading.Lock()
_state: dict[str, Any] = {"started": False, "error": None}


def is_warm() -> bool:
    """Whether torch and the model libraries are loaded."""
    return _warm.is_set()


def start_warm_up(*, after: float = 0.0) -> None:
    """Load the heavy libraries in a thread, once a server.

    Args:
        after: Seconds to wait first. Importing keeps the interpreter busy: what was just drawn should be on its way.
    """
    with _warming:
        if _state["started"]:
            return
        _state["started"] = True
    timer = threading.Timer(after, _warm_up)
    timer.name, timer.daemon = "salviz-warm-up", True
    timer.start()


def wait_until_warm(seconds: float) -> bool:
    """Start loading and wait for it; whether it is done."""
    start_warm_up()
    return _warm.wait(seconds)


def _warm_up() -> None:
    """Import the heavy libraries off the page's thread; the first paint does not wait for them."""
    import gc
    import importlib
    import logging

    try:
        for name in (
            "torch",
            "timm",
            "salviz.comparison",
            "salviz.exploring",
            "salviz.figures",
            "salviz.render",
            "salviz.export",
        ):
            importlib.import_module(name)
            # A collection of garbage walks through the libraries' million objects and holds up every page, all work
            # and first of all what is still to be imported: they stay for good, so they are left out of it. (Where
            # the app is run without its configuration, Streamlit collects after every run of a page.)
            gc.freeze()
    except Exception:
        logging.getLogger(__name__).exception("loading the libraries failed")
        _state["error"] = "PyTorch could not be loaded; the log of the server says why."
    finally:
        _warm.set()


def warm_up_error() -> str | None:
    """Why the libraries could not be loaded, or None."""
    error: str | None = _state["error"]
    return error


@st.cache_resource(show_spinner=False)
def runner() -> JobRunner:
    """The one queue of work of this server."""
    return JobRunner(size=lambda result: int(result.nbytes))


@st.cache_resource(show_spinner=False)
def classifiers() -> Any:
    """The loaded classifiers of this server."""
    from salviz.classifiers.store import ClassifierStore

    return ClassifierStore()


@dataclass
class Tops:
    """The most probable classes of pictures seen lately, so that the next visitor's page need not be drawn twice."""

    capacity: int = 500
    _known: OrderedDict[Any, tuple[int, ...]] = field(default_factory=OrderedDict)

    def get(self, key: Any) -> tuple[int, ...]:
        """Classes, the most probable first; nothing where the picture has not been classified yet."""
        return self._known.get(key, ())

    def put(self, key: Any, top: tuple[int, ...]) -> bool:
        """Remember, and whether it is news."""
        if self._known.get(key) == top:
            return False
        self._known[key] = top
        while len(self._known) > self.capacity:
            self._known.popitem(last=False)
        return True


@st.cache_resource(show_spinner=False)
def tops() -> Tops:
    """What this server knows of pictures' classes."""
    return Tops()


class Rows:
    """Rows of comparisons made lately: another method beside them costs its own passes only."""

    def __init__(self, capacity: int = 64 * 2**20) -> None:
        """Nothing yet.

        Args:
            capacity: Bytes of tensors to keep, the latest.
        """
        self._capacity = capacity
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Any] = OrderedDict()

    def __contains__(self, digest: object) -> bool:
        """Whether the row of a request is known."""
        with self._lock:
            return digest in self._kept

    def known(self) -> dict[str, Any]:
        """All of them, by their request's digest."""
        with self._lock:
            return dict(self._kept)

    def put(self, found: Mapping[str, Any]) -> None:
        """Remember a comparison's rows."""
        with self._lock:
            for digest, row in found.items():
                self._kept.pop(digest, None)
                self._kept[digest] = row
            spent = sum(row.nbytes for row in self._kept.values())
            while spent > self._capacity and len(self._kept) > len(found):
                spent -= self._kept.popitem(last=False)[1].nbytes


@st.cache_resource(show_spinner=False)
def rows() -> Rows:
    """The rows this server knows."""
    return Rows()


@dataclass
class Visit:
    """One browser tab: a name to watch jobs under, and the jobs it watches."""

    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    jobs: dict[str, Job] = field(default_factory=dict)

    def watch(self, slot: str, job: Job) -> None:
        """Watch a job in a slot; the job watched there before is left."""
        before = self.jobs.get(slot)
        if before is not None and before is not job and before.is_open:
            before.leave(self.name)
        self.jobs[slot] = job
        job.look(self.name)

    def leave_all(self) -> None:
        """The tab was closed or is loaded anew: nobody here waits any more."""
        for job in self.jobs.values():
            job.linger(self.name)


def _end(visit: Visit) -> None:
    visit.leave_all()


@st.cache_resource(scope="session", on_release=_end, show_spinner=False)
def visit() -> Visit:
    """This tab's visit."""
    return Visit()
