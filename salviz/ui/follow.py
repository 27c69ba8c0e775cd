"""From a request to its result on the page: at once where it is cheap or known, else in the background."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import streamlit as st

from salviz.jobs import Job
from salviz.ui import session

CHEAP_SECONDS = 4.0
"""Work estimated below this follows every change by itself; costlier work waits for Compute."""

PATIENT_SECONDS = 30.0
"""Methods of a few passes follow every change up to this: on a slow machine too, the first visit shows a map."""

PATIENCE_SECONDS = float(os.environ.get("SALVIZ_PATIENCE", "0.4"))
"""How long a run of the page waits for a result before it shows progress instead."""


@dataclass
class Followed:
    """Where a request stands.

    Attributes:
        result: The result, or what is known so far, or None.
        job: The work under way, or None.
        state: `done`, `running`, `waiting` (for Compute), `failed` or `stopped`.
        error: One sentence, once failed.
        seconds: How long it should take.
    """

    result: Any
    job: Job | None
    state: str
    error: str | None
    seconds: float


def estimate(request: Any, loaded: Any) -> float:
    """Seconds a request should take: passes times the measured time of a pass."""
    from salviz import methods

    card = methods.get(request.method).card
    rows = 1 + len(request.variants) + len(request.changes)
    passes = card.passes(request.settings, loaded.classifier.preprocessing.input_size)
    seconds: float = max(1.0, passes) * rows * loaded.seconds_per_pass
    return seconds


def _is_costly(request: Any, loaded: Any, seconds: float) -> bool:
    """Whether work waits for the person to ask for it."""
    from salviz import methods
    from salviz.exploration import SLOW_PASSES

    passes = methods.get(request.method).card.passes(request.settings, loaded.classifier.preprocessing.input_size)
    return seconds > (PATIENT_SECONDS if passes <= SLOW_PASSES else CHEAP_SECONDS)


def follow(slot: str, request: Any, picture: Any, loaded: Any) -> Followed:
    """Ask for an exploration and say where it stands.

    Args:
        slot: Which part of the page asks; a new request in a slot leaves the one before.
        request: What is asked.
        picture: Its picture.
        loaded: Its classifier.
    """
    key = request.digest
    runner = session.runner()
    seconds = estimate(request, loaded)
    outcome = st.session_state.setdefault(f"_outcome.{slot}", {})
    if not runner.is_done(key):
        if key in outcome:
            state, error = outcome[key]
            return Followed(runner.peek(key), None, state, error, seconds)
        if _is_costly(request, loaded, seconds) and st.session_state.get(f"_go.{slot}") != key:
            return Followed(runner.peek(key), None, "waiting", None, seconds)

    def work(job: Job) -> Any:
        from salviz.exploration import explore

        found = explore(loaded.classifier, picture, request, progress=job.tick, publish=job.publish)
        loaded.learn(found.passes, found.seconds)
        return found

    visit = session.visit()
    job = runner.submit(key, work, watcher=visit.name)
    visit.watch(slot, job)
    if job.is_open:
        job.finished.wait(PATIENCE_SECONDS)
    if job.is_open:
        return Followed(job.partial, job, "running", None, seconds)
    if job.state == "done":
        return Followed(job.result, None, "done", None, seconds)
    state = "failed" if job.state == "failed" else "stopped"
    outcome.clear()
    outcome[key] = (state, job.error)
    return Followed(runner.peek(key), None, state, job.error, seconds)


def compute(slot: str, request: Any) -> None:
    """The person wants it: costly work may start, failed or stopped work may start again."""
    st.session_state[f"_outcome.{slot}"] = {}
    st.session_state[f"_go.{slot}"] = request.digest


def stop(slot: str) -> None:
    """The person no longer wants the work of a slot."""
    visit = session.visit()
    job = visit.jobs.get(slot)
    if job is not None:
        job.leave(visit.name)
        st.session_state[f"_outcome.{slot}"] = {job.key: ("stopped", None)}


def duration(seconds: float) -> str:
    """`3 s`, `2 min`, `1.5 h`: as exact as an estimate deserves."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def progress(slot: str, followed: Followed, name: str) -> None:
    """Progress and Cancel of work under way; redraws the page when something new has come."""
    job = followed.job
    if job is not None:
        _progress(slot, job, name, _rows(job.partial))


@st.fragment(run_every=0.5)
def _progress(slot: str, job: Job, name: str, shown: int) -> None:
    job.look(session.visit().name)
    if not job.is_open or _rows(job.partial) != shown:
        st.rerun()
    before = session.runner().place(job)
    with st.container(horizontal=True, vertical_alignment="center"):
        if job.state == "queued" and before:
            st.progress(0.0, text=f"{name}: waiting, {before} before you")
        else:
            share = min(1.0, job.done / job.total) if job.total else 0.0
            st.progress(share, text=f"{name}: {job.done} of {job.total or '…'} passes")
        st.button("Cancel", key=f"cancel.{slot}", on_click=stop, args=(slot,))


def _rows(exploration: Any) -> int:
    return 0 if exploration is None else len(exploration.raw)
