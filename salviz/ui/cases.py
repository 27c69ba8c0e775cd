"""The failure browser: pictures of a run in the order of a score, with their maps; a click opens one in Explore."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import streamlit as st

from salviz.errors import SalvizError
from salviz.overlay import format_probability
from salviz.ui import batch, clickable, drawn, fields, follow, panels, results

if TYPE_CHECKING:
    from salviz.runs.results import Case, Overview
    from salviz.ui.batch import View

SLOT = "batch.maps"
PAGE = 6
_MOST_METHODS = 5
_SIDE = 150


def browser(view: View, found: Overview) -> None:
    """Sort, look, and open."""
    from salviz.runs import results as asked
    from salviz.runs import words
    from salviz.runs.results import methods_of

    methods = list(methods_of(found))
    titles = words.methods(methods)
    with st.container(horizontal=True, vertical_alignment="top"):
        orders = {"": "Disagreement between methods"} if len(methods) > 1 else {}
        orders |= titles
        if st.session_state["sort"] not in orders:
            st.session_state["sort"] = next(iter(orders))
        metric, quantity = results.choose_score(found)
        sort = panels.pick("Sort by the score of", orders, "sort")
        orders_ = ("Worst first", "Best first") if sort else ("Most first", "Least first")
        first = panels.choice("Order", dict(zip(("low", "high"), orders_, strict=True)), "first")
        which = panels.choice("Predictions", {"all": "All", "right": "Right", "wrong": "Wrong"}, "which")
        model = results.choose_model(view)
    # The worst a set of methods can do is to disagree.
    is_descending = (first == "high") is bool(sort)
    key = (model, metric, quantity, sort, first, which)
    if st.session_state.get("_cases_of") != key:
        st.session_state["_cases_of"], st.session_state["_cases_page"] = key, 0
    page = int(st.session_state["_cases_page"])
    shown, count = asked.cases(
        view.run, model, metric, quantity, by=sort, is_descending=is_descending,
        is_wrong={"all": None, "right": False, "wrong": True}[which], limit=PAGE, offset=page * PAGE,
    )  # fmt: skip
    if not shown:
        st.info("No picture is like that; choose other predictions above.", icon=":material/info:")
        return
    chosen = methods[:_MOST_METHODS]
    if sort and sort not in chosen:
        chosen = [sort, *chosen[:-1]]
    _pages(page, count)
    maps = _maps(view, model, shown, chosen)
    name = results.class_names(model)
    for case in shown:
        _row(view, model, case, chosen, maps, name, words.score(metric, quantity))
    if not sort:
        st.caption("Disagreement is how far apart the methods' scores of a picture are (their standard deviation).")
    if len(chosen) < len(methods):
        st.caption(f"Maps of {len(chosen)} of {len(methods)} methods are shown.")


def _pages(page: int, count: int) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            "Back", icon=":material/chevron_left:", key="page.back", disabled=page == 0, on_click=_turn, args=(-1,)
        )
        st.button(
            "Next", icon=":material/chevron_right:", key="page.next", disabled=(page + 1) * PAGE >= count,
            on_click=_turn, args=(1,),
        )  # fmt: skip
        st.caption(
            f"Pictures {page * PAGE + 1} to {min(count, (page + 1) * PAGE)} of {count:,}. A click on a map opens it in "
            "Explore."
        )


def _turn(by: int) -> None:
    st.session_state["_cases_page"] = max(0, int(st.session_state["_cases_page"]) + by)


def _maps(view: View, model: str, shown: Sequence[Case], methods: Sequence[str]) -> Mapping[tuple[int, str], str]:
    """Thumbnails of the pictures and of their maps, by place and method; the picture's own under an empty name."""
    folder, spec = view.run, view.asked
    device = view.standing.device if view.standing is not None else "cpu"
    places = [case.place for case in shown]
    key = f"cases|{folder.path}|{model}|{places}|{methods}"
    loaded = None
    try:
        loaded = batch.loaded(model, device)
    except SalvizError as error:
        st.warning(str(error), icon=":material/info:")
    if loaded is None:
        return {}

    def make(job: Any) -> Thumbnails:
        return Thumbnails(_drawn(folder, spec, loaded, places, methods, job))

    followed = follow.follow(SLOT, follow.Task(key, 1.0, False, make))
    if followed.state == "running":
        follow.progress(SLOT, followed, "Drawing maps")
    if followed.error:
        st.warning(followed.error, icon=":material/info:")
    return {} if followed.result is None else followed.result.found


class Thumbnails:
    """Small pictures as data URIs.

    Attributes:
        found: By place in the sample and method; the picture's own under an empty name.
    """

    def __init__(self, found: Mapping[tuple[int, str], str]) -> None:
        self.found = found

    @property
    def nbytes(self) -> int:
        """What they take in memory."""
        return sum(len(uri) for uri in self.found.values())


def _drawn(
    folder: Any, spec: Any, loaded: Any, places: Sequence[int], methods: Sequence[str], job: Any
) -> dict[tuple[int, str], str]:
    from salviz import methods as registry
    from salviz.exploring import explore_set
    from salviz.images import thumbnail
    from salviz.overlay import resize_for_display
    from salviz.render import Display, frame_overlay
    from salviz.request import request_for
    from salviz.runs.keeping import kept_map
    from salviz.runs.measures import Item

    classifier, found = loaded.classifier, {}
    able = [name for name in methods if registry.get(name).refusal(classifier) is None]
    pictures = batch.opened(folder.data)
    for place in places:
        one = folder.sample[place]
        try:
            # Not another picture that has taken its name since.
            picture = Item(place, one.name, None, one.fingerprint, pictures.source(one.name)).open()
        except SalvizError:
            continue
        buffer = io.BytesIO()
        thumbnail(picture, _SIDE, square=True).save(buffer, format="JPEG", quality=85)
        found[place, ""] = drawn.data_uri(buffer.getvalue(), "jpeg")
        kept = {name: kept_map(folder, classifier.id, name, place) for name in able}
        raw = {name: value for name, value in kept.items() if value is not None}
        requests = [
            request_for(
                picture, classifier, method=name, parameters=dict(spec.methods[name]), variants=(), seed=spec.seed
            )
            for name in able
            if name not in raw
        ]
        if requests:
            for exploration in explore_set(classifier, picture, requests, progress=job.tick):
                raw[exploration.request.method] = exploration.raw[0]
        frame = classifier.preprocessing.frame(picture.image)
        for name in able:
            pixels = frame_overlay(name, raw[name], frame, Display())
            found[place, name] = drawn.photographic(resize_for_display(pixels, _SIDE))
    return found


def _row(
    view: View,
    model: str,
    case: Case,
    methods: Sequence[str],
    maps: Mapping[tuple[int, str], str],
    name: Any,
    score: str,
) -> None:
    from salviz.runs import words

    titles = words.methods(methods)
    with st.container(horizontal=True, vertical_alignment="top", gap="small", key=f"case.{case.place}"):
        for method in ("", *methods):
            with st.container(width=_SIDE, gap="small"):
                source = maps.get((case.place, method))
                title = titles[method] if method else case.image
                if source is None:
                    st.skeleton(_SIDE)
                elif method:
                    clickable.picture(
                        source, alt=f"{title} on {case.image}", title="Open in Explore",
                        key=f"open.{case.place}.{method}", on_press=partial(_open, view, model, case, method),
                    )  # fmt: skip
                else:
                    st.image(source, width="stretch", alt=case.image)
                if method:
                    st.caption(f"{title}  \n{panels.number(case.values.get(method, float('nan')))}")
                else:
                    st.caption(_about(case, name))


def _about(case: Case, name: Any) -> str:
    lines = [panels.plain(case.image.rpartition("/")[2])]
    sure = "" if case.confidence != case.confidence else f" ({format_probability(case.confidence)})"
    lines.append(f"{panels.plain(name(case.prediction))}{sure}")
    if case.label >= 0:
        is_right = case.label == case.prediction
        lines.append(":material/check: right" if is_right else f":material/close: is {panels.plain(name(case.label))}")
    return "  \n".join(lines)


def _open(view: View, model: str, case: Case, method: str) -> None:
    """Show exactly this case in Explore: the pick becomes the run's."""
    spec, now = view.asked, st.session_state
    one = view.run.sample[case.place]
    is_named = one.name.startswith(("sample:", "fashion:"))
    now["image"] = one.name if is_named else f"run:{view.run.path.name}/{case.place}"
    now["model"], now["method"] = model, method
    now["target"], now["against"] = "predicted", "none"
    now["label"] = case.label if case.label >= 0 else "unknown"
    now["seed"] = spec.seed
    how = spec.metrics.get("cose", {})
    now["draw"] = "paper" if how.get("augmentations") == "paper" else "one"
    now["_settings"] = {name: fields.text(value) for name, value in spec.methods[method].items()}
    now["_switch"] = "explore"
