"""A picture that can be clicked, or reached and pressed with the keyboard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st

_CSS = """
button { display: block; width: 100%; padding: 0; border: 0; border-radius: 4px; background: none; cursor: pointer; }
button { line-height: 0; }
button img { width: 100%; border-radius: 4px; }
button:hover img { outline: 2px solid var(--st-primary-color); }
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
  button.onclick = () => setTriggerValue("pressed", true);
}
"""


def picture(source: str, *, alt: str, title: str, key: str, on_press: Callable[[], None]) -> None:
    """Draw a picture as a button.

    Args:
        source: Its address; a data URI, as `drawn` makes them.
        alt: What it shows.
        title: What a click does.
        key: Of the widget.
        on_press: Called before the next run, as any widget's callback.
    """
    _component()(key=key, data={"src": source, "alt": alt, "title": title}, on_pressed_change=on_press)


@st.cache_resource(show_spinner=False)
def _component() -> Any:
    """Registered once a server: registering again under the same name logs a warning."""
    return st.components.v2.component("salviz.picture", css=_CSS, js=_JS)
