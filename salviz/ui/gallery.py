"""A strip of clickable thumbnails of the sample photographs."""

from __future__ import annotations

import io
from typing import Any

import streamlit as st

from salviz.images import open_sample, samples, thumbnail
from salviz.ui.drawn import data_uri

_CSS = """
.strip { display: grid; grid-template-columns: repeat(6, 1fr); gap: 4px; }
button { padding: 0; border: 2px solid transparent; border-radius: 4px; background: none; cursor: pointer; }
button { line-height: 0; }
button img { width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 2px; }
button[aria-pressed="true"] { border-color: var(--st-primary-color); }
button:focus-visible { outline: 2px solid var(--st-primary-color); outline-offset: 1px; }
"""

_JS = """
export default function (component) {
  const { data, parentElement, setTriggerValue } = component;
  let strip = parentElement.querySelector(".strip");
  if (!strip) {
    strip = document.createElement("div");
    strip.className = "strip";
    strip.setAttribute("role", "group");
    strip.setAttribute("aria-label", "Sample photographs");
    parentElement.appendChild(strip);
  }
  if (strip.childElementCount !== data.samples.length) {
    strip.replaceChildren();
    for (const sample of data.samples) {
      const button = document.createElement("button");
      const image = document.createElement("img");
      button.type = "button";
      button.title = sample.title;
      button.dataset.id = sample.id;
      image.src = sample.src;
      image.alt = sample.title;
      button.appendChild(image);
      strip.appendChild(button);
    }
  }
  for (const button of strip.children) {
    button.setAttribute("aria-pressed", String(button.dataset.id === data.current));
    button.onclick = () => setTriggerValue("picked", button.dataset.id);
  }
}
"""

_SIDE = 72


@st.cache_data(show_spinner=False, max_entries=1)
def _sources() -> list[dict[str, str]]:
    """Thumbnails as data URIs; a few kilobytes each."""
    found = []
    for sample in samples():
        buffer = io.BytesIO()
        thumbnail(open_sample(sample.id), _SIDE, square=True).save(buffer, format="JPEG", quality=82)
        source = data_uri(buffer.getvalue(), "jpeg")
        found.append({"id": f"sample:{sample.id}", "title": sample.title, "src": source})
    return found


def thumbnails(*, current: str) -> None:
    """Draw the strip; a click makes the sample the chosen image."""
    _component()(
        key="gallery",
        data={"samples": _sources(), "current": current},
        on_picked_change=_take,
    )


def _take() -> None:
    picked = getattr(st.session_state.get("gallery"), "picked", None)
    if picked:
        st.session_state["image"] = picked


@st.cache_resource(show_spinner=False)
def _component() -> Any:
    """Registered once a server: registering again under the same name logs a warning."""
    return st.components.v2.component("salviz.gallery", css=_CSS, js=_JS)
