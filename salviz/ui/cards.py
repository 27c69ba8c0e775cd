"""A list of pictures with a few words beside each: one element of the page, however many cards.

As containers, pictures and texts of Streamlit's own each card would be five elements; a page of forty-eight would keep
a phone busy for seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import streamlit as st

_CSS = """
.cards {
  display: grid; gap: 16px; margin: 0; padding: 0; list-style: none;
  font-family: var(--st-font); color: var(--st-text-color); line-height: 1.6;
}
li { display: flex; align-items: center; gap: 16px; }
img { flex: 0 1 auto; min-width: 0; width: min(var(--card-width), 62%); border-radius: 4px; }
div { flex: 1 1 0; min-width: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.title { display: block; font-weight: 600; }
.line { display: block; }
"""

_JS = """
export default function (component) {
  const { data, parentElement } = component;
  let list = parentElement.querySelector(".cards");
  if (!list) {
    list = document.createElement("ul");
    list.className = "cards";
    parentElement.appendChild(list);
  }
  list.style.setProperty("--card-width", `${data.width}px`);
  while (list.childElementCount > data.cards.length) list.lastChild.remove();
  while (list.childElementCount < data.cards.length) {
    const item = document.createElement("li");
    item.append(document.createElement("img"), document.createElement("div"));
    list.appendChild(item);
  }
  data.cards.forEach((card, place) => {
    const [image, words] = list.children[place].children;
    // Set again, an address would be decoded again, and flicker.
    if (image.src !== card.source) image.src = card.source;
    image.alt = card.alt;
    words.replaceChildren();
    for (const [kind, text] of [["title", card.title], ...card.lines.map((line) => ["line", line])]) {
      const part = document.createElement("span");
      part.className = kind;
      part.textContent = text;
      words.appendChild(part);
    }
  });
}
"""


@dataclass(frozen=True)
class Card:
    """A picture and what stands beside it.

    Attributes:
        source: Address of the picture; a data URI, as `drawn` makes them.
        alt: What it shows.
        title: First line, strong.
        lines: The lines below.
    """

    source: str
    alt: str
    title: str
    lines: tuple[str, ...]


def cards(all_cards: Sequence[Card], *, width: int, key: str) -> None:
    """Draw a list of cards.

    Args:
        all_cards: From top to bottom.
        width: Of a picture, in CSS pixels; less where the window is narrow.
        key: Of the element.
    """
    _component()(key=key, data={"width": width, "cards": [asdict(card) for card in all_cards]})


@st.cache_resource(show_spinner=False)
def _component() -> Any:
    """Registered once a server: registering again under the same name logs a warning."""
    return st.components.v2.component("salviz.cards", css=_CSS, js=_JS)
