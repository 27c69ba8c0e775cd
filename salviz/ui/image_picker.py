"""Choosing the photograph: the gallery, a folder of the server, or an upload."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import streamlit as st

from salviz.errors import ImageError, SalvizError
from salviz.images import (
    SAMPLES,
    Picture,
    decode,
    fashion_index,
    fashion_title,
    folder_images,
    image_folder,
    open_source,
    samples,
)
from salviz.ui import gallery, state

if TYPE_CHECKING:
    from salviz.classifiers.classifier import Classifier

UPLOAD_BYTES = 16 * 2**20
_UPLOAD = "upload"
OF_RUN = "run:"
"""Begins the source of a picture of a batch run: `run:<name>/<place in its sample>`."""
_FEW_CLASSES = 20
"""Classes of a net that are told where a photograph is none of them."""
_FASHION = 50
"""Fashion-MNIST pictures in the list; a link may name any of the thousand."""


def choose(problems: list[str]) -> Picture | None:
    """Draw the pickers; the chosen picture, or None where it cannot be opened.

    Args:
        problems: Gets one sentence for whatever went wrong.
    """
    uploaded = _uploaded()
    titles = {f"sample:{sample.id}": sample.title for sample in samples()}
    titles |= _fashion(st.session_state["image"])
    folder = image_folder()
    if folder is not None:
        try:
            titles |= {f"file:{name}": name for name in folder_images(folder)}
        except SalvizError as error:
            problems.append(str(error))
    if uploaded is not None:
        titles[_UPLOAD] = uploaded.name or "Your picture"
    of_run = _of_run(st.session_state["image"])
    if of_run is not None:
        titles[st.session_state["image"]] = of_run.name
    if st.session_state["image"] not in titles:
        if st.session_state["image"] == _UPLOAD:
            state.notice("The link shows an uploaded picture, which cannot travel in a link: upload it again.")
        else:
            state.notice("The picture in the link is not on this server: the cat is shown instead.")
        st.session_state["image"] = "sample:cat"
    gallery.thumbnails(current=st.session_state["image"])
    st.selectbox(
        "Image", list(titles), format_func=lambda key: titles.get(key, key), key="image", persist_state="session"
    )
    st.file_uploader("Upload a picture", type="image", key="upload_file", label_visibility="collapsed")
    chosen = st.session_state["image"]
    if chosen == _UPLOAD:
        return uploaded
    if of_run is not None and chosen == of_run.source:
        return of_run
    try:
        return open_source(chosen)
    except ImageError as error:
        problems.append(str(error))
        return None


def _of_run(source: str) -> Picture | None:
    """The picture of a batch run that a link names, or None."""
    if not source.startswith(OF_RUN):
        return None
    try:
        return _opened(source)
    except SalvizError:
        return None


@st.cache_resource(show_spinner=False, max_entries=50)
def _opened(source: str) -> Picture:
    from salviz.runs.shelf import Shelf

    name, _, place = source.removeprefix(OF_RUN).rpartition("/")
    picture = Shelf().open(name, int(place) if place.isdecimal() else -1)
    return replace(picture, source=source, shareable=True)


def _fashion(current: str) -> dict[str, str]:
    """The first labelled pictures that come with Salviz, and the chosen one; nothing where they are missing."""
    named = fashion_index(current)
    wanted = [] if named is None else [named]
    try:
        return {f"fashion:{index}": f"Fashion-MNIST: {fashion_title(index)}" for index in [*range(_FASHION), *wanted]}
    except (ImageError, IndexError):
        return {}


def _uploaded() -> Picture | None:
    """The picture in the uploader; a new one becomes the chosen image, a bad one changes nothing."""
    now = st.session_state
    file = now.get("upload_file")
    if file is None:
        if now.pop("_upload", None) is not None and now["image"] == _UPLOAD:
            now["image"] = now.get("_before_upload", "sample:cat")
            # The uploader is empty for a moment while one file takes another's place.
            now["_was_upload"] = True
        return None
    picture: Picture | None
    file_id, picture = now.get("_upload", (None, None))
    if file_id != file.file_id:
        was_shown = now["image"] == _UPLOAD or now.pop("_was_upload", False)
        before: Picture | None = picture or now.get("_good_upload")
        try:
            picture = decode(file.getvalue(), max_bytes=UPLOAD_BYTES, name=file.name)
            now["_good_upload"] = picture
            if now["image"] != _UPLOAD:
                now["_before_upload"] = now["image"]
            now["image"] = _UPLOAD
        except ImageError as error:
            picture = before if was_shown else None
            kept = f" {picture.name or 'Your picture'} is still shown." if picture is not None else ""
            if picture is not None:
                now["image"] = _UPLOAD
            state.notice(f"{file.name}: {error}{kept}")
        now["_upload"] = (file.file_id, picture)
    return picture


def sample_remark(picture: Picture, classifier: Classifier) -> str:
    """Why a sample is worth explaining by a classifier, or nothing."""
    sample = next((s for s in SAMPLES if picture.source == f"sample:{s.id}"), None)
    labels = classifier.labels
    if sample is None or len(labels) > _FEW_CLASSES:
        return sample.remark if sample else ""
    # Whatever the picture shows, it becomes one of these.
    names = ", ".join(map(labels.short, range(len(labels))))
    return f"{classifier.title} knows {len(labels)} classes and no other: {names}."
