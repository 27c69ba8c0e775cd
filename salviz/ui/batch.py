"""The Batch page: which run is looked at, how it stands, and the list of all."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import streamlit as st

from salviz.errors import SalvizError
from salviz.ui import follow, panels, session, state

if TYPE_CHECKING:
    from salviz.runs import Spec
    from salviz.runs.folder import RunFolder
    from salviz.runs.shelf import Shelf, Standing

CANNOT_WRITE = (
    "This server cannot write anything down where its runs live. Whoever runs it can name another folder in "
    "SALVIZ_RUNS_DIR."
)

_LISTED = 30
_STATES = {
    "waiting": ":material/schedule: waits",
    "running": ":material/play_arrow: running",
    "complete": ":material/check: complete",
    "cancelled": ":material/stop: cancelled",
    "failed": ":material/error: failed",
    "interrupted": ":material/pause: interrupted",
}


@dataclass
class View:
    """What the page shows.

    Attributes:
        shelf: Of the server's runs.
        standing: Of the run that is looked at; None for a new one.
        spec: What it was asked to do.
        folder: Where it lives.
        problems: One sentence each.
    """

    shelf: Shelf
    standing: Standing | None = None
    spec: Spec | None = None
    folder: RunFolder | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def run(self) -> RunFolder:
        """The folder of the run that is looked at."""
        assert self.folder is not None  # noqa: S101 - the page asked
        return self.folder

    @property
    def asked(self) -> Spec:
        """What the run that is looked at was asked to do."""
        assert self.spec is not None  # noqa: S101 - the page asked
        return self.spec


def look() -> View:
    """The run that the link names, with the list of runs in the sidebar."""
    from salviz.runs.shelf import Shelf
    from salviz.runs.worker import ensure

    view = View(Shelf())
    name = st.session_state["run"]
    if name:
        try:
            view.folder, view.spec = view.shelf.folder(name), view.shelf.spec(name)
            view.standing = view.shelf.standing(name)
            if view.standing.state == "waiting":
                # Its worker may have died, or the machine was started anew.
                ensure(view.shelf, view.standing.device)
        except SalvizError as error:
            view.problems.append(str(error))
            view.standing = None
    _history(view)
    return view


def _history(view: View) -> None:
    """All runs of the server, the latest first."""
    from salviz.runs import words

    with st.sidebar:
        st.header("Salviz", anchor=False)
        st.button(
            "New run", icon=":material/add:", key="new_run", on_click=open_run, args=("",), width="stretch",
            type="primary" if view.standing is None else "secondary",
        )  # fmt: skip
        names = view.shelf.names()
        if not names:
            st.caption("Runs of this server will be listed here.")
            return
        st.subheader("Runs", anchor=False)
        for name in names[:_LISTED]:
            shown = view.standing if view.standing is not None and view.standing.name == name else None
            try:
                standing, spec = shown or view.shelf.standing(name), view.shelf.spec(name)
            except SalvizError:
                continue
            st.button(
                panels.plain(words.run(spec)), key=f"open.{name}", on_click=open_run, args=(name,), width="stretch",
                type="primary" if shown else "tertiary", help=panels.plain(in_words(spec)),
            )  # fmt: skip
            models = panels.counted(len(spec.models), "model", "models")
            methods = panels.counted(len(spec.methods), "method", "methods")
            told = f"{_STATES[standing.state]}; asked for {_ago(standing.asked)}"
            st.caption(f"{told}  \n{panels.plain(_pictures(spec))}, {models}, {methods}")
        if len(names) > _LISTED:
            st.caption(f"And {len(names) - _LISTED} older ones.")


def _ago(when: float) -> str:
    seconds = max(0.0, time.time() - when)
    if seconds < 90:
        return "just now"
    return f"{follow.duration(seconds) if seconds < 48 * 3600 else f'{seconds / 86400:.0f} days'} ago"


def open_run(name: str) -> None:
    """Look at a run; empty for a new one."""
    st.session_state["run"] = name
    for key in ("score", "of", "sort", "change"):
        st.session_state[key] = ""


def _pictures(spec: Spec) -> str:
    found = "all pictures" if spec.images is None else panels.counted(spec.images, "picture", "pictures")
    classes = [str(one) for one in spec.classes or ()]
    if not classes:
        return found
    return f"{found} of {', '.join(classes) if len(classes) <= 3 else f'{len(classes)} classes'}"


def in_words(spec: Spec) -> str:
    """What a run does, in a line."""
    from salviz.runs import words

    models = ", ".join(words.models(spec.models).values())
    titles = list(words.methods(spec.methods).values())
    methods = ", ".join(titles) if len(titles) <= 4 else f"{len(titles)} methods"
    return f"{_pictures(spec)}, seed {spec.seed}; {models}; {methods}"


def header(view: View) -> None:
    """What is on screen, with the link."""
    from salviz.runs import words

    name = "New batch run" if view.spec is None or view.standing is None else words.run(view.spec)
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.title(panels.plain(name), anchor=False, width="stretch")
        if view.standing is not None:
            # A link to the form would not hold what was filled in.
            panels.link(is_shareable=True)
    if view.standing is not None:
        st.caption(panels.plain(in_words(view.asked)))


def status(view: View) -> None:
    """How the run stands, in one line that is always there, and what can be done about it."""
    standing = view.standing
    assert standing is not None  # noqa: S101 - the page asked
    with st.container(key="status"):
        if standing.is_open:
            _progress(view.shelf, standing)
            return
        with st.container(horizontal=True, vertical_alignment="center"):
            if standing.is_changed:
                st.button(
                    "Make it anew", type="primary", key="resume", on_click=_resume, args=(view.shelf, standing),
                    help="With the code and weights of today; what they do not change is kept.",
                )  # fmt: skip
            elif standing.state != "complete":
                st.button("Resume", type="primary", key="resume", on_click=_resume, args=(view.shelf, standing))
            st.markdown(_sentence(standing), width="stretch")
            with st.popover("More", icon=":material/more_horiz:"):
                _more(view)


def _sentence(standing: Standing) -> str:
    if standing.is_changed:
        # What failed says it with the server's paths.
        return "Salviz or the weights have changed since this run was begun, so its results would not belong together."
    made = f"{standing.done:,} of {standing.total:,} explanations are there" if standing.total else "nothing is there"
    return {
        "complete": f"Complete: {standing.done:,} explanations.",
        "cancelled": f"Cancelled; {made}.",
        "interrupted": f"Its worker was interrupted; {made}, and nothing of it is lost.",
        "failed": f"{panels.plain(standing.error)} {made[0].upper()}{made[1:]}.",
    }[standing.state]


def _more(view: View) -> None:
    from salviz.plain import json_text

    standing = view.standing
    assert standing is not None  # noqa: S101 - the page asked
    st.markdown("The same run from the command line:")
    st.code("salviz run --spec spec.json --out RUN", language=None)
    spec = json_text(view.asked.as_dict(), indent=2)
    st.download_button(
        "Spec (JSON)", spec, "spec.json", on_click="ignore", type="tertiary", key="download.spec",
        icon=":material/download:",
    )  # fmt: skip
    with st.popover("Delete this run", icon=":material/delete:"):
        st.markdown("This deletes all that it found, for everybody.")
        st.button("Delete", type="primary", key="delete", on_click=_remove, args=(view.shelf, standing.name))


@st.fragment(run_every=1.0)
def _progress(shelf: Shelf, shown: Standing) -> None:
    from salviz.runs.worker import ensure

    try:
        standing = shelf.standing(shown.name)
    except SalvizError:
        st.rerun()
    if standing.state != shown.state:
        st.rerun()
    if standing.state == "waiting":
        ensure(shelf, standing.device)
    with st.container(horizontal=True, vertical_alignment="center"):
        share = min(1.0, standing.done / standing.total) if standing.total else 0.0
        st.progress(share if standing.state == "running" else 0.0, text=told(standing))
        st.button("Cancel", key="cancel", on_click=_cancel, args=(shelf, standing.name))
    _look_again(standing)


_AGAIN_SECONDS = 10.0


def _look_again(standing: Standing) -> None:
    """Results on the page follow the run, now and then."""
    now = st.session_state
    done, when = now.get("_results_seen", (-1, 0.0))
    if standing.state == "running" and standing.done != done and time.monotonic() - when > _AGAIN_SECONDS:
        now["_results_seen"] = (standing.done, time.monotonic())
        if done >= 0:
            st.rerun()


def told(standing: Standing) -> str:
    """How far a run is, for its bar of progress."""
    if standing.state == "waiting":
        if not standing.place:
            return "Its worker is starting …"
        return f"Waiting: {panels.counted(standing.place, 'run', 'runs')} before this one on {standing.device}"
    if not standing.total:
        return "Loading the model …"
    left = standing.seconds_left
    rest = "" if left is None else f", about {follow.duration(left)} left"
    rate = f", {standing.rate:.2g} a second" if standing.rate else ""
    return f"{standing.done:,} of {standing.total:,}{rate}{rest} ({panels.plain(standing.what)})"


def _cancel(shelf: Shelf, name: str) -> None:
    try:
        shelf.cancel(name)
    except SalvizError as error:
        state.notice(str(error))


def _resume(shelf: Shelf, standing: Standing) -> None:
    from salviz.runs.worker import ensure

    try:
        shelf.resume(standing.name, accepts_changes=standing.is_changed)
        ensure(shelf, standing.device)
    except SalvizError as error:
        state.notice(str(error))


def _remove(shelf: Shelf, name: str) -> None:
    try:
        shelf.remove(name)
        open_run("")
    except SalvizError as error:
        state.notice(str(error))


@st.cache_resource(show_spinner=False, ttl=600, max_entries=20)
def opened(id: str) -> Any:
    """An image set, listed once a server and a few minutes.

    Raises:
        SalvizError: There is no such set, or it cannot be read.
    """
    from salviz.datasets import open_set

    return open_set(id)


def loaded(model: str, device: str) -> Any:
    """A classifier of a run on its device."""
    return session.classifiers().get(model, device=device)
