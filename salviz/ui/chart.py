"""Charts: the first of a visit is drawn once the browser has shown the rest of its page.

The chart library takes a browser most of a second to load and start. Asked for with the page's first elements, it would
hold up the pictures too, as they are all put on screen at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import streamlit as st

if TYPE_CHECKING:
    import plotly.graph_objects as go

# Parts of a page come one after the other, on a slow machine over seconds: it is on screen once nothing more has come
# for a while.
_JS = """
export default function (component) {
  const { parentElement, setTriggerValue } = component;
  if (parentElement.isAsked) return;
  parentElement.isAsked = true;
  const tell = () => {
    observer.disconnect();
    clearTimeout(pause);
    clearTimeout(limit);
    setTriggerValue("shown", true);
  };
  let pause = setTimeout(tell, 400);
  const limit = setTimeout(tell, 8000);
  const observer = new MutationObserver(() => {
    clearTimeout(pause);
    pause = setTimeout(tell, 400);
  });
  observer.observe(document.body, { childList: true, subtree: true });
}
"""


def chart(figure: go.Figure, *, key: str, alt: str) -> None:
    """Draw a chart, or keep its place until `after_first_paint` has the page drawn again.

    Args:
        figure: With its height.
        key: Of the element.
        alt: What it shows.
    """
    if st.session_state.get("_painted"):
        st.plotly_chart(figure, theme=None, key=key, config={"displayModeBar": False}, alt=alt)
    else:
        st.skeleton(figure.layout.height)


def after_first_paint() -> None:
    """At the end of a visit's first page: have it drawn again, with its charts, once it is on screen."""
    # The whole page, not a part of it: what the person does at the same moment becomes the same run.
    if not st.session_state.get("_painted"):
        _component()(key="first_paint", on_shown_change=_painted)


def _painted() -> None:
    st.session_state["_painted"] = True


@st.cache_resource(show_spinner=False)
def _component() -> Any:
    """Registered once a server: registering again under the same name logs a warning."""
    return st.components.v2.component("salviz.first_paint", js=_JS)
