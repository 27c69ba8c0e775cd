"""The parts of the Sanity checks page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import streamlit as st

from salviz.classifiers.choices import ORDERS
from salviz.errors import SalvizError
from salviz.metrics.randomisation import CALIBRATION
from salviz.ui import follow, panels, randomising, stage, stages
from salviz.ui.sidebar import Pick

if TYPE_CHECKING:
    from salviz.images import Picture
    from salviz.sanity import Check, Checked

SLOT = "sanity"


@dataclass
class Chosen:
    """What is to be checked.

    Attributes:
        check: Fully specified, or None while nothing is chosen or something is missing.
        twin: The net with other labels, where one is asked for.
        pictures: What the check runs on, the picked one first.
        problems: One sentence each.
    """

    check: Check | None = None
    twin: Any = None
    pictures: list[Picture] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass
class View:
    """What the page shows.

    Attributes:
        chosen: What is to be checked.
        pick: The shared pick.
        followed: Where the work stands, or None while something is missing.
        found: Results, complete or not, or None.
    """

    chosen: Chosen
    pick: Pick
    followed: follow.Followed | None
    found: Checked | None

    @property
    def key(self) -> str:
        """Of the work: what pictures of it are remembered by."""
        return self.followed.key if self.followed else ""

    @property
    def problems(self) -> list[str]:
        """One sentence for everything that went wrong."""
        refused = [] if self.found is None else list(self.found.refused.values())
        return [*self.pick.problems, *self.chosen.problems, *refused]

    def titles(self) -> Mapping[str, str]:
        """Name of each row."""
        from salviz import methods

        assert self.found is not None  # noqa: S101 - the page asked
        return {method: methods.get(method).card.title for method in self.found.methods}


def header(pick: Pick) -> None:
    """What is on screen, in one line, with the link."""
    picture, loaded = pick.picture, pick.loaded
    names = [picture.name if picture else "Sanity checks", loaded.classifier.title if loaded else ""]
    panels.header(names, picture)


def choose(pick: Pick) -> Chosen:
    """Methods, what is randomised and how, above everything they change."""
    from salviz.methods import METHODS

    names: list[str] = st.multiselect(
        "Methods",
        [name for name in METHODS if name not in CALIBRATION],
        format_func=lambda key: METHODS[key].card.title,
        key="checked",
        persist_state="session",
        placeholder="Choose methods",
        select_all=False,
        help="The random map, which passes, and the edge map, which never moves, always stand beside them.",
    )
    chosen = Chosen()
    with st.container(horizontal=True, vertical_alignment="top", key="controls"):
        test = panels.choice("What is randomised", randomising.TESTS, "test")
        if test == "weights":
            panels.pick("Order in which stages are randomised", ORDERS, "order", width=panels.WIDE)
        elif test == "labels":
            randomising.twin()
        panels.choice("Pictures", randomising.pictures(pick), "pictures")
        with panels.unlabelled(), st.popover("Settings", icon=":material/settings:"):
            randomising.details(test)
    if pick.request is None or pick.picture is None or pick.loaded is None:
        return chosen
    asked: dict[str, Any] = {
        name: dict(pick.request.settings) if name == pick.request.method else None for name in names
    }
    if not asked:
        return chosen
    from salviz.sanity import Check, checked_twin

    measures = randomising.measures(pick)
    if st.session_state["measure"] not in measures:
        st.session_state["measure"] = "spearman_abs"
    if test == "labels":
        chosen.twin = randomising.load_twin(pick, chosen.problems)
        if chosen.twin is None:
            return chosen
    now = st.session_state
    try:
        chosen.pictures = randomising.chosen_pictures(pick)
        chosen.check = Check(
            asked,
            randomising.intervention(test, pick, chosen.twin),
            draws=1 if test == "labels" else int(now["draws"]),
            target=now["rule"],
            measures=tuple(measures),
            skips_baseline=now["skip"],
            copies=int(now["copies"]),
            seed=pick.request.seed,
        )
        checked_twin(pick.loaded.classifier, chosen.check.how, chosen.twin)
    except SalvizError as error:
        chosen.check = None
        chosen.problems.append(str(error))
    return chosen


def look(chosen: Chosen, pick: Pick) -> View:
    """Ask for what was chosen."""
    if chosen.check is None or pick.picture is None or pick.loaded is None:
        return View(chosen, pick, None, None)
    followed = follow.follow(SLOT, stages.task(chosen.check, pick, chosen.pictures, chosen.twin))
    return View(chosen, pick, followed, followed.result)


def status(view: View) -> None:
    """One line that is always there: how far the work is, or what it rests on."""
    followed = view.followed
    with st.container(key="status"):
        if followed is None:
            if view.pick.request is not None and not view.chosen.problems:
                st.caption("Nothing is chosen. Choose at least one method above.")
            return
        if followed.state == "running":
            follow.progress(SLOT, followed, "Randomising", unit="steps")
            return
        if followed.state != "done":
            cost = f"This will take about {follow.duration(followed.seconds)}; results come stage by stage."
            follow.offer(SLOT, followed, waiting=cost, name="The check")
            return
        st.caption(_basis(view))


def _basis(view: View) -> str:
    """What the curves rest on."""
    from salviz.classifiers.randomising import Randomisation
    from salviz.sanity import Twin

    found, pictures = view.found, len(view.chosen.pictures)
    assert found is not None  # noqa: S101 - the page asked
    how = found.check.how
    if isinstance(how, Randomisation):
        what = f"{panels.counted(len(found.stages), 'net', 'nets')} with random weights"
    else:
        what = f"Beside {panels.plain(how.title)}" if isinstance(how, Twin) else _asked(view)
    each = f", {found.check.draws} draws each" if found.check.draws > 1 else ""
    smooth = f", maps averaged over {found.check.copies} noisy copies" if found.check.copies > 1 else ""
    if pictures > 1:
        return f"{what}{each}{smooth}, {pictures} pictures; the strips show the first."
    return f"{what}{each}{smooth}, one picture: intervals need several."


def _asked(view: View) -> str:
    """Which class stands in for the predicted one, where it is one."""
    found = view.found
    assert found is not None and found.strip is not None and view.pick.loaded is not None  # noqa: S101, PT018
    if len(view.chosen.pictures) > 1 or found.check.draws > 1:
        return "Asked for another class, drawn at random"
    predicted, drawn = (view.pick.loaded.classifier.labels.short(index) for index in found.strip.explained)
    return panels.plain(f"Asked for {drawn}, drawn at random, instead of {predicted}")


def empty(view: View) -> None:
    """The layout before there is anything to show."""
    if view.followed is not None and view.followed.state != "running":
        st.caption("Film strips and curves will stand here.")
        return
    for column in st.columns([1.5, 1]):
        with column:
            for _ in range(3):
                st.skeleton(110)


def results(view: View) -> None:
    """Film strips beside the curves, and one stage in full."""
    left, right = st.columns([1.5, 1], gap="medium")
    with left:
        stages.strips(view)
    with right:
        stages.curves(view)
    stage.in_full(view)
    stages.table(view)
