"""The panels of the Explore page, from top to bottom."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

import streamlit as st

from salviz.colormaps import COLORMAPS
from salviz.overlay import DisplayRange, format_value, png, resize_for_display, scale_bar
from salviz.ui import follow, panels, state
from salviz.ui.session import classifiers
from salviz.ui.sidebar import Pick, sample_remark

_SLOT = "explore"
_CARD_WIDTH = 236


@dataclass
class View:
    """What the page shows: the pick, where its work stands, and the exploration on screen.

    Attributes:
        pick: What the person chose.
        followed: Where the work for it stands, or None while something is missing.
        exploration: On screen: the pick's own, or the one that was there before.
        picture: The picture on screen.
        classifier: The classifier on screen.
        is_current: Whether the exploration on screen is the pick's.
        problems: One sentence each.
    """

    pick: Pick
    followed: follow.Followed | None
    exploration: Any
    picture: Any
    classifier: Any
    is_current: bool
    problems: list[str]

    @property
    def card(self) -> Any:  # noqa: ANN401 - a MethodCard
        """Card of the method on screen."""
        from salviz import methods

        return methods.get(self.exploration.request.method).card


def look(pick: Pick) -> View:
    """Ask for what was picked; keep what was on screen while it is not there."""
    followed = None
    if pick.request is not None:
        followed = follow.follow(_SLOT, pick.request, pick.picture, pick.loaded)
        if followed.result is not None:
            _remember(pick, followed.result)
            classifier = pick.loaded.classifier
            return View(pick, followed, followed.result, pick.picture, classifier, True, list(pick.problems))
    before = st.session_state.get("_shown")
    if before is None:
        return View(pick, followed, None, None, None, False, list(pick.problems))
    exploration, picture, key = before
    return View(pick, followed, exploration, picture, classifiers().get(*key).classifier, False, list(pick.problems))


def _remember(pick: Pick, exploration: Any) -> None:  # noqa: ANN401 - an Exploration
    st.session_state["_shown"] = (exploration, pick.picture, (pick.loaded.classifier.id,))
    top = tuple(exploration.probabilities[0].topk(min(5, exploration.logits.shape[1])).indices.tolist())
    if st.session_state.get("_top") != top:
        st.session_state["_top"] = top


def header(view: View) -> None:
    """What is on screen, in one line, with link and downloads."""
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        if view.exploration is None:
            st.title("Explore", anchor=False, width="content")
            return
        st.title(
            f"{view.picture.name} · {view.classifier.title} · {view.card.title}", anchor=False, width="content"
        )
        with st.container(horizontal=True, width="content"):
            panels.link(is_shareable=view.picture.shareable)
            _downloads(view)


def _downloads(view: View) -> None:
    from salviz import export

    exploration, classifier, picture = view.exploration, view.classifier, view.picture
    display = display_choices()
    name = f"{picture.name or 'picture'}-{exploration.request.method}".lower().replace(" ", "-")
    with st.popover("Download", icon=":material/download:", disabled=not exploration.is_complete):
        for label, suffix, mime, make in (
            ("Overlay (PNG)", "overlay.png", "image/png", lambda: export.overlay_png(exploration, picture, display)),
            (
                "Map (PNG)", "map.png", "image/png",
                lambda: export.overlay_png(exploration, picture, display, part="map"),
            ),
            (
                "Raw arrays with manifest (.npz)", "maps.npz", "application/octet-stream",
                lambda: export.archive(exploration, classifier, picture),
            ),
            (
                "Similarities (CSV)", "similarities.csv", "text/csv",
                lambda: export.similarities_csv(exploration, classifier.labels).encode(),
            ),
        ):  # fmt: skip
            st.download_button(
                label, make, f"{name}-{suffix}", mime, on_click="ignore", type="tertiary", key=f"download.{suffix}"
            )


def status(view: View) -> None:
    """One line that is always there: what was computed, or how far the work is."""
    followed, pick = view.followed, view.pick
    with st.container(key="status"):
        if followed is None:
            _facts(view)
            return
        name = _method_title(pick)
        if followed.state == "running":
            follow.progress(_SLOT, followed, name)
        elif followed.state == "waiting":
            _offer(f"{name} will take about {follow.duration(followed.seconds)}.", "Compute", pick)
        elif followed.state == "stopped":
            _offer(f"{name} was stopped.", "Compute again", pick)
        elif followed.state == "failed":
            st.error(followed.error)
            _offer("", "Try again", pick)
        else:
            _facts(view)
        if view.exploration is not None and not view.is_current:
            st.caption("Shown below: what was there before.")


def _offer(sentence: str, label: str, pick: Pick) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(label, type="primary", key="compute", on_click=follow.compute, args=(_SLOT, pick.request))
        if sentence:
            st.markdown(sentence, width="content")


def _method_title(pick: Pick) -> str:
    from salviz import methods

    title: str = methods.get(pick.request.method).card.title
    return title


def _facts(view: View) -> None:
    exploration = view.exploration
    if exploration is None:
        return
    height, width = exploration.grid
    where = f" at layer `{exploration.layer}`" if exploration.layer else ""
    parts = [
        f"{view.card.title}{where}, native {width} × {height}",
        f"{round(exploration.passes)} passes in {exploration.seconds:.1f} s",
    ]
    if exploration.completeness is not None:
        parts.append(f"completeness error {format_value(float(exploration.completeness[0]))}")
    parts += list(view.picture.notes)
    st.caption(" · ".join(parts))


def empty(view: View) -> None:
    """The layout before there is anything to show."""
    panels.skeletons("" if view.problems else "Computing the first map …")


def display_choices() -> Any:  # noqa: ANN401 - a render.Display
    """The display choices as they stand."""
    from salviz.render import Display

    chosen = st.session_state
    colormap = chosen["cmap"] if chosen["cmap"] == "auto" or chosen["cmap"] in COLORMAPS else "auto"
    return Display(
        colormap=colormap,
        opacity=chosen["alpha"],
        is_signed=chosen["sign"] == "signed",
        range_mode=chosen["span"] if chosen["span"] in _SPANS else "full",
        scale=chosen["scale"],
        is_smooth=chosen["cells"] == "smooth",
    )


_SPANS = {
    DisplayRange.FULL.value: "Smallest to largest",
    DisplayRange.PERCENTILE.value: "1st to 99th percentile",
    DisplayRange.POSITIVE.value: "Zero to largest",
    DisplayRange.SYMMETRIC.value: "Symmetric about zero",
}


def _display_controls(card: Any) -> None:  # noqa: ANN401 - a MethodCard
    with st.popover("Display", icon=":material/tune:"):
        st.slider("Opacity of the map", 0.0, 1.0, step=0.05, key="alpha", persist_state="session")
        st.selectbox(
            "Colours",
            ["auto", *COLORMAPS],
            format_func=lambda key: "By kind of map" if key == "auto" else COLORMAPS[key].title,
            key="cmap",
            persist_state="session",
        )
        st.segmented_control(
            "Sign",
            ["unsigned", "signed"],
            format_func={"unsigned": "How much", "signed": "For and against"}.get,
            key="sign",
            required=True,
            disabled=not card.signed,
            help="How much each place matters; or with its sign, where the method has one.",
            persist_state="session",
        )
        st.selectbox("Range", list(_SPANS), format_func=_SPANS.get, key="span", persist_state="session")
        st.segmented_control(
            "Scale of the variants",
            ["map", "shared"],
            format_func={"map": "Each its own", "shared": "The clean map's"}.get,
            key="scale",
            required=True,
            persist_state="session",
        )
        st.segmented_control(
            "Cells",
            ["smooth", "cells"],
            format_func={"smooth": "Interpolated", "cells": "As computed"}.get,
            key="cells",
            required=True,
            persist_state="session",
        )


@st.fragment
def pictures_and_variants(view: View) -> None:
    """Everything that display choices re-blend: one fragment, so that they neither recompute nor scroll."""
    from salviz import render

    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        remark = sample_remark(view.picture)
        st.caption(remark or " ", width="stretch")
        _display_controls(view.card)
    display = display_choices()
    if display.is_signed and not view.card.signed:
        from dataclasses import replace

        display = replace(display, is_signed=False)
    shown = render.pictures(view.exploration, view.picture, display)
    columns = st.columns([1, 1, 1, 1.1])
    explained = _name(view, int(view.exploration.classes[0]))
    alt = view.picture.alt or view.picture.name
    for column, pixels, title, text in (
        (columns[0], shown.photo, "Photograph", alt),
        (columns[1], shown.map, "Map", f"{view.card.title} map for {explained}"),
        (columns[2], shown.overlay, "Overlay", f"{view.card.title} map for {explained} over the photograph: {alt}"),
    ):
        with column:
            st.image(png(pixels), caption=title, width="stretch", output_format="PNG", alt=text)
            if title == "Map":
                _scale_bar(display, shown.low, shown.high)
    with columns[3]:
        _top_five(view)
    _scores(view)
    _variants(view, display)
    state.write_url()


def _scale_bar(display: Any, low: float, high: float) -> None:  # noqa: ANN401 - a render.Display
    bar = scale_bar(display.colormap_id, low, high, 10)
    st.image(
        png(bar), width="stretch", output_format="PNG", alt=f"Scale from {format_value(low)} to {format_value(high)}"
    )
    with st.container(horizontal=True, horizontal_alignment="distribute"):
        st.caption(format_value(low), width="content")
        st.caption(format_value(high), width="content")


def _name(view: View, index: int) -> str:
    name: str = view.classifier.labels.short(index)
    return name


def _top_five(view: View) -> None:
    from salviz import figures

    exploration = view.exploration
    top = exploration.probabilities[0].topk(min(5, exploration.logits.shape[1]))
    names = [_name(view, index) for index in top.indices.tolist()]
    explained = _name(view, int(exploration.classes[0]))
    st.caption(f"Most probable classes; explained: {explained}")
    st.plotly_chart(
        figures.top_classes(names, top.values.tolist(), target=explained, theme=panels.theme()),  # type: ignore[arg-type]
        theme=None,
        key="top_five",
        config={"displayModeBar": False},
        alt="Bars: " + ", ".join(f"{n} {p:.2f}" for n, p in zip(names, top.values.tolist(), strict=True)),
    )


def _scores(view: View) -> None:
    from salviz.scores import scores

    exploration = view.exploration
    result = scores(exploration)
    request = exploration.request
    standing_in = request.label is None
    wrong = not standing_in and int(exploration.predicted[0]) != request.label
    columns = st.columns(3)
    reason = (
        "The clean prediction is not the true class, and COSE counts only images that are classified rightly."
        if wrong
        else ""
    )
    with columns[0]:
        panels.score(
            "Consistency",
            result.consistency,
            meaning="Mean SSIM of the maps where the prediction stays under an augmentation: they should be alike.",
            missing=reason or "No augmentation left the prediction as it was. Choose more or milder augmentations.",
        )
    with columns[1]:
        panels.score(
            "Sensitivity",
            result.sensitivity,
            meaning="One minus the mean SSIM of the maps where the prediction changes, by an augmentation or in a "
            "changed model: they should differ.",
            missing=reason or "No augmentation and no changed model changed the prediction. Try the paper's 48.",
        )
    with columns[2]:
        panels.score(
            "COSE",
            result.cose,
            meaning="Geometric mean of consistency and sensitivity (Daroya, Sun, Maji 2023).",
            missing=reason or "It needs both consistency and sensitivity.",
        )
    notes = []
    if standing_in:
        notes.append("The true class is not known: the clean prediction stands in for it.")
    if request.target is not None:
        notes.append(f"All maps explain {_name(view, request.target)}; COSE's own rule explains each prediction.")
    notes.append("Intervals: 95 %, bootstrap over the variants of this one image.")
    st.caption(" ".join(notes))


@dataclass(frozen=True)
class _Row:
    row: int
    label: str


def _variants(view: View, display: Any) -> None:  # noqa: ANN401 - a render.Display
    exploration = view.exploration
    names = [variant.label for variant in exploration.variants] + [_change_name(name) for name in exploration.changes]
    reference = exploration.request.label if exploration.request.label is not None else int(exploration.predicted[0])
    kept, changed = [], []
    for row, name in enumerate(names, start=1):
        stays = int(exploration.predicted[row]) == reference
        (kept if stays else changed).append(_Row(row, name))
    columns = st.columns(2, gap="medium")
    for column, title, rows, icon, nothing in (
        (
            columns[0], "Prediction kept: the map should stay", kept, ":material/check:",
            "No augmentation left the prediction as it was. Choose milder ones.",
        ),
        (
            columns[1], "Prediction changed: the map should change", changed, ":material/change_history:",
            "Nothing changed the prediction. Choose stronger augmentations, the paper's 48, or the untrained twin.",
        ),
    ):  # fmt: skip
        with column:
            st.subheader(f"{icon} {title}", anchor=False)
            if not rows:
                st.caption(nothing if exploration.is_complete else "Nothing yet.")
            for item in rows:
                _variant(view, item, display)


def _change_name(change: str) -> str:
    return "untrained network" if change == "untrained" else change.replace(":", " ")


def _variant(view: View, item: _Row, display: Any) -> None:  # noqa: ANN401 - a render.Display
    from salviz import render

    exploration, row = view.exploration, item.row
    predicted = int(exploration.predicted[row])
    name = _name(view, predicted)
    probability = float(exploration.probabilities[row, predicted])
    similarity = float(exploration.ssim[row])
    background = 18 if panels.theme() == "dark" else 255
    pixels = render.row_card(exploration, row, display, background=background)
    said = "undefined" if similarity != similarity else f"{similarity:.2f}".replace("-", "−")
    with st.container(horizontal=True, vertical_alignment="center", gap="small", wrap=False):
        st.image(
            png(resize_for_display(pixels, 2 * _CARD_WIDTH)),
            width=_CARD_WIDTH,
            output_format="PNG",
            alt=f"{item.label}: the changed input, and its map laid back on the original; SSIM {said}",
        )
        st.markdown(
            f"**{html.escape(item.label)}**  \nSSIM {said}  \n{html.escape(name)} {probability:.2f}", width="stretch"
        )


@st.fragment
def turn(view: View) -> None:
    """One slider that shows the map following or not following."""
    from salviz import figures, render
    from salviz.exploration import request_for
    from salviz.transforms import AUGMENTATIONS, sweep

    st.subheader("Turn it yourself", anchor=False)
    graded = [key for key, card in AUGMENTATIONS.items() if card.has_magnitude]
    if st.session_state["turn"] not in graded:
        st.session_state["turn"] = "rotate"
    chosen = st.segmented_control(
        "Augmentation", graded, format_func=lambda key: AUGMENTATIONS[key].title, key="turn", required=True,
        label_visibility="collapsed", persist_state="session",
    )  # fmt: skip
    card = AUGMENTATIONS[chosen]
    variants = sweep(chosen, 21)
    magnitudes = [variant.magnitude or 0.0 for variant in variants]
    at = min(magnitudes, key=lambda value: abs(value - st.session_state["at"]))
    if st.session_state["at"] != at:
        st.session_state["at"] = at
    at = st.select_slider(
        card.description, magnitudes, key="at", format_func=lambda value: _magnitude(value, card.unit),
        persist_state="session",
    )  # fmt: skip
    state.write_url()
    index = magnitudes.index(at)
    asked = view.exploration.request
    request = request_for(
        view.picture, view.classifier, method=asked.method, parameters=dict(asked.settings), target=asked.target,
        output=asked.output, label=asked.label, variants=variants, data_range=asked.data_range, seed=asked.seed,
    )  # fmt: skip
    loaded = classifiers().get(view.classifier.id)
    followed = follow.follow("turn", request, view.picture, loaded)
    if followed.state == "waiting":
        st.caption(f"Going through {len(variants)} strengths will take about {follow.duration(followed.seconds)}.")
    if followed.state in ("waiting", "stopped", "failed"):
        if followed.error:
            st.error(followed.error)
        st.button("Go through them", key="go_turn", on_click=follow.compute, args=("turn", request))
    if followed.state == "running":
        follow.progress("turn", followed, view.card.title)
    exploration = followed.result
    if exploration is None or len(exploration.raw) < 2:
        for column in st.columns([1, 1, 1.6]):
            with column:
                st.skeleton(260)
        return
    row = index + 1
    display = display_choices()
    columns = st.columns([1, 1, 1.6])
    if row < len(exploration.raw):
        name = _name(view, int(exploration.predicted[row]))
        label = variants[index].label
        for column, aligned, caption in (
            (columns[0], False, f"{label}: {name}"),
            (columns[1], True, f"The map laid back: SSIM {float(exploration.ssim[row]):.2f}"),
        ):
            with column:
                pixels = render.row_overlay(exploration, row, display, is_aligned=aligned)
                st.image(
                    png(resize_for_display(pixels, 448)), caption=caption, width="stretch", output_format="PNG",
                    alt=f"{view.card.title}: {caption}",
                )  # fmt: skip
    done = len(exploration.raw) - 1
    reference = int(exploration.predicted[0])
    with columns[2]:
        st.plotly_chart(
            figures.similarity_against_magnitude(
                magnitudes[:done],
                exploration.ssim[1:].tolist(),
                [int(value) == reference for value in exploration.predicted[1:].tolist()],
                current=min(index, done - 1),
                unit=card.unit,
                augmentation=card.title,
                predictions=[_name(view, int(value)) for value in exploration.predicted[1:].tolist()],
                theme=panels.theme(),  # type: ignore[arg-type]
            ),
            theme=None,
            key="turn_chart",
            config={"displayModeBar": False},
            alt=f"SSIM of the map laid back against {card.title.lower()}",
        )
        st.caption(
            "A map that follows the change stays near 1 while the prediction is kept. The ring marks the slider's place."
        )


def _magnitude(value: float, unit: str) -> str:
    if unit == "factor":
        return f"{value:+.2f}".replace("-", "−")
    return f"{value:+.4g} {unit}".replace("-", "−").replace(" °", "°")
