"""The labelled pictures that come with Salviz: the first thousand of Fashion-MNIST's test set."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from salviz.assets import find_asset
from salviz.errors import ImageError
from salviz.images.picture import Picture

FASHION = (
    "T-shirt",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
"""Fashion-MNIST's classes, in the order of its labels."""

FILE = "fashion/test.npz"
COUNT = 1000
"""Pictures in it."""


@lru_cache(maxsize=1)
def fashion_arrays() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The pictures, `(1000, 28, 28)` uint8, and their labels, `(1000,)` uint8, in the order of the test set.

    Raises:
        ImageError: The file is missing or damaged.
    """
    path = find_asset(FILE)
    try:
        if path is None:
            raise FileNotFoundError(FILE)
        with np.load(path, allow_pickle=False) as content:
            return content["images"], content["labels"]
    except (OSError, ValueError, KeyError) as error:
        raise ImageError(
            "The Fashion-MNIST pictures of this installation are missing; install Salviz again."
        ) from error


def fashion_index(source: str) -> int | None:
    """The place that a source ``fashion:<index>`` names, whether or not there is such a picture; None for any other."""
    kind, _, number = source.partition(":")
    # Python refuses to read thousands of digits.
    return int(number) if kind == "fashion" and number.isdecimal() and len(number) < 10 else None


def fashion_title(index: int) -> str:
    """What to call a picture: its class and its place in the test set."""
    return f"{FASHION[fashion_arrays()[1][index]]} {index}"


def open_fashion(index: int) -> Picture:
    """One of the pictures, with source ``fashion:<index>``.

    Args:
        index: Place in the test set, below `COUNT`.

    Raises:
        ImageError: There is no such picture, or the file is missing.
    """
    if not 0 <= index < COUNT:
        raise ImageError(f"There are {COUNT} Fashion-MNIST pictures, from 0 to {COUNT - 1}; there is no {index}.")
    images, labels = fashion_arrays()
    return Picture.from_rgb(
        Image.fromarray(images[index]).convert("RGB"),
        name=fashion_title(index),
        source=f"fashion:{index}",
        shareable=True,
        alt=f"A small grey picture: {FASHION[labels[index]].casefold()}.",
    )
