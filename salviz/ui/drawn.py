"""Pictures as they are sent, drawn once: every other run of a page, by anybody, takes them from here.

Keys are the digest of the request, the row and the display choices; the exploration itself is not hashed. A partial
exploration draws the same rows as the complete one.

They are sent as data URIs, inside the page's own messages. Streamlit's media files would be forgotten while a session
draws anew and another one ends its run: with a class at once, pictures on screen would break.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Literal

import streamlit as st

from salviz.overlay import Pixels, jpeg, png, resize_for_display, scale_bar

if TYPE_CHECKING:
    from salviz.exploration import Exploration
    from salviz.images import Picture
    from salviz.render import Display
    from salviz.sanity.strip import Strip


def data_uri(content: bytes, kind: str = "png") -> str:
    """A picture's file as an address that holds it.

    Args:
        content: The file.
        kind: Second half of its media type.
    """
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def scale(colormap: str, low: float, high: float) -> str:
    """The scale bar under a map."""
    return _exact(scale_bar(colormap, low, high, 10))


def _exact(pixels: Pixels) -> str:
    return data_uri(png(pixels))


def photographic(pixels: Pixels) -> str:
    """Whatever holds a photograph: a fifth of the bytes of a PNG, and no difference on a screen.

    Downloads are exact; what is only looked at should be there at once, in a class and on a phone too.
    """
    return data_uri(jpeg(pixels), "jpeg")


@st.cache_data(show_spinner=False, max_entries=2000, max_size="128MB")
def card(digest: str, row: int, choices: Display, width: int, background: int, _exploration: Exploration) -> str:
    """A variant's card: what the model saw beside its map laid back."""
    from salviz import render

    return photographic(resize_for_display(render.row_card(_exploration, row, choices, background=background), width))


@st.cache_data(show_spinner=False, max_entries=2000, max_size="128MB")
def overlay(digest: str, row: int, choices: Display, width: int, is_aligned: bool, _exploration: Exploration) -> str:
    """A row's map over its own frame, or laid back on the clean one."""
    from salviz import render

    return photographic(
        resize_for_display(render.row_overlay(_exploration, row, choices, is_aligned=is_aligned), width)
    )


@st.cache_data(show_spinner=False, max_entries=200, max_size="32MB")
def photograph(digest: str, _picture: Picture) -> str:
    """A photograph alone, before there is a map of it."""
    from salviz import render

    return photographic(render.photograph(_picture))


@st.cache_data(show_spinner=False, max_entries=200, max_size="128MB")
def pictures(
    digest: str, choices: Display, _exploration: Exploration, _picture: Picture
) -> tuple[str, str, str, float, float]:
    """Photograph, map and overlay, and the range of the scale bar."""
    from salviz import render

    found = render.pictures(_exploration, _picture, choices)
    return photographic(found.photo), _exact(found.map), photographic(found.overlay), found.low, found.high


@st.cache_data(show_spinner=False, max_entries=2000, max_size="128MB")
def compared(
    digest: str,
    part: Literal["map", "overlay"],
    choices: Display,
    width: int,
    limits: tuple[float, float] | None,
    _exploration: Exploration,
    _picture: Picture,
) -> str:
    """A row of a comparison on the whole photograph: the method's own cells, or interpolated over it.

    Args:
        digest: Of the row's request.
        part: `map` or `overlay`.
        choices: Display choices.
        width: In pixels.
        limits: Display range that the rows have in common; the row's own where None.
        _exploration: The row.
        _picture: The photograph.
    """
    from salviz import render

    found = render.compared(_exploration, _picture, choices, part=part, width=width, limits=limits)
    return _exact(found) if part == "map" else photographic(found)


@st.cache_data(show_spinner=False, max_entries=2000, max_size="128MB")
def strip(
    digest: str,
    method: str,
    places: tuple[int, ...],
    known: int,
    choices: Display,
    width: int,
    background: int,
    _strip: Strip,
) -> str:
    """A method's maps along the stages of a randomisation test.

    Args:
        digest: Of the test.
        method: Id of a row.
        places: Which nets.
        known: How many nets are through.
        choices: Display choices.
        width: Of each map, in pixels.
        background: Grey between them.
        _strip: The maps.
    """
    from salviz import filmstrip

    return _exact(filmstrip.row(_strip, method, places, choices, width=width, background=background))


@st.cache_data(show_spinner=False, max_entries=500, max_size="64MB")
def stage(digest: str, method: str, place: int, choices: Display, _strip: Strip) -> str:
    """One net's map over what the model sees."""
    from salviz import filmstrip

    return photographic(filmstrip.stage(_strip, method, place, choices, is_overlay=True))
