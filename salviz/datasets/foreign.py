"""What sets of other libraries share: names with options, and pictures of theirs as files."""

from __future__ import annotations

import io
from collections.abc import Mapping
from urllib.parse import parse_qsl, quote, urlencode

from PIL import Image

from salviz.errors import DataError, ImageError


def with_options(rest: str) -> tuple[str, dict[str, str]]:
    """Split what follows a set's kind into its name and its options.

    Args:
        rest: `NAME` or `NAME?option=value&option=value`; a name with a question mark of its own needs one more at its
            end.

    Returns:
        The name, and the options.

    Raises:
        DataError: An option without a value, or one given twice.
    """
    name, mark, options = rest.rpartition("?")
    if not mark:
        return rest, {}
    try:
        # A plus is one, as in `train+test`, and no space.
        pairs = parse_qsl(options.replace("+", "%2B"), keep_blank_values=True, strict_parsing=bool(options))
    except ValueError as error:
        raise DataError(f"Options of a set are written ?name=value&name=value, not {options!r}.") from error
    if not all(value for _, value in pairs):
        raise DataError(f"An option has no value in {options!r}; give it one, or leave it out.")
    if len(dict(pairs)) < len(pairs):
        raise DataError(f"An option is given twice in {options!r}; give each once.")
    return name, dict(pairs)


def named(name: str, options: Mapping[str, str]) -> str:
    """The text that `with_options` splits into these, always the same one.

    Args:
        name: Of the set.
        options: In any order.
    """
    mark = "?" if options or "?" in name else ""
    return f"{name}{mark}{urlencode(sorted(options.items()), safe='/+', quote_via=quote)}"


def has_names(options: Mapping[str, str]) -> bool:
    """Whether classes go by their names, as they do unless the option `labels=numbers` is given.

    Raises:
        DataError: The option has another value.
    """
    chosen = options.get("labels", "names")
    if chosen not in ("names", "numbers"):
        raise DataError(f"The option labels is names or numbers, not {chosen!r}.")
    return chosen == "names"


def class_name(name: str) -> int | str:
    """A class as a set lists it, read as the name of a class folder is: digits alone are a number."""
    return int(name) if name.isascii() and name.isdecimal() else name


def as_file(image: Image.Image) -> bytes:
    """A Pillow image as a file without loss, so that it is read by the rules of all files.

    Args:
        image: Of any mode.

    Raises:
        ImageError: It is damaged, or of a mode that no file holds.
    """
    packing = "PNG" if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else "TIFF"
    buffer = io.BytesIO()
    try:
        image.save(buffer, packing, **({"compress_level": 1} if packing == "PNG" else {}), exif=image.getexif())
    except Exception as error:  # damaged metadata raise nearly every built-in exception
        raise ImageError("The picture is damaged, or of a kind that no picture file has.") from error
    return buffer.getvalue()
