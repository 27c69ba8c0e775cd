"""Pictures as they are sent, drawn once: every other run of a page, by anybody, takes them from here.

Keys are the digest of the request, the row and the display choices; the exploration itself is not hashed. A partial
exploration draws the same rows as the complete one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

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


@st.cache_data(show_spinner=False, max_entries=2000, max_size="128MB")
def compared(
    digest: str,
    part: Literal["map", "overlay"],
    choices: Display,
    width: int,
    scaled_by: str,
    _exploration: Exploration,
    _picture: Picture,
    _scale: Exploration | None,
) -> bytes:
    """A row of a comparison on the whole photograph, as PNG: the method's own cells, or interpolated over it.

    Args:
        digest: Of the row's request.
        part: `map` or `overlay`.
        choices: Display choices.
        width: In pixels.
        scaled_by: Digest of the request whose map gives the range; the row's own where empty.
        _exploration: The row.
        _picture: The photograph.
        _scale: The exploration that `scaled_by` names.
    """
    from salviz import render

    found = render.compared(_exploration, _picture, choices, part=part, width=width, scale=_scale)
    return png(found)
