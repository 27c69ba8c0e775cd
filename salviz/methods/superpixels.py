"""Superpixels: the parts of a picture that perturbation methods hide or keep as a whole."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from salviz.classifiers.classifier import Classifier
from salviz.methods.card import Parameter

Labels = NDArray[np.uint16]

SEGMENTS = Parameter(
    "segments",
    50,
    "Superpixels wanted of SLIC and of the grid; the two others find their own number.",
    low=2,
    high=1000,
    step=1,
)
PIXELS = Parameter(
    "pixels",
    "picture",
    "What is segmented: the picture, or the model's normalised input as COSE's code does.",
    choices=("picture", "input"),
)
FILL = Parameter(
    "fill",
    "mean",
    "What hides a superpixel: the training set's mean colour as in COSE, black, or the superpixel's own mean colour as "
    "in LIME's code.",
    choices=("mean", "black", "average"),
)

_KEPT = 64 * 2**20
"""Bytes of label maps that are kept; one of 224 x 224 takes 0.1 MB."""


def segmentation(default: str) -> Parameter:
    """The setting that chooses the algorithm.

    Args:
        default: `slic`, `quickshift`, `felzenszwalb` or `grid`.
    """
    return Parameter(
        "segmentation",
        default,
        "How the picture is cut: SLIC, quickshift, Felzenszwalb, or a grid of squares.",
        choices=("slic", "quickshift", "felzenszwalb", "grid"),
    )


@dataclass(frozen=True)
class Superpixels:
    """Superpixels of a batch.

    Attributes:
        labels: `(N, H, W)` int64 on the images' device; image n's values are `0..counts[n] - 1`, all of them present.
        counts: Superpixels of every image, known on the host.
    """

    labels: Tensor
    counts: tuple[int, ...]

    @property
    def largest(self) -> int:
        """M, the most superpixels of an image; tensors of the batch are padded to it."""
        return max(self.counts)

    def exist(self) -> Tensor:
        """`(N, M)` bool: which are there and which are padding."""
        order = torch.arange(self.largest, device=self.labels.device)
        return order < torch.tensor(self.counts, device=self.labels.device)[:, None]

    def areas(self) -> Tensor:
        """`(N, M)` float32 pixels of each."""
        flat = self.labels.flatten(1)
        empty = torch.zeros(len(flat), self.largest, device=flat.device)
        return empty.scatter_add_(1, flat, torch.ones(flat.shape, device=flat.device))

    def spread(self, values: Tensor) -> Tensor:
        """Every pixel gets the value of its superpixel, whatever its area: `(N, M)` -> `(N, H, W)`.

        Args:
            values: One row an image, or as many of every image, side by side.
        """
        each = len(values) // len(self.labels)
        labels = self.labels if each == 1 else self.labels.repeat_interleave(each, dim=0)
        return values.gather(1, labels.flatten(1)).view(labels.shape)

    def averaged(self, x: Tensor) -> Tensor:
        """The image with every superpixel in its own mean colour: `(N, 3, H, W)` -> `(N, 3, H, W)`."""
        flat = self.labels.flatten(1)[:, None].expand(-1, x.shape[1], -1)
        sums = torch.zeros(*x.shape[:2], self.largest, device=x.device, dtype=x.dtype)
        means = sums.scatter_add_(2, flat, x.flatten(2)) / self.areas().clamp(min=1)[:, None]
        return means.gather(2, flat).view(x.shape)


def superpixels(
    classifier: Classifier, x: Tensor, *, algorithm: str, segments: int, pixels: str = "picture", at_most: int = 0
) -> Superpixels:
    """Cut every image of a batch into superpixels; the same image is always cut the same way.

    scikit-image works on the host, so the pixels are read there, once for every image and setting.

    Args:
        classifier: Knows how to undo the normalisation.
        x: `(N, 3, H, W)` float32 in model space.
        algorithm: `slic` (compactness 30, sigma 3, as in shap's image examples), `quickshift` (kernel 4, maximal
            distance 200, ratio 0.2, as in lime and COSE), `felzenszwalb` (scale 100, sigma 0.5, at least 50 pixels) or
            `grid` (squares of side `ceil(sqrt(H W / segments))`, as in Fresz et al.; it ignores the pixels).
        segments: Wanted of `slic` and `grid`.
        pixels: `picture` or `input`: what is segmented.
        at_most: Where an image has more, the smallest join the neighbour with the longest common border; 0 for no
            limit. The grid heeds none: its number is known beforehand (`grid_count`).
    """
    height, width = int(x.shape[2]), int(x.shape[3])
    if algorithm == "grid" or x.is_meta:
        # The meta device has no pixels to read; what runs there only asks for shapes.
        side = _side((height, width), segments)
        rows = torch.arange(height, device=x.device) // side
        columns = torch.arange(width, device=x.device) // side
        labels = rows[:, None] + columns * -(-height // side)
        return Superpixels(labels.expand(len(x), -1, -1), (grid_count((height, width), segments),) * len(x))
    found = [
        remembered(picture, (algorithm, segments, at_most), lambda image: _cut(image, algorithm, segments, at_most))
        for picture in on_host(classifier, x, pixels)
    ]
    labels = torch.from_numpy(np.stack(found).astype(np.int64)).to(x.device)
    return Superpixels(labels, tuple(int(cut.max()) + 1 for cut in found))


def _side(size: tuple[int, int], segments: int) -> int:
    """Side of a grid's squares."""
    # ceil(sqrt(a / b)) of whole numbers, without rounding.
    side = int((size[0] * size[1] / segments) ** 0.5)
    while side * side * segments < size[0] * size[1]:
        side += 1
    return max(side, 1)


def grid_count(size: tuple[int, int], segments: int) -> int:
    """Squares of a grid: for a picture that is no square this need not be the number wanted.

    Args:
        size: `(height, width)`.
        segments: Number wanted.
    """
    side = _side(size, segments)
    return -(-size[0] // side) * -(-size[1] // side)


def on_host(classifier: Classifier, x: Tensor, pixels: str) -> list[NDArray[Any]]:
    """Pictures of a batch for scikit-image.

    Args:
        classifier: Knows how to undo the normalisation.
        x: `(N, 3, H, W)` in model space.
        pixels: `picture` for `(H, W, 3)` uint8, `input` for `(H, W, 3)` float32 in model space.
    """
    shown = classifier.preprocessing.denormalise(x) if pixels == "picture" else x.float()
    return list(shown.permute(0, 2, 3, 1).contiguous().cpu().numpy())


_remembered: OrderedDict[tuple[Any, ...], NDArray[Any]] = OrderedDict()
_lock = threading.Lock()


def remembered(
    picture: NDArray[Any], settings: tuple[Any, ...], cut: Callable[[NDArray[Any]], NDArray[Any]]
) -> NDArray[Any]:
    """What `cut` makes of a picture, kept for the next time the same pixels come with the same settings.

    Args:
        picture: `(H, W, 3)`.
        settings: Says what `cut` does.
        cut: Makes label maps.

    Returns:
        Label maps; nobody may change them.
    """
    content = hashlib.blake2b(np.ascontiguousarray(picture).tobytes(), digest_size=16).digest()
    key = (content, picture.shape, picture.dtype.str, *settings)
    with _lock:
        if key in _remembered:
            _remembered.move_to_end(key)
            return _remembered[key]
    # Two threads may cut the same picture at once: both find the same.
    made = cut(picture)
    made.setflags(write=False)
    with _lock:
        _remembered[key] = made
        while sum(kept.nbytes for kept in _remembered.values()) > _KEPT and len(_remembered) > 1:
            _remembered.popitem(last=False)
    return made


def _cut(picture: NDArray[Any], algorithm: str, segments: int, at_most: int) -> Labels:
    from skimage.segmentation import felzenszwalb, quickshift, slic

    if algorithm == "slic":
        found = slic(picture, n_segments=segments, compactness=30, sigma=3, start_label=0)
    elif algorithm == "quickshift":
        # Its random numbers only break ties. The lime package cannot hand over its seed to the scikit-image of today,
        # so this default is what it gets, whatever seed it is given.
        found = quickshift(picture, kernel_size=4, max_dist=200, ratio=0.2, rng=42)  # type: ignore[no-untyped-call]
    else:
        found = felzenszwalb(picture, scale=100, sigma=0.5, min_size=50)
    labels = np.unique(found, return_inverse=True)[1].reshape(found.shape).astype(np.uint16)
    return _join(labels, at_most) if at_most else labels


def _join(labels: Labels, at_most: int) -> Labels:
    """Labels of at most so many superpixels, numbered without gaps."""
    labels = labels.copy()
    sizes = np.bincount(labels.ravel())
    while np.count_nonzero(sizes) > at_most:
        smallest = int(np.where(sizes > 0, sizes, sizes.max() + 1).argmin())
        borders = np.zeros_like(sizes)
        for a, b in ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])):
            borders += np.bincount(b[(a == smallest) & (b != smallest)], minlength=len(sizes))
            borders += np.bincount(a[(b == smallest) & (a != smallest)], minlength=len(sizes))
        into = int(borders.argmax())
        labels[labels == smallest] = into
        sizes[into] += sizes[smallest]
        sizes[smallest] = 0
    return np.unique(labels, return_inverse=True)[1].reshape(labels.shape).astype(np.uint16)
