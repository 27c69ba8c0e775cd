"""Choosing the photograph: the gallery, a folder of the server, or an upload."""

from __future__ import annotations

import streamlit as st

from salviz.errors import ImageError, SalvizError
from salviz.images import SAMPLES, Picture, decode, folder_images, image_folder, open_source, samples
from salviz.ui import gallery, state

UPLOAD_BYTES = 16 * 2**20
_UPLOAD = "upload"


def choose(problems: list[str]) -> Picture | None:
    """Draw the pickers; the chosen picture, or None where it cannot be opened.

    Args:
        problems: Gets one sentence for whatever went wrong.
    """
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


def sample_remark(picture: Picture) -> str:
    """Why a sample is worth explaining, or nothing."""
    sample = next((s for s in SAMPLES if picture.source == f"sample:{s.id}"), None)
    return sample.remark if sample else ""
