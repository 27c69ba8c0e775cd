"""From a request to its result on the page: at once where it is cheap or known, else in the background."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import streamlit as st

from salviz.jobs import Job
from salviz.ui import session

CHEAP_SECONDS = 4.0
"""Work estimated below this follows every change by itself; costlier work waits for Compute."""

TRIFLE_SECONDS = 0.25
"""A row of a comparison below this never waits, however many there are."""

PATIENT_SECONDS = 30.0
"""Methods of a few passes follow every change up to this: on a slow machine too, the first visit shows a map."""

PATIENCE_SECONDS = float(os.environ.get("SALVIZ_PATIENCE", "0.4"))
"""How long a run of the page waits for a result before it shows progress instead."""


@dataclass(frozen=True)
class Task:
    """Something a page may ask for.

    Attributes:
        key: Digest of everything that determines the result.
        seconds: How long it should take.
        is_costly: Whether it waits for the person to ask for it.
        run: Does the work: called with the job, returns the result.
    """

    key: str
    seconds: float
    is_costly: bool
    run: Callable[[Job], Any]


@dataclass
class Followed:
    """Where a task stands.

    Attributes:
        key: Of the task.
        result: The result, or what is known so far, or None.
        job: The work under way, or None.
        state: `done`, `running`, `waiting` (for Compute), `failed` or `stopped`.
        error: One sentence, once failed.
        seconds: How long it should take.
        published: How often the job had published when `result` was taken.
        is_refused: Whether it failed because it cannot be, so that trying again is of no use.
    """

    key: str
    result: Any
    job: Job | None
    state: str
    error: str | None
    seconds: float
    published: int = 0
    is_refused: bool = False


def exploring(request: Any, picture: Any, loaded: Any) -> Task:
    """The task of an exploration.

    Args:
        request: What is asked.
        picture: Its picture.
        loaded: Its classifier.
    """
    from salviz import durations, methods
    from salviz.exploring import SLOW_PASSES

    passes = methods.get(request.method).card.cost(loaded.classifier, request.settings)
    rows = 1 + len(request.variants) + len(request.changes)
    seconds = rows * durations.seconds(loaded, {request.method: request.settings})

    def run(job: Job) -> Any:
        from salviz.exploring import explore

        found = explore(loaded.classifier, picture, request, progress=job.tick, publish=job.publish)
        durations.learn(loaded, found)
        return found

    patience = PATIENT_SECONDS if passes <= SLOW_PASSES else CHEAP_SECONDS
    return Task(request.digest, seconds, seconds > patience, run)


def follow(slot: str, task: Task) -> Followed:
    """Ask for a task's result and say where it stands.

    Args:
        slot: Which part of the page asks; a new task in a slot leaves the one before.
        task: What is asked.
    """
    runner, visit, key = session.runner(), session.visit(), task.key
    outcome = st.session_state.setdefault(f"_outcome.{slot}", {})
    watched = visit.jobs.get(slot)
    if watched is not None and watched.key == key and watched.state in ("failed", "cancelled"):
        # It ended between two runs of the page: that is an answer, not a reason to begin again.
        _note(outcome, watched)
        del visit.jobs[slot]
    if not runner.is_done(key):
        if key in outcome:
            return _ended(task, outcome)
        # What runs already, for somebody else or from before a reload, is joined whatever it costs.
        is_wanted = st.session_state.get(f"_go.{slot}") == key or runner.is_open(key)
        if task.is_costly and not is_wanted:
            return Followed(key, runner.peek(key), None, "waiting", None, task.seconds)
    job = runner.submit(key, task.run, watcher=visit.name)
    visit.watch(slot, job)
    if job.is_open:
        job.finished.wait(PATIENCE_SECONDS)
    if job.is_open:
        published = job.published
        return Followed(key, job.partial, job, "running", None, task.seconds, published)
    if job.state == "done":
        return Followed(key, job.result, None, "done", None, task.seconds)
    _note(outcome, job)
    del visit.jobs[slot]
    return _ended(task, outcome)


_Outcome = dict[str, tuple[str, str | None, bool]]
"""Of the last task that ended without a result: how, the sentence, and whether it was refused."""


def _note(outcome: _Outcome, job: Job) -> None:
    """Remember how a job ended without a result, until the person asks again."""
    outcome.clear()
    outcome[job.key] = ("failed" if job.state == "failed" else "stopped", job.error, job.is_refused)


def _ended(task: Task, outcome: _Outcome) -> Followed:
    state, error, is_refused = outcome[task.key]
    known = session.runner().peek(task.key)
    return Followed(task.key, known, None, state, error, task.seconds, is_refused=is_refused)


def compute(slot: str, key: str) -> None:
    """The person wants it: costly work may start, failed or stopped work may start again."""
    st.session_state[f"_outcome.{slot}"] = {}
    st.session_state[f"_go.{slot}"] = key


def offer(slot: str, followed: Followed, *, waiting: str, name: str) -> None:
    """The button that starts work which waits, was stopped or failed, and a sentence that says which.

    Args:
        slot: Which part of the page asks.
        followed: Where the work stands; neither running nor done.
        waiting: Said while it waits: what it will cost.
        name: What the work is called.
    """
    sentence = {
        "waiting": waiting,
        "stopped": f"{name} was stopped.",
        "failed": followed.error or f"{name} failed.",
    }[followed.state]
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button("Compute", type="primary", key="compute", on_click=compute, args=(slot, followed.key))
        st.markdown(sentence, width="content")


def stop(slot: str) -> None:
    """The person no longer wants the work of a slot."""
    visit = session.visit()
    job = visit.jobs.get(slot)
    if job is not None:
        job.leave(visit.name)
        st.session_state[f"_outcome.{slot}"] = {job.key: ("stopped", None, False)}


def duration(seconds: float) -> str:
    """`3 s`, `2 min`, `1.5 h`: as exact as an estimate deserves."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def progress(slot: str, followed: Followed, name: str, *, unit: str = "passes") -> None:
    """Progress and Cancel of work under way; redraws the page when something new has come."""
    if followed.job is not None:
        _progress(slot, followed.job, name, followed.published, unit)


@st.fragment(run_every=0.5)
def _progress(slot: str, job: Job, name: str, shown: int, unit: str) -> None:
    job.look(session.visit().name)
    if not job.is_open or job.published != shown:
        st.rerun()
    before = session.runner().place(job)
    with st.container(horizontal=True, vertical_alignment="center"):
        if job.state == "queued" and before:
            st.progress(0.0, text=f"{name}: waiting, {before} before you")
        else:
            share = min(1.0, job.done / job.total) if job.total else 0.0
            st.progress(share, text=f"{name}: {job.done} of {job.total or '…'} {unit}")
        st.button("Cancel", key=f"cancel.{slot}", on_click=stop, args=(slot,))
