"""The frame around every page: configuration, navigation, the shared pick in the sidebar."""

from __future__ import annotations

from pathlib import Path

import streamlit as st
from streamlit.navigation.page import StreamlitPage

from salviz.ui import panels, session, sidebar, state

_ROOT = Path(__file__).parents[2]
_HEAD_START = 0.7
"""Seconds the first paint has before PyTorch is loaded."""


def _pages() -> list[StreamlitPage]:
    # The first page answers at "/"; its file's own address is kept for links that name it. No material icons: the
    # browser would fetch them from another host as the tab's icon.
    explore = _ROOT / "pages" / "explore.py"
    return [
        st.Page(explore, title="Explore", url_path="home", default=True),
        st.Page(explore, title="Explore", url_path="explore", visibility="hidden"),
        st.Page(_ROOT / "pages" / "compare.py", title="Compare", url_path="compare"),
        st.Page(_ROOT / "pages" / "sanity.py", title="Sanity checks", url_path="sanity"),
        st.Page(_ROOT / "pages" / "batch.py", title="Batch", url_path="batch"),
    ]


def _name(page: StreamlitPage) -> str:
    """Which page it is, whatever address it was opened at."""
    return "explore" if page.url_path in ("", "home", "explore") else page.url_path


def run() -> None:
    """One run of the app: the whole of `app.py`."""
    st.set_page_config(
        page_title="Salviz",
        page_icon=str(_ROOT / "assets" / "icon.png"),
        layout="wide",
        initial_sidebar_state="auto",
    )
    pages = _pages()
    page = st.navigation(pages, position="top")
    if not session.is_warm():
        _cold()
        return
    error = session.warm_up_error()
    if error is not None:
        st.error(error)
        return
    name = _name(page)
    state.adopt_url(name)
    # Runs have pictures, models and methods of their own; what is picked for the other pages stays.
    pick = sidebar.choose(name) if name != "batch" else sidebar.Pick(None, None, None, [])
    if st.session_state.pop("_switch", None):
        # A callback cannot open a page; and before the sidebar is drawn, Streamlit would forget what was picked there.
        st.switch_page(pages[0], query_params=state.leave_for("explore"))
    pick.problems[:0] = state.notices()
    st.session_state["_pick"] = pick
    with state.whole_run():
        page.run()


def guard() -> sidebar.Pick:
    """What the person picked; the first call of every page file.

    A server that has not run `app.py` yet finds the files in `pages/` by itself and runs them without the frame: then
    the navigation is announced and the page run again inside it.
    """
    pick = st.session_state.pop("_pick", None)
    if pick is None:
        st.navigation(_pages(), position="top")
        st.rerun()
    chosen: sidebar.Pick = pick
    return chosen


def _cold() -> None:
    """The first seconds of a server: the layout is there while PyTorch loads."""
    with st.sidebar:
        for height in (110, 60, 60, 60, 60):
            st.skeleton(height)
    panels.skeletons("Starting: loading PyTorch, once for this server …")
    session.start_warm_up(after=_HEAD_START)
    _poll()


@st.fragment(run_every=0.4)
def _poll() -> None:
    # Waiting costs nothing; runs of the page compete with the imports for the interpreter.
    if session.wait_until_warm(2.0):
        st.rerun()
