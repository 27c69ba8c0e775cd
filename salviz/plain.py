"""Results as files: numbers and JSON in plain types, and writing that leaves no half of a file."""

from __future__ import annotations

import io
import json
import math
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from salviz.errors import RequestError


def plain_number(value: float) -> float | None:
    """For JSON, which has no word for the undefined."""
    return float(value) if math.isfinite(value) else None


def digits(value: float) -> str:
    """All digits for a table; nothing where undefined."""
    return repr(value) if math.isfinite(value) else ""


def json_text(content: Mapping[str, Any], *, indent: int | None = None) -> str:
    """JSON of plain types, names as they are written."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False, indent=indent)


def packed(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Arrays as a compressed `.npz`, to be read with `allow_pickle=False`; equal arrays give equal bytes."""
    buffer = io.BytesIO()
    # numpy stamps the members with a fixed date, so the bytes depend on the arrays alone.
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def write_files(folder: Path | str, contents: Mapping[str, bytes]) -> list[Path]:
    """Write files into a folder; each appears whole or not at all, and replaces one of its name.

    Args:
        folder: Created where it does not exist.
        contents: By name.

    Returns:
        The files' paths, in their order.

    Raises:
        RequestError: The folder cannot be made or written to.
    """
    place = Path(folder).expanduser()
    try:
        place.mkdir(parents=True, exist_ok=True)
        return [_write(place / name, content) for name, content in contents.items()]
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise RequestError(f"The results cannot be written to '{folder}' ({reason}); choose another folder.") from error


def _write(path: Path, content: bytes) -> Path:
    put(path, lambda file: file.write(content))
    return path


def put(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Write a file beside its place, then rename it: nobody ever reads half of it.

    Args:
        path: Its place.
        fill: Writes the content.

    Raises:
        OSError: The disk is full or the folder cannot be written to.
    """

    def write(beside: Path) -> None:
        with beside.open("xb") as file:
            fill(file)

    place(path, write)


def place(path: Path, write: Callable[[Path], object]) -> None:
    """`put` for what writes files by their path alone.

    Args:
        path: Its place.
        write: Writes the file beside it that it is given.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        write(beside)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
