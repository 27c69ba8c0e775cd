"""The way between the URL and the widgets; what a link holds is in `ui.fields`.

Every widget of the pick is made with `persist_state="session"`. A browser loads the code of a kind of widget when it
first meets one, which takes seconds on a slow line. What a link says is told to the widget by the run alone that read
the link, and a later run that comes before the code has its message replaced: then the widget would begin with its
first option and write that into the address. What persists is told by every run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from salviz.errors import SalvizError
from salviz.ui.fields import FIELDS, LOOKS, SETTING, Field, PartlyError, meant, text


def notice(sentence: str) -> None:
    """Say something about the pick until the person picks something else."""
    if st.session_state.pop("_noticed", None) is not None:
        st.session_state["_notices"] = []
    st.session_state["_notices"] = [*st.session_state.get("_notices", []), sentence]


def notices() -> list[str]:
    """What `notice` was given for the pick as it stands; called once the widgets of the pick are made."""
    picked = {key: text for key, text in link_parameters().items() if key not in LOOKS}
    # One upload after another has the same link.
    picked["_upload"] = str(st.session_state.get("_upload", ("",))[0])
    if st.session_state.setdefault("_noticed", picked) != picked:
        st.session_state["_notices"] = []
    return list(st.session_state.get("_notices", []))


def adopt_url(page: str) -> None:
    """Take over what a new URL says, before any widget is made; what makes no sense is left out with a notice.

    Args:
        page: The page that is shown. Its links hold what all pages share and what is its own; another page's own
            choices stay as they were.
    """
    for field in FIELDS:
        st.session_state.setdefault(field.key, field.default)
    current = st.query_params.to_dict()
    before = st.session_state.get("_page", page)
    st.session_state["_page"] = page
    if before != page and (page, current) == st.session_state.get("_passed"):
        current = st.session_state["_left"]
    if st.session_state.get("_drawn_page", page) != page:
        # A widget of the other page with the same key is another widget: what a visit never touched would begin anew
        # as the smallest value, or nothing. Said again, it is taken over. Until the page was drawn to its end: a run
        # that something else cut short may not have come to its widgets.
        for field in FIELDS:
            st.session_state[field.key] = st.session_state[field.key]
    if before != page and not current:
        # The navigation opens a page without a query: the pick goes along, and is written at the end of the run.
        st.session_state["_url"] = current
        return
    # Any other run may carry an address from before our last write: its message left before ours came.
    if "_url" in st.session_state and (current == st.session_state["_url"] or not went_back()):
        return
    st.session_state["_notices"] = []
    for key in ("_noticed", "_turn"):
        st.session_state.pop(key, None)
    for field in _fields(page):
        if field.key not in current:
            st.session_state[field.key] = field.default
            continue
        try:
            st.session_state[field.key] = field.read(current[field.key])
        except (ValueError, SalvizError) as error:
            is_plain = "invalid literal" not in str(error) and "could not convert" not in str(error)
            rest = error.rest if isinstance(error, PartlyError) else None
            left_out(field.key, str(error) if is_plain else "it must be a number", is_part=bool(rest))
            st.session_state[field.key] = rest or field.default
    for key in current:
        known = meant(key, page)
        if known:
            left_out(key, f"perhaps “{known}” is meant")
    st.session_state["_settings"] = {
        key.removeprefix(SETTING): value for key, value in current.items() if key.startswith(SETTING)
    }
    st.session_state["_url"] = current


def went_back() -> bool:
    """Whether this run was asked for by the browser's Back or Forward button."""
    context = get_script_run_ctx()
    return context is not None and context.is_history_navigation


def leave_for(page: str) -> dict[str, str]:
    """What the link of another page will say, which is opened with it.

    Streamlit puts two addresses into the browser's history on the way: the old page with the new query, and the new
    page. Back stops at the first, which then stands for the address that was left.

    Args:
        page: The other page.
    """
    parameters = link_parameters(page)
    st.session_state["_left"] = st.session_state["_url"]
    st.session_state["_passed"] = (st.session_state["_page"], parameters)
    return parameters


def left_out(key: str, reason: str, *, is_part: bool = False) -> None:
    """The notice for something in the link that makes no sense.

    Args:
        key: Its name in the link.
        reason: Why.
        is_part: Whether the rest of its value was taken.
    """
    notice(f"{'Part of the' if is_part else 'The'} link's “{key}” was left out: {reason.rstrip('.')}.")


def _fields(page: str) -> list[Field]:
    return [field for field in FIELDS if field.page in ("", page)]


def link_parameters(page: str = "") -> dict[str, str]:
    """What the URL should say: every field of the page that differs from its default.

    Args:
        page: Empty for the one that is shown.
    """
    found = {
        field.key: field.write(st.session_state[field.key])
        for field in _fields(page or st.session_state.get("_page", "explore"))
        if field.key in st.session_state and st.session_state[field.key] != field.default
    }
    return {
        **found,
        **{SETTING + key: text(value) for key, value in st.session_state.get("_changed_settings", {}).items()},
    }


_in_whole_run: ContextVar[bool] = ContextVar("in_whole_run", default=False)


@contextmanager
def whole_run() -> Iterator[None]:
    """A run of the whole page: its fragments leave the URL to the end, where it is written once."""
    token = _in_whole_run.set(True)
    try:
        yield
    finally:
        _in_whole_run.reset(token)
    st.session_state["_drawn_page"] = st.session_state["_page"]
    write_url()


def write_url() -> None:
    """Let the browser's address bar say what the page shows; called by everything that runs by itself."""
    if _in_whole_run.get():
        return
    wanted, written = link_parameters(), st.session_state.get("_url")
    # The browser may have told us an address that it has left since: what was last written counts too.
    if wanted != st.query_params.to_dict() or wanted != written:
        st.query_params.from_dict(wanted)
    st.session_state["_url"] = wanted


def settings_of_link() -> dict[str, str] | None:
    """The method's settings a new link named, as text, once; None where no new link was opened."""
    found: dict[str, str] | None = st.session_state.pop("_settings", None)
    return found
