"""The cards of an exploration's variants, in two columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from salviz.overlay import format_probability
from salviz.ui import drawn, panels
from salviz.ui.cards import Card, cards
from salviz.ui.view import Shown

if TYPE_CHECKING:
    from salviz.render import Display

_CARD_WIDTH = 236
_NONE_CHOSEN = "No augmentation is chosen. Choose some under Augmentations."


def variants(shown: Shown, choices: Display, *, is_running: bool) -> None:
    """Two columns: variants that kept the prediction, and variants and models that changed it."""
    from salviz import changes

    exploration = shown.exploration
    names = [variant.label for variant in exploration.variants] + [changes.title(name) for name in exploration.changes]
    # Kept or changed is said of the prediction; whether it is right is the scores' business.
    reference = int(exploration.predicted[0])
    kept: list[tuple[int, str]] = []
    changed: list[tuple[int, str]] = []
    for row, name in enumerate(names, start=1):
        stays = int(exploration.predicted[row]) == reference
        (kept if stays else changed).append((row, name))
    is_asked = bool(exploration.request.variants or exploration.request.changes)
    columns = st.columns(2, gap="medium")
    for column, key, title, rows, icon, nothing in (
        (
            columns[0],
            "kept",
            "Prediction kept: the map should stay",
            kept,
            ":material/check:",
            "No augmentation left the prediction as it was. Choose milder ones." if is_asked else _NONE_CHOSEN,
        ),
        (
            columns[1],
            "changed",
            "Prediction changed: the map should change",
            changed,
            ":material/change_history:",
            "Nothing changed the prediction. Choose stronger augmentations, the paper's 48, or the untrained twin."
            if is_asked
            else _NONE_CHOSEN,
        ),
    ):
        with column:
            st.subheader(f"{icon} {title}", anchor=False)
            if not rows:
                not_yet = "Nothing yet." if is_running else "The work was stopped before the variants."
                st.caption(nothing if exploration.is_complete or names else not_yet)
            else:
                cards([_card(shown, row, name, choices) for row, name in rows], width=_CARD_WIDTH, key=f"cards.{key}")


def _card(shown: Shown, row: int, label: str, choices: Display) -> Card:
    exploration = shown.exploration
    predicted = int(exploration.predicted[row])
    probability = float(exploration.probabilities[row, predicted])
    similarity = panels.number(float(exploration.ssim[row]))
    background = panels.ground()
    return Card(
        # Twice as many pixels as its width: sharp screens get them all.
        drawn.card(exploration.request.digest, row, choices, 2 * _CARD_WIDTH, background, exploration),
        f"{label}: the changed input, and its map laid back on the original; SSIM {similarity}",
        label,
        (f"SSIM {similarity}", f"{shown.name(predicted)} {format_probability(probability)}"),
    )
