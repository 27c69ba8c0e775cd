"""Method, target class and settings of the shared pick."""

from __future__ import annotations

import re
from typing import Any

import streamlit as st

from salviz.errors import SalvizError
from salviz.images import Picture
from salviz.transforms import AUGMENTATIONS, Variant, default_variants, draw_variants
from salviz.ui import fields, panels, session, state

_SIGNS = {
    "signed": "signed, above zero for the class and below zero against it.",
    "unsigned": "unsigned, how much a place counts and not whether for or against the class.",
}

_HALF = " “How much” under Display keeps what is above zero."


def method(loaded: Any, page: str) -> tuple[str, dict[str, Any]]:
    """The method's id and its settings.

    Args:
        loaded: The classifier and its speed, or None.
        page: The page that is shown; some choose methods of their own.
    """
    from salviz.methods import METHODS

    has_own = page == "sanity" or (page == "compare" and st.session_state["rows"] == "methods")

    if st.session_state["method"] not in METHODS:
        st.session_state["method"] = "grad_cam"
    method_id: str = st.selectbox(
        "Method",
        list(METHODS),
        format_func=lambda key: METHODS[key].card.title,
        key="method",
        persist_state="session",
        filter_mode="fuzzy",
    )
    if has_own:
        st.caption("Methods are chosen on the page; this one's settings count for its row there.")
    card = METHODS[method_id].card
    # An opened popover of the quiet kind darkens its label, which is lost on a dark ground.
    with st.container(horizontal=True), st.popover("About this method", icon=":material/info:"):
        st.markdown(f"**{card.title}**: {card.family}")
        st.markdown(card.idea)
        st.markdown(_formula(card.formula), text_alignment="center")
        st.markdown(f"Map: {_SIGNS[card.sign]}{_HALF if card.signed and card.evidence == 'positive' else ''}")
        st.markdown(f"Needs: {card.requirement}.")
        st.markdown(f"Cost: {_cost(card, loaded)}")
        st.markdown(f"Known failures: {card.failures}")
        st.caption(card.citation)
    return method_id, _parameters(card)


def _formula(latex: str) -> str:
    """A formula as Markdown that wraps where there is no room for it, each of its equations in a line of its own.

    Streamlit's own element sets it in one line, cuts off what stands above that line, and hides without a sign what is
    wider than a phone.
    """
    return "  \n".join(f"$\\displaystyle {part}$" for part in _BETWEEN_EQUATIONS.split(latex))


_BETWEEN_EQUATIONS = re.compile(r"(?<=,)\\(?:quad|;)\s*")


def _cost(card: Any, loaded: Any) -> str:
    """Passes with the paper's settings on the picked model."""
    usual = card.check_parameters(None)
    passes = round(card.passes(usual, (224, 224)) if loaded is None else card.cost(loaded.classifier, usual))
    if not passes:
        return "no pass through the model."
    about = "about " if loaded is not None and card.more(loaded.classifier, usual) else ""
    return f"{about}{panels.counted(passes, 'pass', 'passes')} through the model an image, with the default settings."


def _parameters(card: Any) -> dict[str, Any]:
    """Widgets for a method's settings; empty-named layers stay with the rule."""
    linked = state.settings_of_link()
    for name in set(linked or {}) - {parameter.name for parameter in card.parameters}:
        state.left_out(f"{fields.SETTING}{name}", f"{card.title} has no such setting")
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
        state.left_out(f"{fields.SETTING}{parameter.name}", str(error))
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
        return st.text_input(
            label, key=key, help=parameter.meaning, placeholder=parameter.unset, persist_state="session"
        )
    kind = type(parameter.default)
    if kind is bool:
        return st.toggle(label, key=key, help=parameter.meaning, persist_state="session")
    return st.number_input(
        label,
        min_value=kind(parameter.low),
        max_value=kind(parameter.high),
        step=kind(parameter.step or 1),
        format="%d" if kind is int else "%g",
        key=key,
        help=parameter.meaning,
        persist_state="session",
    )


def target(loaded: Any, picture: Picture | None) -> tuple[int | None, Any, int | None]:
    """The explained class (None: predicted), its rival (None: no contrast) and the true class (None: not known)."""
    if loaded is None:
        st.selectbox("Target class", [], disabled=True, placeholder="Needs a model", key="_no_target")
        return None, None, None
    labels = loaded.classifier.labels
    count = len(labels)
    first = session.tops().get((picture.digest, loaded.key)) if picture is not None else ()
    options: list[Any] = ["predicted", *first, *(index for index in range(count) if index not in set(first))]
    for key, default in (("target", "predicted"), ("against", "none"), ("label", "unknown")):
        value = st.session_state[key]
        if isinstance(value, int) and value >= count:
            state.notice(f"{loaded.classifier.title} has no class {value}: the {key} was left out.")
            st.session_state[key] = default
    chosen = st.selectbox(
        "Target class",
        options,
        format_func=lambda key: "Predicted for each input" if key == "predicted" else labels.short(key),
        key="target",
        persist_state="session",
        help="What the map explains. “Predicted for each input” is COSE's rule: each variant's map explains the "
        "class predicted for that variant. Type to search by name.",
    )
    explained = None if chosen == "predicted" else int(chosen)
    return explained, _rival(labels, options[1:], explained), _label(labels, count, picture)


def _rival(labels: Any, classes: list[int], explained: int | None) -> Any:
    """The class a contrast is against."""
    from salviz.targets import RUNNER_UP

    titles = {"none": "Nothing: the class by itself", RUNNER_UP: "The most probable other class"}
    if st.session_state["against"] == explained:
        st.session_state["against"] = RUNNER_UP
    chosen = st.selectbox(
        "Rather than",
        [*titles, *(index for index in classes if index != explained)],
        format_func=lambda key: titles[key] if key in titles else labels.short(key),
        key="against",
        persist_state="session",
        help="A contrast explains why the model says the target class and not this one: the map is that of the "
        "difference of their scores.",
    )
    return None if chosen == "none" else chosen


def _label(labels: Any, count: int, picture: Picture | None) -> int | None:
    """The image's true class: from its file name, or chosen in the settings."""
    chosen = st.session_state["label"]
    if chosen == "unknown" and picture is not None and picture.wordnet_id:
        found: int | None = labels.index_of_wordnet(picture.wordnet_id)
        return found
    return chosen if isinstance(chosen, int) and chosen < count else None


def rest(loaded: Any, picture: Picture | None, page: str) -> tuple[list[Variant], list[str], dict[str, Any]]:
    """Augmentations, changed models, and the other keywords of `request_for`."""
    variants: list[Variant] = []
    changes: list[str] = []
    if page == "explore":
        with st.expander("Augmentations"):
            variants, changes = _changes(loaded, picture)
    with st.expander("More settings"):
        extra = _more(loaded, page)
    return variants, changes, extra


def _changes(loaded: Any, picture: Picture | None) -> tuple[list[Variant], list[str]]:
    chosen = st.pills(
        "Augmentations",
        list(AUGMENTATIONS),
        selection_mode="multi",
        format_func=lambda key: AUGMENTATIONS[key].title,
        key="aug",
        label_visibility="collapsed",
        persist_state="session",
    )
    draw = panels.choice(
        "How many",
        {"one": "One each", "paper": "Paper's 48"},
        "draw",
        meaning="One clearly visible variant of each kind; or the paper's draw: six random strengths of seven kinds "
        "and one each of the other six.",
    )
    twin = st.toggle(
        "Untrained twin",
        key="twin",
        persist_state="session",
        help="The same architecture with random weights: COSE counts it among the changes to which a map should be "
        "sensitive.",
    )
    picked = []
    if loaded and loaded.classifier.checkpoints:
        picked = st.pills(
            "Training checkpoints",
            [checkpoint.label for checkpoint in loaded.classifier.checkpoints],
            selection_mode="multi",
            key="checkpoints",
            persist_state="session",
        )
    wanted = default_variants()
    if draw == "paper" and picture is not None:
        wanted = draw_variants(st.session_state["seed"], picture.digest)
    variants = [variant for variant in wanted if variant.augmentation in chosen]
    return variants, (["untrained"] if twin else []) + [f"checkpoint:{name}" for name in picked]


def _more(loaded: Any, page: str) -> dict[str, Any]:
    if loaded is not None:
        labels = loaded.classifier.labels
        st.selectbox(
            "True class",
            ["unknown", *range(len(labels))],
            format_func=lambda key: "Not known" if key == "unknown" else labels.short(key),
            key="label",
            persist_state="session",
            help="COSE counts only images that are classified rightly. Where the class is not known, the prediction "
            "for the clean image stands in for it.",
        )
    output = panels.choice("Score to explain", {"logit": "Logit", "probability": "Probability"}, "output")
    data_range = "pair"
    if page == "explore":
        data_range = panels.choice(
            "SSIM range",
            {"pair": "Pair's own", "2.0": "Fixed, 2"},
            "range",
            meaning="The released code divides by the larger range of the two maps; the published table was almost "
            "surely computed with a fixed range of 2.",
        )
    seed = st.number_input("Seed", min_value=0, max_value=2**31 - 1, step=1, key="seed", persist_state="session")
    _device()
    return {"output": output, "data_range": "pair" if data_range == "pair" else 2.0, "seed": int(seed)}


def _device() -> None:
    from salviz.classifiers.store import devices

    options = ["auto", *devices()]
    if st.session_state["device"] not in options:
        st.session_state["device"] = "auto"
    st.selectbox(
        "Device",
        options,
        key="device",
        persist_state="session",
        format_func=lambda key: "Best there is" if key == "auto" else key,
    )
    panels.choice(
        "Masked passes",
        {name: name for name in ("float32", "bf16", "fp16")},
        "precision",
        meaning="RISE and Score-CAM may run their masked passes in half precision: ranks stay as they are (correlation "
        "above 0.995). Other methods stay in float32, where ranks would change.",
    )
