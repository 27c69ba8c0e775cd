"""What every photograph becomes: an upright 8-bit RGB picture that knows its identity and its source."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

_WORDNET_ID = re.compile(r"(n[0-9]{8})(?![0-9])")
_DIGEST_BYTES = 16


@dataclass(frozen=True)
class Picture:
    """A decoded photograph.

    Two pictures are equal when everything but the pixel buffer is equal; the digest stands for the pixels.

    Attributes:
        image: Pillow image of mode RGB, upright, opaque. Treat it as read-only: it may be shared by visitors.
        digest: 32 hex digits, BLAKE2b of width, height and the RGB pixels. The same pixels have the same
            digest however they were packed (PNG or BMP, with or without metadata); a JPEG saved twice has
            two.
        name: What to call the picture: a sample's title or a file's name. May be empty.
        source: ``sample:<id>``, ``fashion:<index>``, ``upload`` or ``file:<name>``.
        shareable: Whether a link holding `source` opens this picture for somebody else on the same server.
        notes: Plain sentences on what decoding had to change, such as a reduced size.
        wordnet_id: WordNet id (``n`` and eight digits) the file or its folder is named after, else None.
        alt: What the picture shows, for readers who do not see it. May be empty.
    """

    image: Image.Image = field(repr=False, compare=False)
    digest: str
    name: str = ""
    source: str = "upload"
    shareable: bool = False
    notes: tuple[str, ...] = ()
    wordnet_id: str | None = None
    alt: str = ""

    @property
    def described(self) -> str:
        """What it shows as far as that is known, never empty."""
        return self.alt or self.name or "the photograph"

    @classmethod
    def from_rgb(
        cls,
        image: Image.Image,
        *,
        name: str = "",
        source: str = "upload",
        shareable: bool = False,
        notes: tuple[str, ...] = (),
        wordnet_id: str | None = None,
        alt: str = "",
    ) -> Picture:
        """Wrap an RGB image and compute its digest.

        Args:
            image: Pillow image of mode RGB.
            name: See the class.
            source: See the class.
            shareable: See the class.
            notes: See the class.
            wordnet_id: See the class.
            alt: See the class.

        Returns:
            The picture.

        Raises:
            ValueError: The image is not of mode RGB.
        """
        if image.mode != "RGB":
            raise ValueError(f"A Picture holds an RGB image, not {image.mode}.")
        state = hashlib.blake2b(f"{image.width}x{image.height}:".encode(), digest_size=_DIGEST_BYTES)
        state.update(image.tobytes())
        return cls(
            image=image,
            digest=state.hexdigest(),
            name=name,
            source=source,
            shareable=shareable,
            notes=notes,
            wordnet_id=wordnet_id,
            alt=alt,
        )

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.image.size

    def pixels(self) -> NDArray[np.uint8]:
        """The picture as a read-only ``(H, W, 3)`` uint8 array, RGB, 0 to 255."""
        array = np.asarray(self.image, dtype=np.uint8)
        array.setflags(write=False)
        return array


def thumbnail(picture: Picture, size: int = 160, *, square: bool = False) -> Image.Image:
    """Shrink a picture for a gallery.

    Args:
        picture: The picture.
        size: Longest side of the result in pixels, at least 1. Smaller pictures are not enlarged unless
            `square`.
        square: Crop the middle so that the result is exactly `size` by `size`.

    Returns:
        A new RGB image.

    Raises:
        ValueError: `size` is below 1.
    """
    if size < 1:
        raise ValueError(f"A thumbnail has at least one pixel, not {size}.")
    if square:
        return ImageOps.fit(picture.image, (size, size), Image.Resampling.LANCZOS)
    small = picture.image.copy()
    small.thumbnail((size, size), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return small


def wordnet_id(name: str) -> str | None:
    """Read the WordNet id that labelled image sets put into their names.

    Args:
        name: A file name or a relative path with forward slashes: ``n01440764_tench.jpg`` or
            ``n01440764/0001.jpg``. The file's own name goes before its folder's.

    Returns:
        ``n`` and eight digits, or None when neither name begins with such an id.
    """
    for part in reversed(name.split("/")[-2:]):
        if match := _WORDNET_ID.match(part):
            return match.group(1)
    return None
