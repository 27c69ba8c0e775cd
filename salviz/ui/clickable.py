"""A picture that can be clicked, or reached and pressed with the keyboard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import streamlit as st

_CSS = """
button { display: block; width: 100%; padding: 0; border: 0; border-radius: 4px; background: none; cursor: pointer; }
button { line-height: 0; }
button img { width: 100%; border-radius: 4px; }
button:hover img { outline: 2px solid var(--st-primary-color); }
.scale { margin-top: 4px; font-family: var(--st-font); font-size: 0.8rem; color: var(--st-text-color); }
.scale img { display: block; width: 100%; height: 6px; border-radius: 2px; }
.scale div { display: flex; justify-content: space-between; opacity: 0.7; font-variant-numeric: tabular-nums; }
button:focus-visible { outline: 2px solid var(--st-primary-color); outline-offset: 2px; }
"""

_JS = """
export default function (component) {
  const { data, parentElement, setTriggerValue } = component;
  let button = parentElement.querySelector("button");
  if (!button) {
    button = document.createElement("button");
    button.type = "button";
    button.appendChild(document.createElement("img"));
    parentElement.appendChild(button);
  }
  const image = button.querySelector("img");
  if (image.src !== data.src) image.src = data.src;
  image.alt = data.alt;
  button.title = data.title;
  let scale = parentElement.querySelector(".scale");
  if (data.scale && !scale) {
    scale = document.createElement("div");
    scale.className = "scale";
    const ends = document.createElement("div");
    ends.append(document.createElement("span"), document.createElement("span"));
    scale.append(document.createElement("img"), ends);
    parentElement.appendChild(scale);
  }
  if (data.scale) {
    const { source, low, high } = data.scale;
    const bar = scale.querySelector("img"), [first, last] = scale.querySelectorAll("span");
    if (bar.src !== source) bar.src = source;
    bar.alt = `Scale from ${low} to ${high}`;
    first.textContent = low;
    last.textContent = high;
  }
  button.onclick = () => setTriggerValue("pressed", true);
}
"""


@dataclass(frozen=True)
class Scale:
    """The scale bar of a map.

    Attributes:
        source: Address of the bar; a data URI.
        low: Label of its left end.
        high: Label of its right end.
    """

    source: str
    low: str
    high: str


def picture(
    source: str, *, alt: str, title: str, key: str, on_press: Callable[[], None], scale: Scale | None = None
) -> None:
    """Draw a picture as a button.

    Args:
        source: Its address; a data URI, as `drawn` makes them.
        alt: What it shows.
        title: What a click does.
        key: Of the widget.
        on_press: Called before the next run, as any widget's callback.
        scale: Of the map, to stand below it, in the same element: a page of many rows stays light.
    """
    data = {"src": source, "alt": alt, "title": title, "scale": None if scale is None else asdict(scale)}
    _component()(key=key, data=data, on_pressed_change=on_press)


@st.cache_resource(show_spinner=False)
def _component() -> Any:
    """Registered once a server: registering again under the same name logs a warning."""
    return st.components.v2.component("salviz.picture", css=_CSS, js=_JS)
