"""One slider that shows the map following, or not following, a change of the image."""

from __future__ import annotations

import streamlit as st

from salviz.ui import display, drawn, follow, panels, state
from salviz.ui.view import Shown

_SLOT = "turn"
_STEPS = 21
_WIDTH = 448


@st.fragment
def turn(shown: Shown) -> None:
    """One slider that shows the map following or not following."""
    from salviz import figures
    from salviz.request import request_for
    from salviz.transforms import AUGMENTATIONS, default_variants, sweep

    st.subheader("Turn it yourself", anchor=False)
    graded = [key for key, card in AUGMENTATIONS.items() if card.has_magnitude]
    if st.session_state["turn"] not in graded:
        st.session_state["turn"] = "rotate"
    chosen = panels.choice("What changes", {key: AUGMENTATIONS[key].title for key in graded}, "turn")
    card = AUGMENTATIONS[chosen]
    if st.session_state.setdefault("_turn", chosen) != chosen:
        # Another kind of change starts where its first-look variant stands: well visible.
        st.session_state["_turn"] = chosen
        st.session_state["at"] = next(v.magnitude for v in default_variants() if v.augmentation == chosen)
    variants = sweep(chosen, _STEPS)
    magnitudes = [variant.magnitude or 0.0 for variant in variants]
    at = min(magnitudes, key=lambda value: abs(value - st.session_state["at"]))
    if st.session_state["at"] != at:
        st.session_state["at"] = at
    at = st.select_slider(
        card.description,
        magnitudes,
        key="at",
        format_func=lambda value: figures.magnitude(value, card.unit),
        persist_state="session",
    )
    state.write_url()
    index = magnitudes.index(at)
    asked = shown.exploration.request
    request = request_for(
        shown.picture,
        shown.loaded.classifier,
        method=asked.method,
        parameters=dict(asked.settings),
        target=asked.target,
        against=asked.against,
        output=asked.output,
        label=asked.label,
        variants=variants,
        data_range=asked.data_range,
        seed=asked.seed,
    )
    followed = follow.follow(_SLOT, follow.exploring(request, shown.picture, shown.loaded))
    if followed.state == "waiting":
        st.caption(f"Going through {len(variants)} strengths will take about {follow.duration(followed.seconds)}.")
    if followed.state in ("waiting", "stopped", "failed"):
        if followed.error:
            st.error(followed.error)
        st.button("Go through them", key="go_turn", on_click=follow.compute, args=(_SLOT, request.digest))
    if followed.state == "running":
        follow.progress(_SLOT, followed, shown.card.title)
    exploration = followed.result
    if exploration is None or len(exploration.raw) < 2:
        if followed.state != "running":
            return
        for column in st.columns([1, 1, 1.6]):
            with column:
                st.skeleton(260)
        return
    row = index + 1
    choices = display.chosen(shown.card)
    columns = st.columns([1, 1, 1.6])
    if row < len(exploration.raw):
        name = shown.name(int(exploration.predicted[row]))
        label = variants[index].label
        for column, aligned, caption in (
            (columns[0], False, f"{label}: {name}"),
            (columns[1], True, f"The map laid back: SSIM {panels.number(float(exploration.ssim[row]))}"),
        ):
            with column:
                content = drawn.overlay(request.digest, row, choices, _WIDTH, aligned, exploration)
                st.image(
                    content,
                    caption=caption,
                    width="stretch",
                    alt=f"{shown.card.title}: {caption}",
                )
    done = len(exploration.raw) - 1
    reference = int(exploration.predicted[0])
    figure = figures.similarity_against_magnitude(
        magnitudes[:done],
        exploration.ssim[1:].tolist(),
        [int(value) == reference for value in exploration.predicted[1:].tolist()],
        current=min(index, done - 1),
        unit=card.unit,
        augmentation=card.title,
        predictions=[shown.name(value) for value in exploration.predicted[1:].tolist()],
        theme=panels.theme(),
    )
    with columns[2]:
        st.plotly_chart(
            figure,
            theme=None,
            key="turn_chart",
            config={"displayModeBar": False},
            alt=f"SSIM of the map laid back against {card.title.lower()}",
        )
        st.caption(
            "A map that follows the change stays near 1 while the prediction is kept. The ring marks the slider."
        )
