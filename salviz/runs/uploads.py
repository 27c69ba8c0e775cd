"""Zip files that visitors run over: kept beside the runs for the worker, and removed once no run needs them."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

from salviz.errors import SalvizError
from salviz.plain import write_files
from salviz.runs.shelf import Shelf

FOLDER = ".uploads"
KEPT_SECONDS = 24 * 3600.0
"""How long a file stays that was chosen and that no run is over."""


def keep(shelf: Shelf, content: bytes) -> str:
    """Write down an uploaded zip file.

    Args:
        shelf: Whose workers will read it.
        content: Of the file.

    Returns:
        Its name as a data set.

    Raises:
        RequestError: The folder cannot be written to.
    """
    folder = shelf.root / FOLDER
    path = folder / f"{hashlib.blake2b(content, digest_size=8).hexdigest()}.zip"
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
    old = [path for path in folder.glob("*.zip") if time.time() - path.stat().st_mtime > KEPT_SECONDS]
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
            path.unlink(missing_ok=True)


def _name(path: Path) -> str:
    return f"zip:{path.resolve()}"
