"""Zip files that visitors run over: kept beside the runs for the worker, and removed once no run needs them."""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from pathlib import Path

from salviz.errors import SalvizError
from salviz.plain import write_files
from salviz.runs.shelf import Shelf

FOLDER = ".uploads"
KEPT_SECONDS = 24 * 3600.0
"""How long a file stays that was chosen and that no run is over."""


def keep(shelf: Shelf, content: bytes, name: str) -> str:
    """Write down an uploaded zip file.

    Args:
        shelf: Whose workers will read it.
        content: Of the file.
        name: The visitor's: what is left of it stands in titles and messages.

    Returns:
        Its name as a data set.

    Raises:
        RequestError: The folder cannot be written to.
    """
    folder = shelf.root / FOLDER / hashlib.blake2b(content, digest_size=8).hexdigest()
    path = folder / f"{_plain(name)}.zip"
    if path.is_file():
        path.touch()
    else:
        write_files(folder, {path.name: content})
    tidy(shelf)
    return _name(path)


def tidy(shelf: Shelf) -> None:
    """Remove the files that no run is over and that nobody chose for a day."""
    folder = shelf.root / FOLDER
    if not folder.is_dir():
        return
    old = [path for path in folder.glob("*/*.zip") if time.time() - path.stat().st_mtime > KEPT_SECONDS]
    if not old:
        return
    used = set()
    for name in shelf.names():
        try:
            used.add(shelf.spec(name).data)
        except SalvizError:
            # Whatever a damaged run was over, nothing is thrown away that it may need.
            return
    for path in old:
        if _name(path) not in used:
            shutil.rmtree(path.parent, ignore_errors=True)


def _plain(name: str) -> str:
    """A visitor's file name as the name of a file here, without its ending."""
    stem = name.replace("\\", "/").rpartition("/")[2].removesuffix(".zip")
    return re.sub(r"[^\w .()+-]", "_", stem).strip(" .")[:60] or "pictures"


def _name(path: Path) -> str:
    return f"zip:{path.resolve()}"
