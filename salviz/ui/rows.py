"""The rows of a comparison: what the person chose, what it asks for, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import streamlit as st

from salviz.classifiers.registry import CARDS, is_available_offline
from salviz.errors import SalvizError
from salviz.images import Picture
from salviz.ui import follow, panels, session, sidebar
from salviz.ui.sidebar import Pick

if TYPE_CHECKING:
    from salviz.request import Request

KINDS = {"methods": "Methods", "models": "Models", "classes": "Most probable classes"}


@dataclass
class Chosen:
    """What is to be compared.

    Attributes:
        kind: `methods`, `models` or `classes`.
        requests: One a row, as far as they can be told before anything runs.
        loaded: The classifiers by weights digest.
        top: How many classes, where these are the rows.
        problems: One sentence for each row that cannot be had.
    """

    kind: str
    requests: list[Request] = field(default_factory=list)
    loaded: dict[str, Any] = field(default_factory=dict)
    top: int = 0
    problems: list[str] = field(default_factory=list)


def choose(pick: Pick) -> Chosen:
    """The choice of rows, above everything it changes."""
    kind = panels.choice("Rows", KINDS, "rows")
    chosen = Chosen(kind)
    if kind == "methods":
        names = _methods()
    elif kind == "models":
        models = _models()
    else:
        chosen.top = int(
            st.number_input("How many", min_value=2, max_value=10, key="top", persist_state="session", width=160)
        )
    if pick.request is None or pick.picture is None or pick.loaded is None:
        return chosen
    if kind == "methods":
        chosen.loaded = {pick.loaded.classifier.digest: pick.loaded}
        for name in names:
            _add(chosen, pick, pick.loaded, method=name, parameters=None if name != pick.request.method else _own(pick))
    elif kind == "models":
        for model in models:
            loaded = sidebar.load(model, chosen.problems)
            if loaded is not None:
                chosen.loaded[loaded.classifier.digest] = loaded
                _add(chosen, pick, loaded, method=pick.request.method, parameters=_own(pick))
    else:
        chosen.loaded = {pick.loaded.classifier.digest: pick.loaded}
        known = len(pick.loaded.classifier.labels)
        if chosen.top > known:
            st.caption(f"{pick.loaded.classifier.title} knows only {known} classes: each of them is a row.")
            chosen.top = known
        _add(chosen, pick, pick.loaded, method=pick.request.method, parameters=_own(pick), target=None)
    return chosen


def _own(pick: Pick) -> dict[str, Any]:
    return dict(pick.request.settings)


def _methods() -> list[str]:
    from salviz.methods import METHODS

    chosen: list[str] = st.multiselect(
        "Methods",
        list(METHODS),
        format_func=lambda key: METHODS[key].card.title,
        key="methods",
        persist_state="session",
        placeholder="Choose methods",
        # Else the first offer, which Enter takes, is all that match.
        select_all=False,
    )
    return chosen


def _models() -> list[str]:
    titles = {card.id: card.title for card in CARDS}
    if not st.session_state["models"]:
        at_hand = [card.id for card in CARDS if card.source == "package" and is_available_offline(card.id)]
        st.session_state["models"] = at_hand[:3]
    extra = [model for model in st.session_state["models"] if model not in titles]
    chosen: list[str] = st.multiselect(
        "Models",
        [*titles, *extra],
        format_func=lambda key: titles.get(key, key),
        key="models",
        persist_state="session",
        accept_new_options=True,
        placeholder="Choose models",
        select_all=False,
        help="Other ids work too: `timm:…`, `torchvision:…`, `hf-hub:…`.",
    )
    return chosen


def _add(chosen: Chosen, pick: Pick, loaded: Any, *, method: str, parameters: Any, target: Any = ...) -> None:
    from salviz.request import request_for

    asked = pick.request
    try:
        request = request_for(
            pick.picture,  # type: ignore[arg-type]
            loaded.classifier,
            method=method,
            parameters=parameters,
            target=asked.target if target is ... else target,
            against=asked.against,
            output=asked.output,
            label=asked.label,
            variants=(),
            seed=asked.seed,
        )
    except SalvizError as error:
        chosen.problems.append(str(error))
        return
    chosen.requests.append(request)


def split(chosen: Chosen) -> tuple[list[Request], list[Request]]:
    """Rows that together follow every change at once, the cheapest first, and the rest."""
    cheap: list[Request] = []
    slow: list[Request] = []
    spent = 0.0
    for seconds, _, request in sorted((_seconds(chosen, [r]), place, r) for place, r in enumerate(chosen.requests)):
        fits = spent + seconds <= follow.CHEAP_SECONDS or seconds <= follow.TRIFLE_SECONDS
        (cheap if fits else slow).append(request)
        spent += seconds if fits else 0.0
    return [r for r in chosen.requests if r in cheap], [r for r in chosen.requests if r in slow]


def _seconds(chosen: Chosen, requests: list[Request]) -> float:
    """Seconds that rows will take together, for each model those that are not known yet."""
    from salviz import durations

    asked: dict[str, dict[str, Any]] = {}
    for request in requests:
        if request.digest not in session.rows():
            asked.setdefault(request.weights, {})[request.method] = request.settings
    classes = max(1, chosen.top)
    return sum(durations.seconds(chosen.loaded[weights], settings, classes) for weights, settings in asked.items())


def comparing(chosen: Chosen, requests: list[Request], picture: Picture, *, is_costly: bool) -> follow.Task:
    """The task of a comparison.

    Args:
        chosen: Holds the classifiers, and how many classes where these are the rows.
        requests: One a row; with classes as rows the one that is asked for each of them.
        picture: The photograph.
        is_costly: Whether it waits for the person to ask for it.
    """
    from salviz import durations
    from salviz.comparison import comparison_digest

    def run(job: Any) -> Any:
        from salviz.comparison import compare, for_top_classes

        classifiers = {digest: loaded.classifier for digest, loaded in chosen.loaded.items()}
        asked = requests
        if chosen.top:
            (loaded,) = chosen.loaded.values()
            asked = for_top_classes(loaded.classifier, picture, requests[0], chosen.top)
        rows = session.rows()
        known = rows.known()

        def publish(comparison: Any) -> None:
            rows.put(comparison.found)
            job.publish(comparison)

        found = compare(classifiers, picture, asked, known=known, progress=job.tick, publish=publish)
        rows.put(found.found)
        for digest, row in found.found.items():
            # Classes of an image share passes, and each is charged with all of them.
            if digest not in known and not chosen.top:
                durations.learn(chosen.loaded[row.request.weights], row, is_alone=False)
        return found

    return follow.Task(comparison_digest(requests, chosen.top), _seconds(chosen, requests), is_costly, run)
