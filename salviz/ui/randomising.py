"""What is randomised on the Sanity checks page, and on which pictures: its choices and what they mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import streamlit as st

from salviz.classifiers.choices import INITIALISATIONS, STATISTICS
from salviz.classifiers.registry import SHIPPED, TWINS
from salviz.images import Picture, fashion_index, open_fashion, open_sample, samples
from salviz.ui import panels, sidebar
from salviz.ui.sidebar import Pick

if TYPE_CHECKING:
    from salviz.sanity import Intervention

TESTS = {"weights": "Weights", "labels": "Labels", "class": "Class"}
"""The net's weights, the labels it learnt, or the class that is asked for."""

_FASHION = 64
"""Fashion-MNIST pictures taken together."""


def pictures(pick: Pick) -> dict[str, str]:
    """Titles of the choices of pictures: the picked one, or all of its kind."""
    many = f"{_FASHION} of Fashion-MNIST" if _is_fashion(pick) else "All samples"
    return {"one": "This one", "many": many}


def _is_fashion(pick: Pick) -> bool:
    return pick.picture is not None and fashion_index(pick.picture.source) is not None


def chosen_pictures(pick: Pick) -> list[Picture]:
    """The pictures to check, the picked one first, each once."""
    assert pick.picture is not None  # noqa: S101 - the page asked
    if st.session_state["pictures"] == "one":
        return [pick.picture]
    if _is_fashion(pick):
        others = [open_fashion(index) for index in range(_FASHION)]
    else:
        others = [open_sample(sample.id) for sample in samples()]
    return list({picture.digest: picture for picture in [pick.picture, *others]}.values())


def measures(pick: Pick) -> dict[str, str]:
    """Titles of the similarities that are defined for maps of the picked model."""
    from salviz.similarity.measures import MEASURES

    side = _side(pick)
    return {name: known.title for name, known in MEASURES.items() if known.smallest <= side}


def left_out(pick: Pick) -> str:
    """Which similarities cannot be chosen, and why; empty where all can."""
    from salviz.similarity.measures import MEASURES

    side = _side(pick)
    if all(known.smallest <= side for known in MEASURES.values()):
        return ""
    smallest = max(known.smallest for known in MEASURES.values())
    return (
        f"HOG cannot be chosen here: its cells of 16 pixels need pictures of at least {smallest} pixels a side, and "
        f"this model takes {side}."
    )


def _side(pick: Pick) -> int:
    """The shorter side of what the model takes, and so of the maps that are compared."""
    return int(min(pick.loaded.classifier.preprocessing.input_size))


def twin() -> None:
    """The choice of the net that learnt other labels."""
    model = st.session_state["model"]
    titles = {card.id: card.title for card in SHIPPED.values() if card.id != model}
    chosen = sidebar.id_of(st.session_state["other"], titles)
    before = st.session_state.get("_other_of", model)
    # Another model has another twin; one that a person or a link named stays.
    if not chosen or (before != model and chosen == TWINS.get(before)):
        chosen = TWINS.get(model, "")
    st.session_state.update(other=chosen, _other_of=model)
    options = list(titles)
    if st.session_state["other"] not in options:
        options.insert(0, st.session_state["other"])
    st.selectbox(
        "Net that learnt other labels",
        options,
        format_func=lambda key: titles.get(key, key) or "Choose one",
        key="other",
        persist_state="session",
        accept_new_options=True,
        width=panels.WIDE,
        help="Any model's id: one that differs from the picked model in the labels of its training alone.",
    )


def load_twin(pick: Pick, problems: list[str]) -> Any:
    """The classifier of the choice, or None and one sentence more, with a way on."""
    chosen = st.session_state["other"]
    if chosen:
        loaded = sidebar.load(chosen, problems)
        return None if loaded is None else loaded.classifier
    problems.append(
        f"Which net learnt other labels than {pick.loaded.classifier.title}? Choose it above, or see "
        "the pair that comes with Salviz."
    )
    kind = getattr(SHIPPED.get(st.session_state["model"]), "family", None)
    model = next((one for one in TWINS if SHIPPED[one].family == kind), next(iter(TWINS)))
    st.button(
        "Use the pair that comes with Salviz",
        type="primary",
        key="use_pair",
        on_click=lambda: st.session_state.update(model=model, other=TWINS[model], image="fashion:0", pictures="many"),
    )
    return None


def details(test: str) -> None:
    """Settings that few change."""
    if test == "weights":
        panels.pick("New weights", INITIALISATIONS, "start")
        panels.choice(
            "Statistics of batch norms",
            STATISTICS,
            "stats",
            meaning="Those of training no longer fit random weights: kept, they let activations explode.",
        )
    if test != "labels":
        st.number_input(
            "Draws of new weights" if test == "weights" else "Draws of other classes",
            min_value=1, max_value=10, step=1, key="draws", persist_state="session",
        )  # fmt: skip
    if test != "class":
        panels.choice(
            "Class that is explained",
            {"original": "The trained net's", "argmax": "Each net's own"},
            "rule",
            meaning="The authors' code explains what the net at hand predicts; most others keep the class.",
        )
    st.number_input(
        "Noisy copies a map is averaged over",
        min_value=1, max_value=50, step=1, key="copies", persist_state="session",
        help="Smooth MPRT (Hedström et al. 2024) takes 50; the check then costs fifty times as much.",
    )  # fmt: skip
    st.toggle(
        "Leave out black and mean-coloured pixels",
        key="skip",
        persist_state="session",
        help="Methods that multiply by the input are 0 there whatever the net, which makes their maps seem alike.",
    )


def intervention(test: str, pick: Pick, other: Any) -> Intervention:
    """What the choices mean."""
    from salviz.classifiers.randomising import Randomisation
    from salviz.sanity import OtherClass, Twin

    now = st.session_state
    if test == "labels":
        return Twin.of(other)
    if test == "class":
        return OtherClass(pick.request.seed)
    return Randomisation(now["order"], now["start"], now["stats"], pick.request.seed)
