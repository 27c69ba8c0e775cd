"""The shared pick: image, model, method, target and settings, in this order, the same on every page."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st

from salviz.classifiers.registry import CARDS, is_available_offline
from salviz.errors import ClassifierError, ImageError, SalvizError
from salviz.images import (
    SAMPLES,
    Picture,
    decode,
    folder_images,
    image_folder,
    open_source,
    samples,
)
from salviz.transforms import AUGMENTATIONS, Variant, default_variants, draw_variants
from salviz.ui import gallery, state
from salviz.ui.session import classifiers

UPLOAD_BYTES = 16 * 2**20
MODEL_FOLDER_VARIABLE = "SALVIZ_MODEL_DIR"
_UPLOAD = "upload"


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


def choose() -> Pick:
    """Draw the sidebar and return the pick."""
    problems: list[str] = []
    with st.sidebar:
        picture = _image(problems)
        model_id = _model()
        loaded = _load(model_id, problems)
        method_id, settings = _method(loaded)
        target, label = _target(loaded, picture)
        variants, changes, extra = _settings(loaded, picture)
    request = None
    if picture is not None and loaded is not None:
        from salviz.exploration import request_for

        try:
            request = request_for(
                picture,
                loaded.classifier,
                method=method_id,
                parameters=settings,
                target=target,
                label=label,
                variants=variants,
                changes=changes,
                **extra,
            )
        except SalvizError as error:
            problems.append(str(error))
    return Pick(picture, loaded, request, problems)


def _image(problems: list[str]) -> Picture | None:
    uploaded = _uploaded(problems)
    titles = {f"sample:{sample.id}": sample.title for sample in samples()}
    folder = image_folder()
    if folder is not None:
        try:
            titles |= {f"file:{name}": name for name in folder_images(folder)}
        except SalvizError as error:
            problems.append(str(error))
    if uploaded is not None:
        titles[_UPLOAD] = uploaded.name or "Your picture"
    if st.session_state["image"] not in titles:
        if st.session_state["image"] == _UPLOAD:
            state.notice("The link shows an uploaded picture, which cannot travel in a link: upload it again.")
        else:
            state.notice("The picture in the link is not on this server: the cat is shown instead.")
        st.session_state["image"] = "sample:cat"
    gallery.thumbnails(current=st.session_state["image"])
    st.selectbox("Image", list(titles), format_func=lambda key: titles.get(key, key), key="image")
    st.file_uploader("Upload a picture", type="image", key="upload_file", label_visibility="collapsed")
    chosen = st.session_state["image"]
    if chosen == _UPLOAD:
        return uploaded
    try:
        return open_source(chosen)
    except ImageError as error:
        problems.append(str(error))
        return None


def _uploaded(problems: list[str]) -> Picture | None:
    """The picture in the uploader; a new one becomes the chosen image, a bad one changes nothing."""
    file = st.session_state.get("upload_file")
    if file is None:
        st.session_state.pop("_upload", None)
        if st.session_state["image"] == _UPLOAD and st.session_state.pop("_had_upload", False):
            st.session_state["image"] = "sample:cat"
        return None
    known = st.session_state.get("_upload")
    if known is None or known[0] != file.file_id:
        try:
            known = (file.file_id, decode(file.getvalue(), max_bytes=UPLOAD_BYTES, name=file.name), None)
            st.session_state["image"] = _UPLOAD
        except ImageError as error:
            # The good one from before stays.
            known = (file.file_id, known[1] if known else None, str(error))
        st.session_state["_upload"] = known
        st.session_state["_had_upload"] = True
    if known[2] is not None:
        problems.append(known[2])
    picture: Picture | None = known[1]
    return picture


def _model() -> str:
    titles = {card.id: card.title for card in CARDS}
    notes = {card.id: "" if is_available_offline(card.id) else f" · {card.megabytes} MB download" for card in CARDS}
    from salviz.classifiers.hub import timm_names

    names = [f"timm:{name}" for name in timm_names(classifiers_only=True)]
    options = [*titles, *(name for name in names if name not in titles)]
    if st.session_state["model"] not in options:
        options.insert(0, st.session_state["model"])
    chosen: str = st.selectbox(
        "Model",
        options,
        format_func=lambda key: f"{titles.get(key, key)}{notes.get(key, '')}",
        key="model",
        accept_new_options=True,
        help="Type to search all of timm's pretrained models. Other ids work too: `torchvision:resnet50`, "
        "`hf-hub:organisation/name`.",
    )
    return chosen


def _load(model_id: str, problems: list[str]) -> Any:
    precision = st.session_state["precision"]
    options = {
        "device": st.session_state["device"],
        "autocast": None if precision == "float32" else precision,
    }
    card = next((card for card in CARDS if card.id == model_id), None)
    name = card.title if card else model_id
    try:
        _check_path(model_id)
        if classifiers().is_loaded(model_id, **options):
            return classifiers().get(model_id, **options)
        with st.spinner(f"Loading {name} …", show_time=True):
            return classifiers().get(model_id, **options)
    except ClassifierError as error:
        problems.append(str(error))
        return None


def _check_path(model_id: str) -> None:
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


def _method(loaded: Any) -> tuple[str, dict[str, Any]]:
    from salviz.methods import METHODS

    if st.session_state["method"] not in METHODS:
        st.session_state["method"] = "grad_cam"
    method_id: str = st.selectbox(
        "Method",
        list(METHODS),
        format_func=lambda key: METHODS[key].card.title,
        key="method",
        filter_mode="fuzzy",
    )
    card = METHODS[method_id].card
    with st.container(horizontal=True), st.popover("About this method", type="tertiary"):
        st.markdown(f"**{card.title}**: {card.family}")
        st.markdown(card.idea)
        st.latex(card.formula)
        st.markdown(f"Known failures: {card.failures}")
        st.caption(card.citation)
    return method_id, _parameters(card)


def _parameters(card: Any) -> dict[str, Any]:
    """Widgets for a method's settings; empty-named layers stay with the rule."""
    linked = state.settings_of_link()
    for name in set(linked or {}) - {parameter.name for parameter in card.parameters}:
        state.left_out(f"{state.SETTING}{name}", f"{card.title} has no such setting")
    found: dict[str, Any] = {}
    if card.parameters:
        with st.expander("Method settings"):
            for parameter in card.parameters:
                key = f"{card.id}.{parameter.name}"
                if linked is not None or key not in st.session_state:
                    st.session_state[key] = _linked(parameter, (linked or {}).get(parameter.name))
                found[parameter.name] = _widget(parameter, key)
    st.session_state["_changed_settings"] = {
        p.name: found[p.name] for p in card.parameters if found[p.name] != p.default
    }
    return found


def _linked(parameter: Any, text: str | None) -> Any:
    if text is None:
        return parameter.default
    try:
        return parameter.check(text)
    except SalvizError as error:
        state.left_out(f"{state.SETTING}{parameter.name}", str(error))
        return parameter.default


def _widget(parameter: Any, key: str) -> Any:
    label = parameter.name.replace("_", " ").capitalize()
    if parameter.choices:
        return st.selectbox(
            label,
            parameter.choices,
            key=key,
            help=parameter.meaning,
            persist_state="session",
            format_func=lambda text: text.replace("_", " "),
        )
    if isinstance(parameter.default, str):
        return st.text_input(label, key=key, help=parameter.meaning, placeholder="by rule", persist_state="session")
    kind = type(parameter.default)
    return st.number_input(
        label,
        min_value=kind(parameter.low),
        max_value=kind(parameter.high),
        step=kind(parameter.step or 1),
        key=key,
        help=parameter.meaning,
        persist_state="session",
    )


def _target(loaded: Any, picture: Picture | None) -> tuple[int | None, int | None]:
    if loaded is None:
        st.skeleton(60)
        return None, None
    labels = loaded.classifier.labels
    count = len(labels)
    top = st.session_state.get("_top", ())
    first = [index for index in top if index < count]
    options = ["predicted", *first, *(index for index in range(count) if index not in set(first))]
    for key, default in (("target", "predicted"), ("label", "unknown")):
        value = st.session_state[key]
        if isinstance(value, int) and value >= count:
            state.notice(f"{loaded.classifier.title} has no class {value}: the {key} was left out.")
            st.session_state[key] = default
    target = st.selectbox(
        "Target class",
        options,
        format_func=lambda key: "Predicted for each input" if key == "predicted" else labels.short(key),
        key="target",
        help="What the map explains. “Predicted for each input” is COSE's rule: each variant's map explains the "
        "class predicted for that variant. Type to search by name.",
    )
    label = _label(labels, count, picture)
    return (None if target == "predicted" else int(target)), label


def _label(labels: Any, count: int, picture: Picture | None) -> int | None:
    """The image's true class: from its file name, or chosen in the settings."""
    chosen = st.session_state["label"]
    if chosen == "unknown" and picture is not None and picture.wordnet_id:
        found: int | None = labels.index_of_wordnet(picture.wordnet_id)
        return found
    return chosen if isinstance(chosen, int) and chosen < count else None


def _settings(loaded: Any, picture: Picture | None) -> tuple[list[Variant], list[str], dict[str, Any]]:
    with st.expander("Augmentations"):
        chosen = st.pills(
            "Augmentations",
            list(AUGMENTATIONS),
            selection_mode="multi",
            format_func=lambda key: AUGMENTATIONS[key].title,
            key="aug",
            label_visibility="collapsed",
        )
        draw = st.segmented_control(
            "How many",
            ["one", "paper"],
            format_func=lambda key: {"one": "One each", "paper": "Paper's 48"}[key],
            key="draw",
            required=True,
            help="One clearly visible variant of each kind; or the paper's draw: six random strengths of seven kinds "
            "and one each of the other six.",
        )
        twin = st.toggle(
            "Untrained twin",
            key="twin",
            help="The same architecture with random weights: COSE counts it among the changes to which a map should "
            "be sensitive.",
        )
        checkpoints = loaded.classifier.checkpoints if loaded else ()
        picked = []
        if checkpoints:
            picked = st.pills(
                "Training checkpoints",
                [c.label for c in checkpoints],
                selection_mode="multi",
                key="checkpoints",
            )
    with st.expander("More settings"):
        extra = _more(loaded)
    wanted = default_variants()
    if draw == "paper" and picture is not None:
        wanted = draw_variants(st.session_state["seed"], picture.digest)
    variants = [variant for variant in wanted if variant.augmentation in chosen]
    changes = (["untrained"] if twin else []) + [f"checkpoint:{name}" for name in picked]
    return variants, changes, extra


def _more(loaded: Any) -> dict[str, Any]:
    if loaded is not None:
        labels = loaded.classifier.labels
        st.selectbox(
            "True class",
            ["unknown", *range(len(labels))],
            format_func=lambda key: "Not known" if key == "unknown" else labels.short(key),
            key="label",
            help="COSE counts only images that are classified rightly. Where the class is not known, the prediction "
            "for the clean image stands in for it.",
        )
    output = st.segmented_control(
        "Score to explain", ["logit", "probability"], format_func=str.capitalize, key="output", required=True
    )
    data_range = st.segmented_control(
        "SSIM range",
        ["pair", "2.0"],
        format_func=lambda key: {"pair": "Pair's own", "2.0": "Fixed, 2"}[key],
        key="range",
        required=True,
        help="The released code divides by the larger range of the two maps; the published table was almost surely "
        "computed with a fixed range of 2.",
    )
    seed = st.number_input("Seed", min_value=0, max_value=2**31 - 1, step=1, key="seed")
    _device()
    return {"output": output, "data_range": "pair" if data_range == "pair" else 2.0, "seed": int(seed)}


def _device() -> None:
    from salviz.classifiers.store import devices

    options = ["auto", *devices()]
    if st.session_state["device"] not in options:
        st.session_state["device"] = "auto"
    st.selectbox("Device", options, key="device", format_func=lambda key: "Best there is" if key == "auto" else key)
    st.segmented_control(
        "Forward-only passes",
        ["float32", "bf16", "fp16"],
        key="precision",
        required=True,
        help="Passes that need no gradient, such as occlusion's, may run in half precision. Maps change a little.",
    )


def sample_remark(picture: Picture) -> str:
    """Why a sample is worth explaining, or nothing."""
    sample = next((s for s in SAMPLES if picture.source == f"sample:{s.id}"), None)
    return sample.remark if sample else ""
