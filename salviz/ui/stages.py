"""What the Sanity checks page shows of the stages: film strips, curves, one stage in full, and verdicts."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import TYPE_CHECKING, Any

import streamlit as st

from salviz.ui import display, drawn, follow, panels, randomising, stage, state
from salviz.ui.sidebar import Pick

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from salviz.images import Picture
    from salviz.render import Display
    from salviz.sanity import Check
    from salviz.sanity.strip import Strip
    from salviz.ui.sanity import View

_MOST = 8
"""Nets in a strip: more would be too small to see."""
_THUMB = 96
_COMPARING_SECONDS = 2.5e-7
"""A pixel's share of a comparison of two maps, on a CPU: comparing many pictures may cost more than explaining them."""
_FEW, _WIDE = 4, 150
"""Strips of so many nets at the most stand in this many pixels a map, and longer ones across the column."""


def task(check: Check, pick: Pick, pictures: Sequence[Picture], twin: Any) -> follow.Task:
    """The work of a check of the picked classifier."""
    from salviz import durations
    from salviz.plain import json_text
    from salviz.sanity import stage_names
    from salviz.sanity.report import described
    from salviz.sanity.running import comparisons

    loaded = pick.loaded
    classifier = loaded.classifier
    nets = len(stage_names(classifier, check.how))
    once = durations.seconds(loaded, check.rows) * (1 + nets * check.draws)
    height, width = classifier.preprocessing.input_size
    compared = comparisons(check, len(pictures), nets) * height * width * _COMPARING_SECONDS
    seconds = once * check.copies * len(pictures) + compared

    def run(job: Any) -> Any:
        from salviz.sanity import check_pictures

        return check_pictures(
            classifier, pictures, check, keeps_strip=True, progress=job.tick, publish=job.publish, twin=twin
        )

    text = json_text(
        {
            "check": described(check),
            "pictures": [picture.digest for picture in pictures],
            "weights": [classifier.id, classifier.digest],
        }
    )
    return follow.Task(
        hashlib.blake2b(text.encode(), digest_size=16).hexdigest(), seconds, seconds > follow.PATIENT_SECONDS, run
    )


def _places(view: View) -> list[int]:
    """Which nets a strip shows, the trained one first."""
    assert view.found is not None and view.found.strip is not None  # noqa: S101, PT018 - the page asked
    count = len(view.found.strip.places)
    if count <= _MOST:
        return list(range(count))
    # The trained net and the first stage, where the difference shows, and the others evenly.
    return [0, *(1 + round(i * (count - 2) / (_MOST - 2)) for i in range(_MOST - 1))]


@st.fragment
def strips(view: View) -> None:
    """A row a method: its map of the trained net, then of nets with more and more random weights."""
    found = view.found
    assert found is not None and found.strip is not None  # noqa: S101, PT018 - the page asked
    places = _places(view)
    every = stage.names(view)
    names = [every[place] for place in places if place < len(every)]
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.subheader("Film strips", anchor=False, width="stretch")
        display.controls(None, apart="Each map has its own scale: random weights change the size of all values.")
    shown = panels.plain(", ".join(names))
    st.caption(f"Each map on its own scale, from left to right: {shown}.{_missing(view, len(names))}")
    measure = _measure()
    told = _verdicts(view, measure)
    for method, title in view.titles().items():
        choices = display.chosen(_card(method))
        words = "; ".join(told.get(method, [""])) if found.is_complete else ""
        st.markdown(f"**{title}**" + (f": {words}" if words else ""))
        content = drawn.strip(
            view.key, method, tuple(places), len(found.strip.top), choices, _THUMB,
            panels.ground(), found.strip,
        )  # fmt: skip
        # A few nets need no more room than their maps.
        width: Any = "stretch" if len(places) > _FEW else _WIDE * len(places)
        st.image(content, width=width, alt=f"{title}: maps of {', '.join(names)}")
    state.write_url()


def _missing(view: View, shown: int) -> str:
    """How many nets a strip leaves out, because they would be too many or are not there."""
    assert view.found is not None and view.found.strip is not None  # noqa: S101, PT018 - the page asked
    count, known = len(view.found.strip.places), len(view.found.strip.top)
    if known < count:
        is_running = view.followed is not None and view.followed.state == "running"
        return f" {known} of {count} nets so far." if is_running else f" Only {known} of {count} nets were computed."
    return f" These are {shown} of {count} nets." if shown < count else ""


def _card(method: str) -> Any:
    from salviz import methods

    return methods.get(method).card


def _measure() -> str:
    return str(st.session_state["measure"])


def _verdicts(view: View, measure: str) -> dict[str, list[str]]:
    from salviz.sanity.report import verdicts

    assert view.found is not None  # noqa: S101 - the page asked
    return verdicts(view.found, measure) if view.found.is_complete else {}


@st.fragment
def curves(view: View) -> None:
    """Similarity along the stages, with the calibration lines."""
    from salviz import figures, methods
    from salviz.figures import curves as drawing
    from salviz.sanity import OtherClass
    from salviz.similarity.measures import MEASURES

    found = view.found
    assert found is not None  # noqa: S101 - the page asked
    st.subheader("How alike the maps stay", anchor=False)
    before = _measure()
    measure = panels.pick("Similarity", randomising.measures(view.pick), "measure")
    if measure != before:
        # The verdicts beside the strips are of this similarity.
        st.rerun()
    missing = randomising.left_out(view.pick)
    st.caption(MEASURES[measure].meaning + (f" {missing}" if missing else ""))
    order = list(methods.METHODS)
    colours = {method: figures.method_colour(_card(method).family, order.index(method)) for method in found.methods}
    known = {method: found.curve(method, measure) for method in found.methods}
    title = MEASURES[measure].title
    if len(found.stages) > 1:
        chosen = st.session_state["stage"]
        current = found.stages.index(chosen) if chosen in found.stages else None
        figure = drawing.randomisation(
            found.stages, known, colours, view.titles(), current=current, measure=title, theme=panels.theme()
        )
    else:
        figure = drawing.intervals(known, colours, view.titles(), measure=title, theme=panels.theme())
    where = "along the stages; at the last one" if len(found.stages) > 1 else "of the two maps:"
    last = {method: panels.number(curve.stages[-1].value) for method, curve in known.items()}
    st.plotly_chart(
        figure,
        theme=None,
        key="curves",
        config={"displayModeBar": False},
        alt=f"{title} {where} " + ", ".join(f"{view.titles()[method]} {value}" for method, value in last.items()),
    )
    what = "class that is asked for" if isinstance(found.check.how, OtherClass) else "net"
    st.caption(
        f"A method that explains the net lets its maps change with the {what}. A map of the picture's edges never "
        "moves; a random map is drawn anew each time. Both stand in grey."
    )
    state.write_url()


def table(view: View) -> None:
    """All numbers, and the files."""
    from salviz.classifiers.randomising import Randomisation
    from salviz.metrics.randomisation import mean
    from salviz.plain import json_text
    from salviz.sanity import report

    found = view.found
    assert found is not None and found.strip is not None  # noqa: S101, PT018 - the page asked
    if not found.is_complete:
        return
    measure = _measure()
    titles = view.titles()
    with st.expander("Numbers"):
        columns = {"Stage": list(found.stages)}
        columns |= {
            titles[method]: [panels.number(score.value) for score in found.curve(method, measure).stages]
            for method in found.methods
        }
        columns["Logit spread"] = [f"{float(value):.2g}" for value in found.spread.mean(axis=(0, 2))]
        columns["Same prediction"] = [panels.share(float(value)) for value in found.agrees.mean(axis=(0, 2))]
        st.dataframe(columns, hide_index=True)
        if isinstance(found.check.how, Randomisation):
            rises = ", ".join(
                f"{titles[method]} {panels.number(mean(row))}"
                for method, row in zip(found.methods, found.efficient_mprt, strict=True)
            )
            st.caption(f"Efficient MPRT, the rise of entropy at the last stage as a share: {rises}.")
        pictures = view.chosen.pictures
        name = pictures[0].name or "picture"
        with st.container(horizontal=True):
            # Read now: whoever fetches a file has no session.
            choices = {method: display.chosen(_card(method)) for method in titles}
            classifier, images = view.pick.loaded.classifier, [(picture.name, picture.digest) for picture in pictures]
            names = [one for one, _ in images]
            files: dict[str, tuple[str, Callable[[], bytes]]] = {
                "csv": (
                    "All similarities (CSV)",
                    lambda: report.scores_csv(found, names).encode(),
                ),
                "png": ("Film strips (PNG)", partial(_sheet, found.strip, titles, stage.names(view), choices)),
                "npz": ("Maps (NPZ)", lambda: report.archive(found, classifier, images)),
                "json": (
                    "Manifest (JSON)",
                    lambda: json_text(report.manifest(found, classifier, images), indent=2).encode(),
                ),
            }
            for ending, (title, content) in files.items():
                st.download_button(
                    title, content, f"{_file(name)}-sanity.{ending}", on_click="ignore", type="tertiary",
                    key=f"download.{ending}",
                )  # fmt: skip


def _file(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name.casefold()).strip("-") or "picture"


def _sheet(strip: Strip, titles: Mapping[str, str], names: Sequence[str], choices: Mapping[str, Display]) -> bytes:
    """The film strips of all methods as one picture."""
    from salviz import filmstrip
    from salviz.overlay import png

    return png(filmstrip.sheet(strip, titles, names, choices))
