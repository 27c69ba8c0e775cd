"""Charts: the first of a visit is drawn once the browser has shown the rest of its page.

The chart library takes a browser most of a second to load and start. Asked for with the page's first elements, it would
hold up the pictures too, as they are all put on screen at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import streamlit as st

if TYPE_CHECKING:
    import plotly.graph_objects as go

_CSS = """
div[aria-busy] {
  border-radius: 4px;
  background: var(--st-secondary-background-color);
}
"""

# The pictures are decoded and painted a few frames after they were put on the page.
_JS = """
export default function (component) {
  const { data, parentElement, setTriggerValue } = component;
  if (parentElement.querySelector("div[aria-busy]")) return;
  const box = document.createElement("div");
  box.setAttribute("aria-busy", "true");
  box.style.height = `${data.height}px`;
  parentElement.appendChild(box);
  requestAnimationFrame(() => setTimeout(() => setTriggerValue("shown", true), 300));
}
"""


@st.fragment
def chart(figure: go.Figure, *, key: str, alt: str) -> None:
    """Draw a chart.

    Args:
        figure: With its height, which is kept free until it is drawn.
        key: Of the element.
        alt: What it shows.
    """
    if st.session_state.get("_painted"):
        st.plotly_chart(figure, theme=None, key=key, config={"displayModeBar": False}, alt=alt)
    else:
        _component()(key=f"{key}.place", data={"height": figure.layout.height}, on_shown_change=_painted)


def _painted() -> None:
    st.session_state["_painted"] = True


@st.cache_resource(show_spinner=False)
def _component() -> Any:
    """Registered once a server: registering again under the same name logs a warning."""
    return st.components.v2.component("salviz.chart_place", css=_CSS, js=_JS)
