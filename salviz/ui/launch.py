"""Asking for a run: pictures, models, methods and metrics, what it will take, and Start."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from salviz.classifiers.registry import CARDS, is_available_offline
from salviz.errors import SalvizError
from salviz.ui import batch, follow, panels, sidebar, state

if TYPE_CHECKING:
    from salviz.runs import Spec

VARIABLE = "SALVIZ_DATA_DIR"
"""Environment variable: a folder whose subfolders and zip files visitors may run over."""

SETS = "SALVIZ_DATA_SETS"
"""Environment variable: names of other data sets that are offered, as `--data` takes them, with spaces between."""

SLOT = "batch.estimate"
MOST_SECONDS = float(os.environ.get("SALVIZ_MAX_RUN_SECONDS", "inf"))
"""A public server can refuse runs that take longer."""

_UPLOAD_MB = 200
_AUGMENTATIONS = {"default": "13, one strength each", "paper": "48, as in the paper"}
_MAPS = {"none": "None", "clean": "Of the pictures", "all": "Of all variants"}
_CLOTHES, _THINGS = ["fashion_cnn"], [CARDS[0].id]
_DEFAULTS: dict[str, Any] = {
    "new_data": "fashion", "new_classes": [], "new_images": 100, "new_all": False, "new_stratified": True,
    "new_models": _CLOTHES, "new_methods": ["grad_cam", "gradient", "guided_backprop", "edge"],
    "new_metrics": ["cose"], "new_augmentations": "default", "new_maps": "none", "new_seed": 0,
}  # fmt: skip


def form(problems: list[str]) -> None:
    """The form of a new run.

    Args:
        problems: One sentence each, to be told beside its own.
    """
    for key, value in _DEFAULTS.items():
        st.session_state.setdefault(key, value)
    st.session_state["_lacks"] = "Choose at least one model, one method and one metric."
    left, right = st.columns(2, gap="large")
    with left:
        st.subheader("Pictures", anchor=False)
        data, count, is_all = _pictures(problems)
    with right:
        st.subheader("What is measured", anchor=False)
        _measured()
    spec = _spec(data, None if is_all else count, problems)
    panels.problems(problems)
    with st.container(key="status"):
        if spec is not None:
            _offer(spec, count)
        elif not problems:
            st.caption(st.session_state["_lacks"])


def _pictures(problems: list[str]) -> tuple[Any, int, bool]:
    """The data set or None, how many of its pictures, and whether these are all that were to choose from."""
    titles = {"fashion": "Fashion-MNIST sample, labelled", "samples": "Sample photographs"}
    titles = {**titles, **{id: title for id, title in _offered(problems).items() if id not in titles}}
    titles["upload"] = "A zip file of yours …"
    now = st.session_state
    if now.get("_data_before", now["new_data"]) != now["new_data"] and now["new_models"] in (_CLOTHES, _THINGS):
        # Untouched defaults follow the data: a net that knows ten kinds of clothes says nothing of photographs.
        now["new_models"] = _CLOTHES if now["new_data"] == "fashion" else _THINGS
    now["_data_before"] = now["new_data"]
    if st.session_state["new_data"] not in titles:
        st.session_state["new_data"] = "fashion"
    id = panels.pick("Data set", titles, "new_data")
    if id == "upload":
        file = st.file_uploader(
            "Zip file of pictures", type="zip", key="new_zip", max_upload_size=_UPLOAD_MB,
            help="Class folders named by number, WordNet id or name; or flat files that begin with a WordNet id.",
        )  # fmt: skip
        if file is None:
            st.session_state["_lacks"] = "Choose a zip file of pictures."
            return None, 0, True
        id = _stored(file, problems)
        if not id:
            return None, 0, True
    try:
        # A set of a hub may have to come over the network first.
        with st.spinner("Opening the data set …", show_time=True):
            data = batch.opened(id)
    except SalvizError as error:
        problems.append(str(error))
        return None, 0, True
    labels = {entry.label for entry in data.entries} - {None}
    most = _classes(data, labels)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        takes_all = st.toggle(f"All {most:,}", key="new_all", persist_state="session")
        # Not as the widget's own limit: it would turn red without a word and keep the number before.
        st.session_state["new_images"] = min(max(int(st.session_state["new_images"]), 1), most)
        count = st.number_input(
            "Pictures", step=1, key="new_images", disabled=takes_all, persist_state="session", width=140,
        )  # fmt: skip
        st.number_input(
            "Seed", min_value=0, max_value=2**31 - 1, key="new_seed", persist_state="session", width=110,
            help="Of everything random: which pictures are drawn, and what methods draw.",
        )  # fmt: skip
    st.toggle(
        "As many of each class", key="new_stratified", disabled=not labels, persist_state="session",
        help="The same number of pictures of every class, as far as there are so many.",
    )  # fmt: skip
    classes = (
        panels.counted(len(labels), "class", "classes")
        if labels
        else "no labels: the prediction for the clean picture stands for one"
    )
    st.caption(f"{len(data):,} pictures, {classes}. All methods and models see the same ones.")
    return data, most if takes_all else int(count), takes_all or int(count) == most


def _classes(data: Any, labels: set[Any]) -> int:
    """Which classes; how many pictures they have."""
    now = st.session_state
    options = sorted(labels, key=lambda label: (isinstance(label, str), label))
    now["new_classes"] = [label for label in now["new_classes"] if label in labels]
    if len(options) > 1:
        st.multiselect(
            "Classes", options, format_func=str, key="new_classes", persist_state="session",
            placeholder=f"All {len(options):,}", select_all=False, wrap=True,
        )  # fmt: skip
    wanted = set(now["new_classes"])
    return sum(entry.label in wanted for entry in data.entries) if wanted else len(data)


def _offered(problems: list[str]) -> dict[str, str]:
    """What whoever runs the server offers: titles by name of a set."""
    named = {name: name for name in os.environ.get(SETS, "").split()}
    value = os.environ.get(VARIABLE, "").strip()
    if not value:
        return named
    root = Path(value).expanduser()
    try:
        found = sorted(path for path in root.iterdir() if not path.name.startswith("."))
    except OSError:
        problems.append(f"{VARIABLE} names no folder that can be read.")
        return named
    return named | {
        f"{'folder' if path.is_dir() else 'zip'}:{path.resolve()}": f"{path.name} (on this server)"
        for path in found
        if path.is_dir() or path.suffix.lower() == ".zip"
    }


def _stored(file: Any, problems: list[str]) -> str:
    """An uploaded zip file, kept beside the runs so that a worker can read it."""
    from salviz.runs import uploads
    from salviz.runs.shelf import Shelf

    # Every run of the page asks; the file is read once.
    known: tuple[str, str] | None = st.session_state.get("_zip")
    if known is not None and known[0] == file.file_id:
        return known[1]
    try:
        id = uploads.keep(Shelf(), file.getvalue(), file.name)
    except SalvizError:
        problems.append(batch.CANNOT_WRITE)
        return ""
    st.session_state["_zip"] = (file.file_id, id)
    return id


def _measured() -> None:
    from salviz.methods import METHODS
    from salviz.runs.measures import MEASURES

    titles = {card.id: card.title for card in CARDS if is_available_offline(card.id)}
    titles |= {card.id: f"{card.title} · {card.megabytes} MB download" for card in CARDS if card.id not in titles}
    now = st.session_state
    now["new_models"] = [sidebar.id_of(model, titles) for model in now["new_models"]]
    extra = [model for model in now["new_models"] if model not in titles]
    st.multiselect(
        "Models", [*titles, *extra], format_func=lambda key: titles.get(key, key), key="new_models",
        persist_state="session", accept_new_options=True, placeholder="Choose models", select_all=False, wrap=True,
        help="Other ids work too: `timm:…`, `torchvision:…`, `hf-hub:…`.",
    )  # fmt: skip
    st.multiselect(
        "Methods", list(METHODS), format_func=lambda key: METHODS[key].card.title, key="new_methods",
        persist_state="session", placeholder="Choose methods", select_all=False, wrap=True,
    )  # fmt: skip
    st.multiselect(
        "Metrics", list(MEASURES), format_func=lambda key: MEASURES[key].title, key="new_metrics",
        persist_state="session", placeholder="Choose metrics", select_all=False, wrap=True,
        help="\n\n".join(f"**{measure.title}**: {measure.description}" for measure in MEASURES.values()),
    )  # fmt: skip
    if "cose" in now["new_metrics"]:
        panels.choice("Augmentations", _AUGMENTATIONS, "new_augmentations")
        panels.choice("Maps that are kept", _MAPS, "new_maps")


def _spec(data: Any, count: int | None, problems: list[str]) -> Spec | None:
    """What was chosen; None while something is missing."""
    from salviz.runs import Spec, measures
    from salviz.runs.plan import fitting_group

    now = st.session_state
    if data is None or not (now["new_models"] and now["new_methods"] and now["new_metrics"]):
        return None
    metrics: dict[str, dict[str, Any]] = {name: {} for name in now["new_metrics"]}
    if "cose" in metrics and now["new_augmentations"] != "default":
        metrics["cose"] = {"augmentations": now["new_augmentations"]}
    has_labels = any(entry.label is not None for entry in data.entries)
    try:
        for model in now["new_models"]:
            sidebar.check_path(model)
        for name, given in metrics.items():
            measures.get(name).settings(given)
        return Spec(
            data.id, tuple(now["new_models"]), {name: {} for name in now["new_methods"]}, metrics,
            images=count, classes=tuple(now["new_classes"]) or None,
            is_stratified=bool(now["new_stratified"]) and has_labels, seed=int(now["new_seed"]),
            maps=now["new_maps"] if "cose" in metrics else "none",
            group=fitting_group({name: {} for name in now["new_methods"]}, metrics),
        )  # fmt: skip
    except SalvizError as error:
        problems.append(str(error))
        return None


def _offer(spec: Spec, images: int) -> None:
    """What it will take, from a timed probe, and Start."""
    from salviz.classifiers.store import devices
    from salviz.plain import json_text

    device = devices()[0]
    digest = hashlib.blake2b(json_text(spec.as_dict()).encode(), digest_size=16).hexdigest()

    def probe(job: Any) -> Any:
        from salviz.runs.estimate import estimate

        return estimate(spec, images, lambda model: batch.loaded(model, device), progress=job.tick)

    followed = follow.follow(SLOT, follow.Task(f"estimate|{digest}|{device}", 2.0, False, probe))
    if followed.state == "running":
        follow.progress(SLOT, followed, "Timing a few maps", unit="models")
    if followed.error:
        st.warning(followed.error, icon=":material/info:")
    found = followed.result
    told = None if found is None else found.seconds
    is_too_long = told is not None and told > MOST_SECONDS
    # Where there is a limit, nothing starts before it is known to be kept.
    is_unknown = told is None and float("inf") > MOST_SECONDS
    is_empty = found is not None and found.maps == 0
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            "Start", type="primary", key="begin_run", on_click=_start, args=(spec, device),
            disabled=bool(followed.error) or is_too_long or is_unknown or is_empty,
        )  # fmt: skip
        if found is not None and is_empty:
            st.markdown("No method that is chosen can explain a model that is chosen.", width="stretch")
        elif found is not None:
            sentence = (
                f"About **{follow.duration(found.seconds)}** on this machine's {device}: "
                f"{found.maps:,} maps of {panels.counted(images, 'picture', 'pictures')}."
            )
            if is_too_long:
                sentence += f" This server takes runs of up to {follow.duration(MOST_SECONDS)}."
            st.markdown(sentence, width="stretch")
    if found is not None and found.refused:
        from salviz.runs import words

        models = words.models(spec.models)
        methods = words.methods(spec.methods)
        st.caption(
            "Left out: "
            + "; ".join(
                f"{methods[method]} on {panels.plain(models[model])} ({panels.plain(reason)})"
                for (model, method), reason in list(found.refused.items())[:4]
            )
        )
    with st.expander("The same from the command line", key="as_command"):
        st.code("salviz run --spec spec.json --out RUN", language=None)
        st.code(json_text(spec.as_dict(), indent=2), language="json")


def _start(spec: Spec, device: str) -> None:
    from salviz.runs.shelf import Shelf
    from salviz.runs.worker import ensure

    shelf = Shelf()
    try:
        name = shelf.submit(spec, device)
        ensure(shelf, device)
    except (SalvizError, OSError):
        state.notice(batch.CANNOT_WRITE)
        return
    batch.open_run(name)
    st.session_state["part"] = "scores"
