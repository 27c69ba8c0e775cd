"""Pictures from a folder on the server, and from a path given on the command line.

Names come from links that anybody can write, so a name is followed only to a regular, visible picture file
that lies inside the folder after every symbolic link has been resolved.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath

from salviz.errors import ImageError
from salviz.images.decoding import MAX_BYTES, MAX_PIXELS, check_file_size, decode
from salviz.images.picture import Picture

FOLDER_VARIABLE = "SALVIZ_IMAGE_DIR"
"""Environment variable that names the folder offered to visitors."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Endings of picture files, compared without regard to case."""

_DIGITS = re.compile(r"([0-9]+)")

MAX_LISTED = 5000
"""Default number of names `folder_images` stops at."""


def image_folder() -> Path | None:
    """The folder named by the environment variable `FOLDER_VARIABLE`.

    Returns:
        Its path with links resolved, or None when the variable is unset or empty.

    Raises:
        ImageError: The variable names something that is not a folder.
    """
    value = os.environ.get(FOLDER_VARIABLE, "").strip()
    return _resolved_root(Path(value)) if value else None


def folder_images(root: Path | str, *, limit: int = MAX_LISTED) -> list[str]:
    """List the pictures of a folder and its subfolders.

    Hidden files and folders, names that cannot be shown, linked folders, and links that leave the folder are
    left out. Nothing is opened, so a listed file may still turn out not to be a picture.

    Args:
        root: The folder.
        limit: Stop after this many names, at least 1.

    Returns:
        Paths relative to the folder with forward slashes, each folder's files in natural order (2 before 10)
        followed by its subfolders.

    Raises:
        ImageError: The folder does not exist or cannot be read.
    """
    folder = _resolved_root(root)
    names: list[str] = []
    for parent, subfolders, files in os.walk(folder, onerror=_refuse_unreadable(folder)):
        # Sorting in place also sets the order in which os.walk descends.
        subfolders[:] = sorted(filter(_is_visible, subfolders), key=_natural)
        for file in sorted(filter(_is_picture_name, files), key=_natural):
            path = Path(parent, file)
            if path.is_symlink() and not path.resolve().is_relative_to(folder):
                continue
            names.append(path.relative_to(folder).as_posix())
            if len(names) >= limit:
                return names
    return names


def open_from_folder(
    root: Path | str, name: str, *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS
) -> Picture:
    """Open a picture by its name inside a folder.

    Args:
        root: The folder.
        name: A path relative to it, as `folder_images` returns them.
        max_bytes: See `decode`.
        max_pixels: See `decode`.

    Returns:
        The picture, shareable, with source ``file:<name>`` and the WordNet id of its file or folder name.

    Raises:
        ImageError: The name leads outside the folder, to something hidden, or to no readable picture.
    """
    folder = _resolved_root(root)
    parts = PurePosixPath(name).parts
    if (
        not parts
        or name.startswith("/")
        or "\\" in name
        or ":" in parts[0]  # a drive letter would replace the folder
        or not all(map(_is_visible, parts))
        or not _is_picture_name(parts[-1])
    ):
        raise ImageError("This is not the name of a picture in the folder: choose one from its list.")
    path = folder.joinpath(*parts)
    try:
        resolved = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise ImageError("The folder no longer holds this picture: choose one from its list.") from error
    if not resolved.is_relative_to(folder):
        raise ImageError("This name leads outside the folder: choose a picture from its list.")
    data = _bytes(resolved, resolved.name, max_bytes)
    name = "/".join(parts)
    return decode(data, max_bytes=max_bytes, max_pixels=max_pixels, name=name, source=f"file:{name}", shareable=True)


def open_path(path: Path | str, *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS) -> Picture:
    """Open a picture file anywhere, for a person who may read it anyway.

    Args:
        path: The file.
        max_bytes: See `decode`.
        max_pixels: See `decode`.

    Returns:
        The picture, with source ``file:<file name>``; not shareable, as a link cannot hold where the file
        lies.

    Raises:
        ImageError: There is no such file, or it is no readable picture.
    """
    file = Path(path)
    try:
        # Absolute, so that the folder's name is known for a bare file name too.
        labelled = Path(file.parent.resolve().name, file.name).as_posix()
        # Whoever gave the path may see it whole.
        data = _bytes(file, str(path), max_bytes)
    except (OSError, ValueError) as error:
        raise ImageError(f"'{path}' cannot be read: check the path.") from error
    picture = decode(data, max_bytes=max_bytes, max_pixels=max_pixels, name=labelled, source=f"file:{file.name}")
    return replace(picture, name=file.name)


def _bytes(path: Path, called: str, max_bytes: int) -> bytes:
    """Read a regular file, named so where it cannot be; a pipe, which could block, or a huge file is refused first."""
    if not path.is_file():
        raise ImageError(f"'{called}' is not a file: choose a picture.")
    try:
        check_file_size(path.stat().st_size, max_bytes)
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"'{called}' cannot be read: check its permissions.") from error


def _resolved_root(root: Path | str) -> Path:
    try:
        folder = Path(root).expanduser().resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise ImageError(
            f"The image folder '{root}' does not exist: set {FOLDER_VARIABLE} to one that does."
        ) from error
    if not folder.is_dir():
        raise ImageError(f"'{root}' is not a folder: set {FOLDER_VARIABLE} to one.")
    return folder


def _refuse_unreadable(folder: Path) -> Callable[[OSError], None]:
    """Make os.walk skip unreadable subfolders but say so when it is the folder itself."""

    def refuse(error: OSError) -> None:
        if error.filename == str(folder):
            raise ImageError("The image folder cannot be read: check its permissions.") from error

    return refuse


def _is_visible(name: str) -> bool:
    """Neither hidden (which covers ``..``) nor with characters that no page or link can show."""
    return not name.startswith(".") and name.isprintable()


def _is_picture_name(name: str) -> bool:
    return _is_visible(name) and name.lower().endswith(SUFFIXES)


def _natural(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key that compares numbers inside names as numbers; the name itself decides between equals."""
    pieces = _DIGITS.split(name.casefold())
    # Split on a group: every second piece is a run of digits. A number goes before a text at the same place.
    return [(0, int(piece), "") if index % 2 else (1, 0, piece) for index, piece in enumerate(pieces)], name
