"""The panels of the Explore page, from top to bottom."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import streamlit as st

from salviz.classifiers.registry import CARDS
from salviz.overlay import format_probability, format_value
from salviz.ui import bars, display, drawn, follow, panels, state
from salviz.ui.image_picker import sample_remark
from salviz.ui.sidebar import Pick
from salviz.ui.variants import variants
from salviz.ui.view import SLOT, Shown, View

if TYPE_CHECKING:
    from salviz.metrics.cose import CoseResult
    from salviz.render import Display


def header(view: View) -> None:
    """What is on screen, in one line, with link and downloads."""
    shown = view.shown
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        if shown is None:
            st.title("Explore", anchor=False, width="content")
            return
        st.title(panels.plain(_what(shown)), anchor=False, width="stretch")
        _take_along(shown)


def _what(shown: Shown) -> str:
    return " · ".join((shown.picture.name, shown.loaded.classifier.title, shown.card.title))


@st.fragment
def _take_along(shown: Shown) -> None:
    """Link and downloads; drawn anew when opened, as display choices and the slider do not run the whole page."""
    with st.container(horizontal=True, horizontal_alignment="right", wrap=False):
        panels.link(is_shareable=shown.picture.shareable, is_shown=shown.is_picked)
        _downloads(shown)


def _downloads(shown: Shown) -> None:
    from salviz import export

    exploration, classifier, picture = shown.exploration, shown.loaded.classifier, shown.picture
    choices = display.chosen(shown.card)
    name = f"{picture.name or 'picture'}-{exploration.request.method}".lower().replace(" ", "-")
    offers = (
        ("Overlay (PNG)", "overlay.png", lambda: export.overlay_png(exploration, picture, choices)),
        ("Map (PNG)", "map.png", lambda: export.overlay_png(exploration, picture, choices, part="map")),
        (
            "Raw arrays with manifest (.npz)",
            "maps.npz",
            lambda: export.archive(exploration, classifier, picture),
        ),
        (
            "Similarities (CSV)",
            "similarities.csv",
            lambda: export.similarities_csv(exploration, classifier.labels).encode(),
        ),
    )
    popover = st.popover(
        "Download",
        icon=":material/download:",
        disabled=not exploration.is_complete,
        help=None if exploration.is_complete else "Once all variants are there.",
        key="download",
        on_change="rerun",
    )
    if not popover.open:
        # Buttons from before the opening would vanish under the pointer, and their files with them.
        return
    with popover:
        for label, suffix, make in offers:
            # Made when somebody clicks, not on every run of the page.
            st.download_button(
                label, make, f"{name}-{suffix}", on_click="ignore", type="tertiary", key=f"download.{suffix}"
            )


def status(view: View) -> None:
    """One line that is always there: what was computed, or how far the work is."""
    followed, pick = view.followed, view.pick
    with st.container(key="status"):
        if followed is None:
            if view.lacks_model:
                _use_default()
            else:
                _facts(view.shown)
            _before(view)
            return
        name = _method_title(pick)
        if followed.state == "running":
            follow.progress(SLOT, followed, name)
        elif followed.state == "waiting":
            _offer(_estimate(name, followed.seconds, pick), "Compute", pick)
        elif followed.state == "stopped":
            _offer(f"{name} was stopped.", "Compute again", pick)
        elif followed.state == "failed":
            st.warning(followed.error, icon=":material/info:")
            if not followed.is_refused:
                _offer("", "Try again", pick, is_main=False)
        else:
            _facts(view.shown)
        _before(view)


def _before(view: View) -> None:
    if view.shown is not None and not view.shown.is_picked:
        st.caption(f"Shown below: what was there before, {panels.plain(_what(view.shown))}.")


def _offer(sentence: str, label: str, pick: Pick, *, is_main: bool = True) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        kind: Literal["primary", "tertiary"] = "primary" if is_main else "tertiary"
        st.button(label, type=kind, key="compute", on_click=follow.compute, args=(SLOT, pick.request.digest))
        if sentence:
            st.markdown(sentence, width="content")


def _estimate(name: str, seconds: float, pick: Pick) -> str:
    sentence = f"{name} will take about {follow.duration(seconds)}."
    rows = 1 + len(pick.request.variants) + len(pick.request.changes)
    if rows > 1:
        sentence += f" The photograph's own map comes first, after about {follow.duration(seconds / rows)}."
    return sentence


def _method_title(pick: Pick) -> str:
    from salviz import methods

    return methods.get(pick.request.method).card.title


_HARDLY = 0.005
"""Probability below which two digits show nothing of it."""


def _facts(shown: Shown | None) -> None:
    if shown is None:
        return
    exploration = shown.exploration
    height, width = exploration.grid
    where = f" at layer `{exploration.layer}`" if exploration.layer else ""
    probability = float(exploration.probabilities[0, int(exploration.classes[0])])
    name, rival = panels.explained(exploration, shown.name)
    # A target that was chosen for another picture stays: a map of it is no less vivid.
    seen = "" if probability >= _HARDLY else ", which the model hardly sees here"
    parts = [
        f"Explains **{name}** ({format_probability(probability)}{seen}){rival}",
        f"{shown.card.title}{where}, native {width} × {height}",
        f"{panels.counted(round(exploration.passes), 'pass', 'passes')} in {exploration.seconds:.1f} s",
    ]
    if exploration.standard_error is not None:
        parts.append(panels.standard_error(exploration))
    if exploration.completeness is not None:
        parts.append(panels.completeness(exploration))
    parts += panels.flatness(exploration)
    st.caption(" · ".join([*parts, *shown.picture.notes]))


def empty(view: View) -> None:
    """The photograph before there is a map, and the layout around it while a map is on its way."""
    picture = view.pick.picture
    if view.lacks_model or picture is None:
        return
    photograph = drawn.photograph(picture.digest, picture)
    if view.is_running:
        panels.skeletons("Computing the first map …", photograph=photograph, alt=picture.described)
    else:
        panels.photograph(photograph, picture.described)


def _use_default() -> None:
    """The way on from a model that cannot be had."""
    st.button(
        f"Use {CARDS[0].title}",
        type="primary",
        key="use_default",
        on_click=lambda: st.session_state.update(model=CARDS[0].id),
    )


@st.fragment
def pictures_and_variants(shown: Shown, *, is_running: bool = False) -> None:
    """Everything that display choices re-blend: one fragment, so that they neither recompute nor scroll."""
    if st.session_state.pop("_whole", False):
        st.rerun()
    with st.container(horizontal=True, vertical_alignment="center"):
        # On the left, where its popover covers the photograph and not the overlay it changes.
        display.controls(shown.card)
        st.caption(sample_remark(shown.picture, shown.loaded.classifier) or " ", width="stretch")
    choices = display.chosen(shown.card)
    _pictures(shown, choices)
    _scores(shown, is_running=is_running)
    variants(shown, choices, is_running=is_running)
    state.write_url()


def _pictures(shown: Shown, choices: Display) -> None:
    photograph, map_, overlay, lowest, highest = drawn.pictures(
        shown.exploration.request.digest, choices, shown.exploration, shown.picture
    )
    photo = shown.picture.described
    what = f"{shown.card.title} map for {shown.explained}"
    columns = st.columns(panels.PICTURES)
    for column, content, caption, alt in (
        (columns[0], photograph, "Photograph", photo),
        (columns[1], map_, "Map", what),
        (columns[2], overlay, "Overlay", f"{what} over the photograph: {photo}"),
    ):
        with column:
            st.image(content, caption=caption, width="stretch", alt=alt)
    with columns[1]:
        low, high = format_value(lowest), format_value(highest)
        st.image(drawn.scale(choices.colormap_id, lowest, highest), width="stretch", alt=f"Scale from {low} to {high}")
        with st.container(horizontal=True, horizontal_alignment="distribute", wrap=False):
            st.caption(low, width="content")
            st.caption(high, width="content")
        if not _sees_all(shown):
            st.caption("Grey: outside what the model sees.")
    with columns[3]:
        _top_five(shown)


def _sees_all(shown: Shown) -> bool:
    """Whether the model's frame covers the whole photograph."""
    placement = shown.exploration.placement
    left, top, right, bottom = placement.box
    return left <= 0 and top <= 0 and right >= placement.size[0] and bottom >= placement.size[1]


def _top_five(shown: Shown) -> None:
    probabilities = shown.exploration.probabilities[0]
    top = probabilities.topk(min(5, len(probabilities)))
    ids = top.indices.tolist()
    st.caption("Most probable classes")
    bars.classes(
        ids,
        [shown.name(index) for index in ids],
        top.values.tolist(),
        explained=int(shown.exploration.classes[0]),
        on_pick=_explain,
    )


def _explain(index: int) -> None:
    """Make a class the target."""
    st.session_state["target"] = index
    # The bars are drawn by a fragment, the target stands outside of it.
    st.session_state["_whole"] = True


def _why_undefined(shown: Shown, result: CoseResult, *, is_awaited: bool) -> tuple[str, str, str]:
    """Why consistency, sensitivity and COSE are undefined, each for the case that it is; and what to try."""
    exploration, request = shown.exploration, shown.exploration.request
    again = "For the same reason."
    if is_awaited:
        return "The variants are still to come.", "", ""
    if not exploration.is_complete and not exploration.variants:
        return "The work was stopped before the variants.", again, again
    if request.label is not None and int(exploration.predicted[0]) != request.label:
        wrong = f"The clean prediction is not {shown.name(request.label)}, and COSE counts only images that are "
        return f"{wrong}classified rightly.", again, again
    flat = "The maps are flat: they have no similarity."
    stays = "No augmentation left the prediction as it was. Choose more or milder augmentations."
    turns = "No augmentation and no changed model changed the prediction. Try the paper's 48 or the untrained twin."
    if not request.variants:
        stays = "No augmentation is chosen. Choose some under Augmentations."
        turns = again if not request.changes else turns
    root = "It needs both consistency and sensitivity."
    if result.consistency.value < 0:
        root = "Consistency is negative, and has no root."
    return (
        flat if result.consistency.undefined else stays,
        flat if result.sensitivity.undefined else turns,
        root,
    )


def _scores(shown: Shown, *, is_running: bool) -> None:
    from salviz.metrics import cose
    from salviz.scores import scores

    exploration, request = shown.exploration, shown.exploration.request
    result = scores(exploration)
    is_awaited = is_running and not exploration.is_complete
    reasons = _why_undefined(shown, result, is_awaited=is_awaited)
    for column, score, card, missing in zip(
        st.columns(3),
        (result.consistency, result.sensitivity, result.cose),
        (cose.CONSISTENCY, cose.SENSITIVITY, cose.COSE),
        reasons,
        strict=True,
    ):
        with column:
            panels.score(
                card.title,
                score,
                meaning=f"{card.description} {card.citation}.",
                missing=missing,
                is_awaited=is_awaited,
            )
    notes = []
    if request.label is None:
        notes.append("The true class is not known: the clean prediction stands in for it.")
    if request.target is not None:
        notes.append(f"All maps explain {shown.name(request.target)}; COSE's own rule explains each prediction.")
    notes.append("Intervals: 95 %, bootstrap over the variants of this one image.")
    st.caption(" ".join(notes))
