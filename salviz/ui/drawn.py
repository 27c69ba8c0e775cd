"""Pictures as they are sent, drawn once: every other run of a page, by anybody, takes them from here.

Keys are the digest of the request, the row and the display choices; the exploration itself is not hashed. A partial
exploration draws the same rows as the complete one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from salviz.overlay import png, resize_for_display

if TYPE_CHECKING:
    from salviz.exploration import Exploration
    from salviz.images import Picture
    from salviz.render import Display


@st.cache_data(show_spinner=False, max_entries=2000, max_size="128MB")
def card(digest: str, row: int, choices: Display, width: int, background: int, _exploration: Exploration) -> bytes:
    """A variant's card: what the model saw beside its map laid back, as PNG."""
    from salviz import render

    return png(resize_for_display(render.row_card(_exploration, row, choices, background=background), width))


@st.cache_data(show_spinner=False, max_entries=2000, max_size="128MB")
def overlay(digest: str, row: int, choices: Display, width: int, is_aligned: bool, _exploration: Exploration) -> bytes:
    """A row's map over its own frame, or laid back on the clean one, as PNG."""
    from salviz import render

    return png(resize_for_display(render.row_overlay(_exploration, row, choices, is_aligned=is_aligned), width))


@st.cache_data(show_spinner=False, max_entries=200, max_size="128MB")
def pictures(
    digest: str, choices: Display, _exploration: Exploration, _picture: Picture
) -> tuple[bytes, bytes, bytes, float, float]:
    """Photograph, map and overlay as PNG, and the range of the scale bar."""
    from salviz import render

    found = render.pictures(_exploration, _picture, choices)
    return png(found.photo), png(found.map), png(found.overlay), found.low, found.high
