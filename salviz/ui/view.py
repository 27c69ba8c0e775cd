"""What a page shows of an exploration: the one that was asked for, or the one that was there before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import streamlit as st

from salviz.images import Picture
from salviz.ui import follow, panels, session
from salviz.ui.sidebar import Pick

if TYPE_CHECKING:
    from salviz.classifiers.store import Loaded
    from salviz.exploration import Exploration
    from salviz.methods.card import MethodCard

SLOT = "explore"


@dataclass
class Shown:
    """An exploration on screen with what it explains.

    Attributes:
        exploration: Of the pick, or of the one before while there is none.
        picture: Its photograph.
        loaded: Its classifier.
        is_picked: Whether it is the pick's own.
    """

    exploration: Exploration
    picture: Picture
    loaded: Loaded
    is_picked: bool

    @property
    def card(self) -> MethodCard:
        """Card of the method."""
        from salviz import methods

        return methods.get(self.exploration.request.method).card

    def name(self, index: int) -> str:
        """Short name of a class."""
        return self.loaded.classifier.labels.short(int(index))

    @property
    def explained(self) -> str:
        """Short name of the class the clean map explains; of both in a contrast."""
        return "".join(panels.explained(self.exploration, self.name))


@dataclass
class View:
    """What the page shows: the pick, where its work stands, and what is on screen.

    Attributes:
        pick: What the person chose.
        followed: Where the work for it stands, or None while something is missing.
        shown: On screen: the pick's own, or what was there before, or None.
    """

    pick: Pick
    followed: follow.Followed | None
    shown: Shown | None

    @property
    def lacks_model(self) -> bool:
        """Whether nothing but the model is missing."""
        return self.pick.loaded is None and self.pick.picture is not None

    @property
    def is_running(self) -> bool:
        """Whether work for the pick is under way."""
        return self.followed is not None and self.followed.state == "running"


def look(pick: Pick) -> View:
    """Ask for what was picked; keep what was on screen while it is not there."""
    followed = None
    if pick.request is not None and pick.picture is not None and pick.loaded is not None:
        followed = follow.follow(SLOT, follow.exploring(pick.request, pick.picture, pick.loaded))
        if followed.result is not None:
            shown = Shown(followed.result, pick.picture, pick.loaded, True)
            _remember(shown)
            return View(pick, followed, shown)
    return View(pick, followed, _before())


def _remember(shown: Shown) -> None:
    # Only names and the photograph: a closed visit's state stays in memory for long, results must not.
    st.session_state["_shown"] = (shown.exploration.request.digest, shown.picture, shown.loaded.key)
    probabilities = shown.exploration.probabilities[0]
    top = tuple(probabilities.topk(min(5, len(probabilities))).indices.tolist())
    if session.tops().put((shown.picture.digest, shown.loaded.key), top):
        # The sidebar was drawn before the prediction was known; its list of targets begins with the top five.
        st.rerun()


def _before() -> Shown | None:
    digest, picture, key = st.session_state.get("_shown", (None, None, None))
    exploration = session.runner().peek(digest) if digest else None
    if exploration is None or not session.classifiers().is_loaded(*key):
        return None
    return Shown(exploration, picture, session.classifiers().get(*key), False)
