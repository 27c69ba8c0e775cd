"""Decode bytes from anywhere into a picture, or say in one sentence why not.

The order is what makes it safe: the number of bytes is checked before anything is parsed, the header's size
before anything is decoded, and only six formats are ever tried. They are the ones people have (PNG, JPEG,
WebP, GIF, BMP, TIFF); drawings and documents (SVG, EPS, PDF) need an interpreter and are refused by name.
"""

from __future__ import annotations

import threading
import warnings
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from salviz.errors import ImageError
from salviz.images.picture import Picture, wordnet_id
from salviz.images.signatures import damaged, why_unreadable

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Pillow's names of the formats that are read. MPO, the multi-picture JPEG of phones, is read as JPEG."""

MAX_BYTES = 32 * 2**20
"""Default limit of a file's size in bytes."""

MAX_PIXELS = 50_000_000
"""Default limit of width times height: what the sensors of today's telephones deliver."""

MAX_ASPECT = 20
"""How many times as long as wide a picture may be; nothing in a longer strip stays recognisable."""

MAX_SHORTER_SIDE = 2048
"""Pictures are reduced until their shorter side has at most this many pixels (models see 224 to 384)."""

MAX_LONGER_SIDE = 8192
"""Pictures are reduced until their longer side has at most this many pixels."""

_SMALL_SIDE = 32
# A progressive JPEG may go over its picture in thousands of scans of a few bytes; cameras use about ten.
_MAX_JPEG_SCANS = 500
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Decoding one picture at a time bounds the memory that many uploads at once can take, and keeps the filter of
# `warnings`, which is one for all threads, from being restored in the wrong order.
_ONE_AT_A_TIME = threading.Lock()


def decode(
    data: bytes,
    *,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
    name: str = "",
    source: str = "upload",
    shareable: bool = False,
    alt: str = "",
) -> Picture:
    """Decode a PNG, JPEG, WebP, GIF, BMP or TIFF file.

    The result is upright (EXIF orientation applied), opaque (transparency laid on white) and 8-bit RGB.
    16-bit values keep their high byte, as Pillow does for colour; values of 32 bits and floats have no fixed
    range and are read as 0 to 1, 0 to 255 or 0 to 65535, whichever is the first to hold them all, else
    stretched from their minimum to their maximum. CMYK is converted without a profile and colour profiles are
    not applied, as classifiers were trained without them. Of an animation the first frame counts. Pictures
    larger than `MAX_SHORTER_SIDE` by `MAX_LONGER_SIDE` are reduced. Where that is worth knowing,
    `Picture.notes` says so.

    Args:
        data: The whole file.
        max_bytes: Largest accepted file, in bytes.
        max_pixels: Largest accepted width times height, checked on the header before decoding.
        name: File name or title, kept on the picture; a WordNet id at its beginning becomes its label.
        source: Kept on the picture, see `Picture`.
        shareable: Kept on the picture, see `Picture`.
        alt: Kept on the picture, see `Picture`.

    Returns:
        The picture.

    Raises:
        ImageError: The file is too large, not of a readable format, damaged, or holds nothing to look at.
    """
    if not data:
        raise ImageError("The file is empty: choose another one.")
    check_file_size(len(data), max_bytes)
    notes: list[str] = []
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        # Pillow warns about odd metadata, which do no harm, and about large sizes, which are checked below.
        warnings.simplefilter("ignore")
        image = _read(data, max_pixels, notes)
    name = "".join(character for character in name if character.isprintable())
    return Picture.from_rgb(
        image,
        name=name,
        source=source,
        shareable=shareable,
        notes=tuple(notes),
        wordnet_id=wordnet_id(name),
        alt=alt,
    )


def check_file_size(size: int, max_bytes: int) -> None:
    """Refuse a file by its size, before it is read.

    Args:
        size: Size of the file in bytes.
        max_bytes: Largest accepted size.

    Raises:
        ImageError: The file is larger than that.
    """
    if size > max_bytes:
        raise ImageError(
            f"The file has {_megabytes(size)} and the limit is {_megabytes(max_bytes)}: "
            "save the picture with fewer pixels or as JPEG."
        )


def _read(data: bytes, max_pixels: int, notes: list[str]) -> Image.Image:
    """Decode to upright, opaque RGB; whatever goes wrong becomes an `ImageError`."""
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as opened:
            return _converted(opened, data, max_pixels, notes)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(why_unreadable(data)) from error
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"The picture has more pixels than the limit of {_megapixels(max_pixels)}: make it smaller."
        ) from error
    except MemoryError as error:
        raise ImageError("There is not enough memory for this picture: make it smaller.") from error
    except Exception as error:  # damaged files raise nearly every built-in exception in Pillow
        raise ImageError(damaged(data)) from error


def _converted(opened: Image.Image, data: bytes, max_pixels: int, notes: list[str]) -> Image.Image:
    size = opened.size
    _check_size(size, max_pixels)
    scale = _reduction(size)
    if opened.format in ("JPEG", "MPO"):
        if data.count(b"\xff\xda") > _MAX_JPEG_SCANS:
            raise ImageError("The JPEG file repeats its picture too often to be decoded: save it again.")
        # The decoder can leave out what the reduction would throw away: a quarter of the memory or less.
        opened.draft(None, (int(np.ceil(size[0] * scale)), int(np.ceil(size[1] * scale))))
    elif getattr(opened, "is_animated", False):
        notes.append("Only the first frame of the file is used.")
    raw_mode = _raw_mode(opened)
    opened.load()
    image = _eight_bit(opened, raw_mode, notes)
    remaining = _reduction(image.size)
    if remaining < 1:
        target = (max(1, round(image.width * remaining)), max(1, round(image.height * remaining)))
        image = image.resize(target, Image.Resampling.LANCZOS, reducing_gap=3.0)
    image = _upright(_opaque(image, notes), opened)
    if scale < 1:
        before = size if (size[0] < size[1]) == (image.width < image.height) else size[::-1]
        notes.append(f"Reduced from {_times(before)} to {_times(image.size)} pixels.")
    elif min(image.size) < _SMALL_SIDE:
        notes.append(f"The picture has only {_times(image.size)} pixels; the classifier sees it enlarged.")
    return image


def _reduction(size: tuple[int, int]) -> float:
    """The factor, at most 1, that brings a picture down to the largest size that is kept."""
    return min(1.0, MAX_SHORTER_SIDE / min(size), MAX_LONGER_SIDE / max(size))


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    if min(size) < 1:
        raise ImageError("The picture has no pixels: choose another one.")
    if size[0] * size[1] > max_pixels:
        raise ImageError(
            f"The picture has {_times(size)} pixels and the limit is {_megapixels(max_pixels)}: make it smaller."
        )
    if max(size) > MAX_ASPECT * min(size):
        raise ImageError(
            f"The picture is a strip of {_times(size)} pixels: "
            f"crop it to at most {MAX_ASPECT} times as long as it is wide."
        )


def _raw_mode(opened: Image.Image) -> str:
    """How the samples are packed in the file, e.g. ``RGB;16B``; known only before the pixels are loaded."""
    tiles = getattr(opened, "tile", None)
    if not tiles:
        return ""
    arguments = tiles[0][3]
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _eight_bit(opened: Image.Image, raw_mode: str, notes: list[str]) -> Image.Image:
    """Convert to RGB, or to RGBA where something is transparent."""
    if opened.mode.startswith("I;16"):
        return _from_sixteen_bit_grey(opened, notes)
    if opened.mode in ("I", "F"):
        return _from_unbounded_grey(opened, notes)
    if opened.mode == "LAB":
        raise ImageError("The picture is stored in CIE Lab colours: save it as RGB.")
    if ";16" in raw_mode:
        notes.append("The 16-bit values were scaled to 8 bits.")
        key = opened.info.get("transparency")
        if isinstance(key, tuple):  # one colour stands for "transparent", given in 16 bits
            opened.info["transparency"] = tuple(value >> 8 for value in key)
    return opened.convert("RGBA" if opened.has_transparency_data else "RGB")


def _from_sixteen_bit_grey(opened: Image.Image, notes: list[str]) -> Image.Image:
    # Pillow's own conversion clips at 255 instead of scaling.
    values = np.asarray(opened).astype(np.uint16, copy=False)
    bits = 16
    is_white_zero = False
    if isinstance(opened, TiffImagePlugin.TiffImageFile):
        bits = int(opened.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0])
        # Pillow inverts "0 is white" for 1 to 8 bits only.
        is_white_zero = opened.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    grey = (values >> (bits - 8)).astype(np.uint8)
    if is_white_zero:
        grey = 255 - grey
    notes.append(f"The {bits}-bit values were scaled to 8 bits.")
    image = Image.fromarray(grey).convert("RGB")
    key = opened.info.get("transparency")
    if isinstance(key, int):
        image.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return image


def _from_unbounded_grey(opened: Image.Image, notes: list[str]) -> Image.Image:
    values: NDArray[np.float64] = np.asarray(opened).astype(np.float64)
    if not np.isfinite(values).all():
        raise ImageError("The picture holds values that are not finite numbers: save it as 8-bit PNG.")
    low, high = float(values.min()), float(values.max())
    for full in (1, 255, 65535):
        if low >= 0 and high <= full:
            values *= 255 / full
            notes.append(f"The values were read as brightness from 0 to {full}.")
            break
    else:
        # Scaled down first, since the difference of two large floats can overflow.
        largest = max(abs(low), abs(high))
        values /= largest
        low, high = low / largest, high / largest
        values -= low
        values *= 255 / (high - low) if high > low else 0.0
        notes.append(f"The values were stretched: {low * largest:.3g} became black, {high * largest:.3g} white.")
    return Image.fromarray(np.rint(values, out=values).astype(np.uint8)).convert("RGB")


def _opaque(image: Image.Image, notes: list[str]) -> Image.Image:
    """Lay transparent parts on white; dropping the alpha channel would show what its author hid."""
    if image.mode == "RGB":
        return image
    alpha = image.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return image.convert("RGB")
    notes.append("Transparent parts were laid on white.")
    white = Image.new("RGB", image.size, "white")
    white.paste(image.convert("RGB"), mask=alpha)
    return white


def _upright(image: Image.Image, opened: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; unreadable metadata count as none. Pillow has turned TIFF files already."""
    try:
        turn = _UPRIGHT.get(opened.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # noqa: BLE001 - metadata of any shape must not cost the picture
        return image
    return image if turn is None else image.transpose(turn)


def _megabytes(size: int) -> str:
    return f"{size / 2**20:.1f} MB" if size >= 2**20 else f"{size} bytes"


def _megapixels(pixels: int) -> str:
    return f"{pixels / 1e6:g} megapixels"


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
