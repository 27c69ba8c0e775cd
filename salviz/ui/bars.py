"""The most probable classes as bars; a click explains a class.

Drawn by the browser itself: the first picture of a visit does not wait for the chart library.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st

from salviz.overlay import format_probability

_CSS = """
.bars { display: grid; gap: 6px; font-family: var(--st-font); color: var(--st-text-color); }
button {
  display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: 2px 8px; width: 100%; padding: 2px 4px; border: 0;
  border-radius: 4px; background: none; color: inherit; font: inherit; font-size: 0.9rem; text-align: left;
  cursor: pointer;
}
button:hover { background: var(--st-secondary-background-color); }
button:focus-visible { outline: 2px solid var(--st-primary-color); }
.name { overflow-wrap: anywhere; }
.value { font-variant-numeric: tabular-nums; }
.track { grid-column: 1 / -1; height: 10px; border-radius: 3px; background: var(--st-secondary-background-color); }
.track div { height: 100%; border-radius: 3px; background: var(--st-primary-color); opacity: 0.35; }
button[aria-pressed="true"] .name, button[aria-pressed="true"] .value { font-weight: 600; }
button[aria-pressed="true"] .track div { opacity: 1; }
"""

_JS = """
export default function (component) {
  const { data, parentElement, setTriggerValue } = component;
  let box = parentElement.querySelector(".bars");
  if (!box) {
    box = document.createElement("div");
    box.className = "bars";
    box.setAttribute("role", "group");
    parentElement.appendChild(box);
  }
  box.setAttribute("aria-label", data.label);
  box.replaceChildren();
  for (const row of data.rows) {
    const button = document.createElement("button");
    button.type = "button";
    button.title = data.action;
    button.setAttribute("aria-pressed", String(row.explained));
    for (const [kind, text] of [["name", row.name], ["value", row.shown]]) {
      const part = document.createElement("span");
      part.className = kind;
      part.textContent = text;
      button.appendChild(part);
    }
    const track = document.createElement("span");
    track.className = "track";
    const bar = document.createElement("div");
    bar.style.width = `${100 * row.value}%`;
    track.appendChild(bar);
    button.appendChild(track);
    button.onclick = () => setTriggerValue("picked", row.id);
    box.appendChild(button);
  }
}
"""


def classes(
    ids: Sequence[int], names: Sequence[str], values: Sequence[float], *, explained: int, on_pick: Callable[[int], None]
) -> None:
    """Draw the bars.

    Args:
        ids: Class indices, the most probable first.
        names: Their names.
        values: Their probabilities, 0 to 1.
        explained: The explained class; drawn in the full colour.
        on_pick: Called with the class that was clicked, before the next run.
    """
    rows = [
        {"id": id, "name": name, "value": value, "shown": format_probability(value), "explained": id == explained}
        for id, name, value in zip(ids, names, values, strict=True)
    ]

    def take() -> None:
        picked = getattr(st.session_state.get("top_five"), "picked", None)
        if picked is not None:
            on_pick(int(picked))

    label = "Most probable classes: " + ", ".join(f"{row['name']} {row['shown']}" for row in rows)
    _component()(
        key="top_five", data={"rows": rows, "label": label, "action": "Explain this class"}, on_picked_change=take
    )


@st.cache_resource(show_spinner=False)
def _component() -> Any:
    """Registered once a server: registering again under the same name logs a warning."""
    return st.components.v2.component("salviz.bars", css=_CSS, js=_JS)
