"""Labelled image sets: Fashion-MNIST from the machine's own copy or torchvision's download."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from salviz.errors import DataError
from salviz.images.fashion import FASHION, fashion_arrays

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package `dataset-fashion-mnist` puts it."""

_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""Of the unpacked files: packers differ."""


@dataclass(frozen=True)
class LabelledImages:
    """Grey pictures of one size and their classes.

    Attributes:
        images: `(N, H, W)` uint8.
        labels: `(N,)` int64.
        names: Of the classes.
    """

    images: Tensor
    labels: Tensor
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, indices: Tensor) -> LabelledImages:
        """The images at these places."""
        return LabelledImages(self.images[indices], self.labels[indices], self.names)


def fashion_mnist(part: str, *, folder: Path | None = None) -> LabelledImages:
    """Fashion-MNIST (Xiao, Rasul, Vollgraf 2017; MIT): 28 x 28 grey pictures of ten kinds of clothes.

    Args:
        part: `train` (60,000 pictures) or `test` (10,000).
        folder: Holds the four `.gz` files; None looks where Debian's package puts them, and else downloads them with
            torchvision into torch's cache.

    Raises:
        DataError: The files are missing, cannot be fetched, or are not the published ones.
    """
    if part not in ("train", "test"):
        raise DataError(f"Fashion-MNIST has the parts train and test, not {part!r}.")
    where = folder or (DEBIAN if DEBIAN.is_dir() else _download())
    start = "train" if part == "train" else "t10k"
    images = _read(where, f"{start}-images-idx3-ubyte", header=16).view(-1, 28, 28)
    return LabelledImages(images, _read(where, f"{start}-labels-idx1-ubyte", header=8).long(), FASHION)


def fashion_sample() -> LabelledImages:
    """The first thousand pictures of Fashion-MNIST's test set, which come with Salviz.

    Raises:
        ImageError: The file is missing from this installation.
    """
    images, labels = fashion_arrays()
    return LabelledImages(torch.from_numpy(images), torch.from_numpy(labels).long(), FASHION)


def _read(folder: Path, name: str, *, header: int) -> Tensor:
    path = folder / f"{name}.gz"
    try:
        with gzip.open(path, "rb") as file:
            content = file.read()
    except (OSError, EOFError) as error:
        raise DataError(f"{path.name} is missing or damaged in {folder.name}; get Fashion-MNIST again.") from error
    if hashlib.sha256(content).hexdigest() != _SHA256[name]:
        raise DataError(f"{path.name} is not Fashion-MNIST's; get it again.")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).copy())


def _download() -> Path:
    from torchvision.datasets import FashionMNIST

    root = Path(torch.hub.get_dir()) / "datasets"
    try:
        FashionMNIST(str(root), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            "Fashion-MNIST could not be downloaded; install Debian's dataset-fashion-mnist, or name a folder that "
            "holds its four .gz files."
        ) from error
    return root / "FashionMNIST" / "raw"
