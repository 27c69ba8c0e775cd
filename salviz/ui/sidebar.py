"""The shared pick: image, model, method, target and settings, in this order, the same on every page."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st

from salviz.classifiers.registry import CARDS, is_available_offline
from salviz.errors import ClassifierError, SalvizError
from salviz.images import Picture
from salviz.ui import image_picker, settings
from salviz.ui.session import classifiers

MODEL_FOLDER_VARIABLE = "SALVIZ_MODEL_DIR"


@dataclass
class Pick:
    """What the person chose; parts that could not be had are None and `problems` says why.

    Attributes:
        picture: The photograph.
        loaded: The classifier and its speed.
        request: What is to be explained; None while something is missing.
        problems: One sentence each.
    """

    picture: Picture | None
    loaded: Any
    request: Any
    problems: list[str]


def choose(page: str) -> Pick:
    """Draw the sidebar and return the pick.

    Args:
        page: The page that is shown; only Explore has variants to choose.
    """
    problems: list[str] = []
    with st.sidebar:
        st.header("Salviz", anchor=False)
        picture = image_picker.choose(problems)
        model_id = _model()
        loaded = load(model_id, problems)
        method_id, parameters = settings.method(loaded, page)
        target, against, label = settings.target(loaded, picture)
        variants, changes, extra = settings.rest(loaded, picture, page)
    request = None
    if picture is not None and loaded is not None:
        from salviz.request import request_for

        try:
            request = request_for(
                picture,
                loaded.classifier,
                method=method_id,
                parameters=parameters,
                target=target,
                against=against,
                label=label,
                variants=variants,
                changes=changes,
                **extra,
            )
        except SalvizError as error:
            problems.append(str(error))
    return Pick(picture, loaded, request, problems)


def _model() -> str:
    titles = {card.id: card.title for card in CARDS}
    notes = {card.id: "" if is_available_offline(card.id) else f" · {card.megabytes} MB download" for card in CARDS}
    from salviz.classifiers.hub import timm_names

    names = [f"timm:{name}" for name in timm_names(classifiers_only=True)]
    options = [*titles, *(name for name in names if name not in titles)]
    st.session_state["model"] = id_of(st.session_state["model"], titles)
    if st.session_state["model"] not in options:
        options.insert(0, st.session_state["model"])
    chosen: str = st.selectbox(
        "Model",
        options,
        format_func=lambda key: f"{titles.get(key, key)}{notes.get(key, '')}",
        key="model",
        persist_state="session",
        accept_new_options=True,
        help="Type to search all of timm's pretrained models. Other ids work too: `torchvision:resnet50`, "
        "`hf-hub:organisation/name`.",
    )
    return chosen


def id_of(text: str, titles: dict[str, str]) -> str:
    """The id of a suggestion that was typed as it is shown, or of the only one it is a part of; else an id already."""
    typed = text.partition(" · ")[0].strip().casefold()
    if text in titles or not typed:
        return text
    exact = [key for key, title in titles.items() if title.casefold() == typed]
    found = exact or [key for key, title in titles.items() if typed in title.casefold()]
    return found[0] if len(found) == 1 else text


def load(model_id: str, problems: list[str]) -> Any:
    """A classifier on the chosen device, or None and one sentence more among the problems."""
    precision = st.session_state["precision"]
    options = {
        "device": st.session_state["device"],
        "autocast": None if precision == "float32" else precision,
    }
    card = next((card for card in CARDS if card.id == model_id), None)
    name = card.title if card else model_id
    try:
        check_path(model_id)
        if classifiers().is_loaded(model_id, **options):
            return classifiers().get(model_id, **options)
        with st.spinner(f"Loading {name} …", show_time=True):
            return classifiers().get(model_id, **options)
    except ClassifierError as error:
        problems.append(str(error))
        return None


def check_path(model_id: str) -> None:
    """Visitors may name weight files only inside the folder the server offers."""
    if ".safetensors" not in model_id and "/" not in model_id.partition(":")[0]:
        return
    root = os.environ.get(MODEL_FOLDER_VARIABLE)
    inside = root and Path(model_id.partition("@")[0]).resolve().is_relative_to(Path(root).resolve())
    if not inside:
        raise ClassifierError(
            "This server does not offer that weight file. Whoever runs it can name a folder of weights in "
            f"{MODEL_FOLDER_VARIABLE}."
        )
