"""Display choices: what re-blends the stored maps and never recomputes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from salviz.colormaps import COLORMAPS
from salviz.overlay import DisplayRange
from salviz.ui import panels

if TYPE_CHECKING:
    from salviz.methods.card import MethodCard
    from salviz.render import Display

_SPANS = {
    "auto": "By kind of map",
    DisplayRange.FULL.value: "Smallest to largest",
    DisplayRange.PERCENTILE.value: "Up to the 99th percentile",
    DisplayRange.POSITIVE.value: "Zero to largest",
    DisplayRange.SYMMETRIC.value: "Symmetric about zero",
}


def chosen(card: MethodCard) -> Display:
    """The display choices as they stand, as far as they have a meaning for a method."""
    from salviz.render import Display

    now = st.session_state
    return Display(
        colormap=now["cmap"] if now["cmap"] in COLORMAPS else "auto",
        opacity=now["alpha"],
        is_signed=now["sign"] == "signed" and card.signed,
        range_mode=now["span"] if now["span"] in _SPANS else "auto",
        scale=now["scale"],
        is_smooth=now["cells"] == "smooth",
        follows_value=now["veil"] == "value",
    )


def controls(
    card: MethodCard | None,
    *,
    scale: str = "Scale of the variants",
    shared: str = "The clean map's",
    apart: str = "",
    cells: str = "Cells",
) -> None:
    """The popover with all display choices.

    Args:
        card: Of the method on screen; None where there are several.
        scale: Label of the choice between each map's own scale and one for all.
        shared: Title of the one for all.
        apart: Why each map has its own; the choice is left out where this is given.
        cells: Label of the choice between interpolated maps and the method's own cells.
    """
    with st.popover("Display", icon=":material/tune:"):
        st.slider("Opacity of the map", 0.0, 1.0, step=0.05, key="alpha", persist_state="session")
        panels.choice("Overlay", {"value": "Follows the value", "even": "Even"}, "veil")
        colours = {"auto": "By kind of map", **{key: found.title for key, found in COLORMAPS.items()}}
        if st.session_state["cmap"] not in colours:
            st.session_state["cmap"] = "auto"
        panels.pick("Colours", colours, "cmap")
        panels.choice(
            "Sign",
            {"unsigned": "How much", "signed": "For and against"},
            "sign",
            disabled=card is not None and not card.signed,
            meaning="How much each place matters; or with its sign, where the method has one.",
        )
        if st.session_state["span"] not in _SPANS:
            st.session_state["span"] = "auto"
        panels.pick("Range", _SPANS, "span")
        if apart:
            st.caption(apart)
        else:
            panels.choice(scale, {"map": "Each its own", "shared": shared}, "scale")
        panels.choice(cells, {"smooth": "Interpolated", "cells": "As computed"}, "cells")
