"""One table of what a link holds, and the way between the URL and the widgets.

Streamlit's own binding writes the texts of options into the URL; links here hold ids, which outlive texts.

Every widget of the pick is made with `persist_state="session"`. A browser loads the code of a kind of widget when it
first meets one, which takes seconds on a slow line. What a link says is told to the widget by the run alone that read
the link, and a later run that comes before the code has its message replaced: then the widget would begin with its
first option and write that into the address. What persists is told by every run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from salviz.classifiers.choices import INITIALISATIONS, ORDERS, STATISTICS
from salviz.colormaps import COLORMAPS
from salviz.errors import SalvizError
from salviz.metrics.randomisation import CHECKED
from salviz.overlay import DisplayRange
from salviz.transforms import AUGMENTATIONS

COMPARED = (
    "grad_cam", "hires_cam", "eigen_cam", "gradient", "input_x_gradient", "guided_backprop", "deeplift", "lrp", "edge",
    "random",
)  # fmt: skip
"""The methods a first visit compares: cheap ones of several families, and the controls."""


PARTS = {
    "scores": "Scores",
    "spread": "Spread",
    "groups": "Groups",
    "strength": "Strength of change",
    "pictures": "Pictures",
}
"""Parts of a run's results, and their titles."""


@dataclass(frozen=True)
class Field:
    """One thing a link holds.

    Attributes:
        key: Name in the URL and key of the widget.
        default: Value a link leaves out.
        read: From the URL's text; raises `ValueError` or `SalvizError` where it makes no sense.
        write: To the URL's text.
        page: The page whose links hold it; empty for all.
    """

    key: str
    default: Any
    read: Callable[[str], Any] = str
    write: Callable[[Any], str] = str
    page: str = ""


def _one_of(*choices: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(f"it must be one of {', '.join(f'“{choice}”' for choice in choices)}")
        return text

    return read


def _between(low: float, high: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        number = float(text)
        if not low <= number <= high:
            raise ValueError(f"it must lie between {low:g} and {high:g}")
        return number

    return read


def _class_or(*words: str) -> Callable[[str], int | str]:
    return lambda text: text if text in words else _index(text)


def _index(text: str) -> int:
    number = int(text)
    if not 0 <= number < 2**31:
        raise ValueError(f"it must lie between 0 and {2**31 - 1}")
    return number


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("it must be a finite number")
    return number


def _method(text: str) -> str:
    from salviz.methods import METHODS

    if text not in METHODS:
        raise ValueError(f"there is no method {text!r}")
    return text


def _device(text: str) -> str:
    from salviz.classifiers.store import devices

    return _one_of("auto", *devices())(text)


def _switch(text: str) -> bool:
    return {"1": True, "0": False}[text] if text in ("0", "1") else bool(_one_of("0", "1")(text))


class _PartlyError(ValueError):
    """Part of a value makes no sense; the rest does."""

    def __init__(self, reason: str, rest: Any) -> None:
        super().__init__(reason)
        self.rest = rest


def _some_of(known: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    def read(text: str) -> list[str]:
        chosen = [part for part in text.split(",") if part]
        unknown = [part for part in chosen if part not in set(known())]
        if unknown:
            raise _PartlyError(f"there is no {unknown[0]!r}", [part for part in chosen if part not in unknown])
        return chosen

    return read


def _methods() -> Iterable[str]:
    from salviz.methods import METHODS

    return METHODS


def _count(text: str) -> int:
    return int(_between(2, 10)(text))


FIELDS: tuple[Field, ...] = (
    Field("image", "sample:cat"),
    Field("model", "tf_efficientnet_lite0"),
    Field("method", "grad_cam", _method),
    Field("target", "predicted", _class_or("predicted")),
    Field("against", "none", _class_or("none", "runner_up")),
    Field("label", "unknown", _class_or("unknown")),
    Field("output", "logit", _one_of("logit", "probability")),
    Field("aug", list(AUGMENTATIONS), _some_of(lambda: AUGMENTATIONS), ",".join, page="explore"),
    Field("draw", "one", _one_of("one", "paper"), page="explore"),
    Field("twin", True, _switch, lambda value: str(int(value)), page="explore"),
    Field("range", "pair", _one_of("pair", "2.0"), page="explore"),
    Field("seed", 0, _index),
    Field("device", "auto", _device),
    Field("precision", "float32", _one_of("float32", "bf16", "fp16")),
    Field("cmap", "auto", _one_of("auto", *COLORMAPS)),
    Field("alpha", 0.7, _between(0, 1), lambda value: f"{value:g}"),
    Field("sign", "unsigned", _one_of("unsigned", "signed")),
    Field("span", "auto", _one_of("auto", *DisplayRange)),
    Field("veil", "value", _one_of("value", "even")),
    Field("scale", "map", _one_of("map", "shared")),
    Field("cells", "smooth", _one_of("smooth", "cells")),
    Field("rows", "methods", _one_of("methods", "models", "classes"), page="compare"),
    Field("methods", list(COMPARED), _some_of(_methods), ",".join, page="compare"),
    Field("models", [], lambda text: [part for part in text.split(",") if part], ",".join, page="compare"),
    Field("top", 5, _count, page="compare"),
    Field("alike", "spearman", _one_of("spearman", "ssim"), page="compare"),
    Field("checked", list(CHECKED), _some_of(_methods), ",".join, page="sanity"),
    Field("test", "weights", _one_of("weights", "labels", "class"), page="sanity"),
    Field("other", "", page="sanity"),
    Field("pictures", "one", _one_of("one", "many"), page="sanity"),
    Field("order", "top_down", _one_of(*ORDERS), page="sanity"),
    Field("start", "architecture", _one_of(*INITIALISATIONS), page="sanity"),
    Field("stats", "reset", _one_of(*STATISTICS), page="sanity"),
    Field("draws", 1, lambda text: int(_between(1, 10)(text)), page="sanity"),
    Field("copies", 1, lambda text: int(_between(1, 50)(text)), page="sanity"),
    Field("skip", False, _switch, lambda value: str(int(value)), page="sanity"),
    Field("rule", "original", _one_of("original", "argmax"), page="sanity"),
    Field("measure", "spearman_abs", page="sanity"),
    Field("shown", "gradient", page="sanity"),
    Field("stage", "trained", page="sanity"),
    Field("run", "", page="batch"),
    Field("part", "scores", _one_of(*PARTS), page="batch"),
    Field("score", "", page="batch"),
    Field("of", "", page="batch"),
    Field("by", "correct", _one_of("correct", "confidence", "class"), page="batch"),
    Field("sort", "", page="batch"),
    Field("first", "low", _one_of("low", "high"), page="batch"),
    Field("which", "all", _one_of("all", "right", "wrong"), page="batch"),
    Field("change", "", page="batch"),
    Field("figures", "svg", _one_of("svg", "png"), page="batch"),
    Field(
        "turn", "rotate", _one_of(*(key for key, card in AUGMENTATIONS.items() if card.has_magnitude)), page="explore"
    ),
    Field("at", 27.0, _finite, lambda value: f"{value:g}", page="explore"),
)

SETTING = "set."
"""Prefix of the keys that hold a method's settings: `set.samples`."""


_LOOKS = frozenset(
    {
        "cmap",
        "alpha",
        "sign",
        "span",
        "veil",
        "scale",
        "cells",
        "turn",
        "at",
        "alike",
        "measure",
        "shown",
        "stage",
        "part",
        "score",
        "of",
        "by",
        "sort",
        "first",
        "which",
        "change",
        "figures",
    }
)


def notice(sentence: str) -> None:
    """Say something about the pick until the person picks something else."""
    if st.session_state.pop("_noticed", None) is not None:
        st.session_state["_notices"] = []
    st.session_state["_notices"] = [*st.session_state.get("_notices", []), sentence]


def notices() -> list[str]:
    """What `notice` was given for the pick as it stands; called once the widgets of the pick are made."""
    picked = {key: text for key, text in link_parameters().items() if key not in _LOOKS}
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
            rest = error.rest if isinstance(error, _PartlyError) else None
            left_out(field.key, str(error) if is_plain else "it must be a number", is_part=bool(rest))
            st.session_state[field.key] = rest or field.default
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


def text(value: Any) -> str:
    """A method's setting as links write it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


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
