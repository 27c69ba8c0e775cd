"""One table of what a link holds, and the way between the URL and the widgets.

Streamlit's own binding writes the texts of options into the URL; links here hold ids, which outlive texts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import streamlit as st

from salviz.errors import SalvizError
from salviz.transforms import AUGMENTATIONS

RACE_SECONDS = 2.0
"""An interaction may still carry the URL from before our last write; older differences are the person's."""


@dataclass(frozen=True)
class Field:
    """One thing a link holds.

    Attributes:
        key: Name in the URL and key of the widget.
        default: Value a link leaves out.
        read: From the URL's text; raises `ValueError` or `SalvizError` where it makes no sense.
        write: To the URL's text.
    """

    key: str
    default: Any
    read: Callable[[str], Any] = str
    write: Callable[[Any], str] = str


def _one_of(*choices: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(f"it must be one of {', '.join(choices)}")
        return text

    return read


def _between(low: float, high: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        number = float(text)
        if not low <= number <= high:
            raise ValueError(f"it must lie between {low:g} and {high:g}")
        return number

    return read


def _class(text: str) -> int | str:
    return text if text in ("predicted", "unknown") else _index(text)


def _index(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError("it must not be negative")
    return number


def _switch(text: str) -> bool:
    return {"1": True, "0": False}[text] if text in ("0", "1") else bool(_one_of("0", "1")(text))


def _augmentations(text: str) -> list[str]:
    chosen = [part for part in text.split(",") if part]
    unknown = [part for part in chosen if part not in AUGMENTATIONS]
    if unknown:
        raise ValueError(f"there is no augmentation {unknown[0]!r}")
    return chosen


FIELDS: tuple[Field, ...] = (
    Field("image", "sample:cat"),
    Field("model", "tf_efficientnet_lite0"),
    Field("method", "grad_cam"),
    Field("target", "predicted", _class),
    Field("label", "unknown", _class),
    Field("output", "logit", _one_of("logit", "probability")),
    Field("aug", list(AUGMENTATIONS), _augmentations, ",".join),
    Field("draw", "one", _one_of("one", "paper")),
    Field("twin", True, _switch, lambda value: str(int(value))),
    Field("range", "pair", _one_of("pair", "2.0")),
    Field("seed", 0, _index),
    Field("device", "auto"),
    Field("precision", "float32", _one_of("float32", "bf16", "fp16")),
    Field("cmap", "auto"),
    Field("alpha", 0.7, _between(0, 1), lambda value: f"{value:g}"),
    Field("sign", "unsigned", _one_of("unsigned", "signed")),
    Field("span", "auto"),
    Field("veil", "value", _one_of("value", "even")),
    Field("scale", "map", _one_of("map", "shared")),
    Field("cells", "smooth", _one_of("smooth", "cells")),
    Field("turn", "rotate"),
    Field("at", 27.0, float, lambda value: f"{value:g}"),
)

SETTING = "set."
"""Prefix of the keys that hold a method's settings: `set.samples`."""


def adopt_url() -> list[str]:
    """Take over what a new URL says, before any widget is made.

    Returns:
        One sentence for each part of the link that made no sense and was left out.
    """
    for field in FIELDS:
        st.session_state.setdefault(field.key, field.default)
    current = st.query_params.to_dict()
    written = st.session_state.get("_url", {})
    fresh = "_url" not in st.session_state
    if not fresh:
        recent = time.monotonic() - st.session_state.get("_url_time", 0.0) < RACE_SECONDS
        if current == written or recent:
            return []
    notices = []
    for field in FIELDS:
        if field.key not in current:
            st.session_state[field.key] = field.default
            continue
        try:
            st.session_state[field.key] = field.read(current[field.key])
        except (ValueError, SalvizError) as error:
            reason = "" if "invalid literal" in str(error) or "could not convert" in str(error) else f": {error}"
            notices.append(f"The link's “{field.key}” was left out{reason}.")
            st.session_state[field.key] = field.default
    st.session_state["_settings"] = {
        key.removeprefix(SETTING): value for key, value in current.items() if key.startswith(SETTING)
    }
    st.session_state["_url"] = current
    return notices


def link_parameters() -> dict[str, str]:
    """What the URL should say: every field that differs from its default."""
    found = {
        field.key: field.write(st.session_state[field.key])
        for field in FIELDS
        if field.key in st.session_state and st.session_state[field.key] != field.default
    }
    return {
        **found,
        **{SETTING + key: str(value) for key, value in st.session_state.get("_changed_settings", {}).items()},
    }


def write_url() -> None:
    """Let the browser's address bar say what the page shows."""
    wanted = link_parameters()
    if wanted != st.query_params.to_dict():
        st.query_params.from_dict(wanted)
        st.session_state["_url_time"] = time.monotonic()
    st.session_state["_url"] = wanted


def settings_of_link() -> Iterator[tuple[str, str]]:
    """The method's settings the link named, as text, until widgets take them over."""
    yield from st.session_state.get("_settings", {}).items()
