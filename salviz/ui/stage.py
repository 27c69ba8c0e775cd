"""One stage of a randomisation test in full: its map over the picture beside the trained net's, and its predictions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from salviz.metrics.randomisation import CALIBRATION
from salviz.overlay import format_probability
from salviz.ui import display, drawn, panels, state

if TYPE_CHECKING:
    from salviz.ui.sanity import View


def names(view: View) -> list[str]:
    """What stands in each place of a strip that is there (see `report.net_names`)."""
    from salviz.sanity.report import net_names

    assert view.found is not None and view.pick.loaded is not None  # noqa: S101, PT018 - the page asked
    return net_names(view.found, view.pick.loaded.classifier.labels)


@st.fragment
def in_full(view: View) -> None:
    """A stage to choose; or, where a single net or class stands in for the trained one's, the two side by side."""
    from salviz import methods
    from salviz.sanity import OtherClass

    found = view.found
    assert found is not None and found.strip is not None  # noqa: S101, PT018 - the page asked
    strip, places = found.strip, list(found.strip.places)
    is_choice = len(places) > 2
    st.subheader("One stage at a time" if is_choice else "Side by side", anchor=False)
    titles = {method: title for method, title in view.titles().items() if method not in CALIBRATION}
    if st.session_state["shown"] not in titles:
        st.session_state["shown"] = next(iter(titles))
    if st.session_state["stage"] not in places:
        st.session_state["stage"] = places[0]
    method = panels.pick("Method", titles, "shown")
    place = _slider(view, places) if is_choice else 1
    if place >= len(strip.top):
        st.caption(f"The maps at {places[place]} are not computed yet.")
        return
    choices = display.chosen(methods.get(method).card)

    def picture(start: int, caption: str) -> None:
        content = drawn.stage(view.key, method, start, choices, strip)
        st.image(content, caption=panels.plain(caption), width="stretch", alt=f"{titles[method]}: {caption}")

    other = _caption(view, place) if place else "The same: move the slider"
    # Two nets stand each above what it predicts; another class is asked of one net.
    has_two = not is_choice and not isinstance(found.check.how, OtherClass)
    columns = st.columns([1, 1, 1.2])
    with columns[0]:
        picture(0, _caption(view, 0))
        if has_two:
            _predictions(view, 0)
    with columns[1]:
        picture(place, other)
        if has_two:
            _predictions(view, place)
    with columns[2]:
        if not has_two:
            _predictions(view, place)
        if place:
            st.caption(_told(view, method, place))
    state.write_url()


def _slider(view: View, places: list[str]) -> int:
    """Which stage is chosen."""
    from salviz.sanity import is_cumulative

    assert view.found is not None  # noqa: S101 - the page asked
    stage = st.select_slider(
        "Random up to" if is_cumulative(view.found.check.how) else "Instead of the trained net",
        places,
        key="stage",
        format_func=lambda name: "nothing yet" if name == "trained" else name,
        persist_state="session",
    )
    return places.index(str(stage))


def _caption(view: View, place: int) -> str:
    """Under a map: whose it is."""
    from salviz.classifiers.randomising import Randomisation

    assert view.found is not None  # noqa: S101 - the page asked
    name = names(view)[place]
    if place and isinstance(view.found.check.how, Randomisation):
        return f"Random: {name}"
    return name[:1].upper() + name[1:]


def _predictions(view: View, place: int) -> None:
    """The most probable classes of a net."""
    assert view.found is not None and view.found.strip is not None and view.pick.loaded is not None  # noqa: S101, PT018
    labels = view.pick.loaded.classifier.labels
    st.markdown("**This net predicts**")
    for index, probability in zip(*view.found.strip.top[place], strict=True):
        st.progress(
            min(1.0, probability), text=f"{panels.plain(labels.short(index))}  {format_probability(probability)}"
        )


def _learnt(view: View) -> str:
    """Why a net that learnt other labels may answer wrongly, and be sure of it."""
    from salviz.classifiers.registry import TWINS
    from salviz.sanity import Twin

    assert view.found is not None  # noqa: S101 - the page asked
    how = view.found.check.how
    if not isinstance(how, Twin) or how.id in TWINS:
        return ""
    if how.id in TWINS.values():
        return (
            " This net learnt labels that were shuffled among its training pictures. It knows those pictures by heart, "
            "and for any other it can only guess: wrong answers, and sure ones, are what to expect here."
        )
    return " This net learnt other labels, so its answers need not fit the picture."


def _told(view: View, method: str, place: int) -> str:
    """How alike the two maps of the picture that is shown are, whatever the others say, and how the net changed."""
    from salviz.sanity import OtherClass

    found = view.found
    assert found is not None  # noqa: S101 - the page asked
    measure = str(st.session_state["measure"])
    where = found.methods.index(method), found.check.measures.index(measure), 0, place - 1, 0
    told = f"Similarity with the trained net's map {panels.number(float(found.scores[where]))}."
    if not isinstance(found.check.how, OtherClass):
        spread = float(found.spread[0, place - 1, 0])
        told += f" Its class scores (logits) spread {spread:.2g} times as wide as the trained net's."
        told += _learnt(view)
    return told
