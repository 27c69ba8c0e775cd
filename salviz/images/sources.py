"""From the source that a link or a stored run holds back to the picture."""

from __future__ import annotations

from pathlib import Path

from salviz.errors import ImageError
from salviz.images.fashion import fashion_index, open_fashion
from salviz.images.folder import image_folder, open_from_folder
from salviz.images.gallery import open_sample
from salviz.images.picture import Picture

NAMED = ("sample:", "fashion:")
"""Beginnings of the sources that name a picture which comes with Salviz or its packages."""


def open_source(source: str, *, root: Path | str | None = None) -> Picture:
    """Open the picture that `Picture.source` of a shareable picture names.

    Args:
        source: ``sample:<id>``, ``fashion:<index>`` or ``file:<name>``.
        root: The folder that names are looked up in; by default the server's, see `image_folder`.

    Returns:
        The picture. Compare its digest where the same pixels matter: a file may have been replaced since.

    Raises:
        ImageError: The source is an upload or unknown, or its picture cannot be opened.
    """
    kind, _, name = source.partition(":")
    if kind == "sample":
        return open_sample(name)
    index = fashion_index(source)
    if index is not None:
        return open_fashion(index)
    if kind == "file":
        folder = root if root is not None else image_folder()
        if folder is None:
            raise ImageError("This server offers no image folder: upload the picture or choose a sample.")
        return open_from_folder(folder, name)
    if kind == "upload":
        raise ImageError("An uploaded picture is not kept on the server: upload it again.")
    raise ImageError("The link does not say which picture it means: choose one.")
