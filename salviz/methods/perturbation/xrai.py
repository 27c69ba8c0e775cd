"""XRAI: regions of the picture, ranked by how densely integrated gradients fill them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from salviz.classifiers.classifier import Classifier
from salviz.methods.card import Attribution, MethodCard, Parameter, register
from salviz.methods.passes import shared_logits, straight_gradient
from salviz.methods.superpixels import on_host, remembered
from salviz.targets import ClassTarget, Target
from salviz.work import Work

_SCALES = (50, 100, 150, 250, 500, 1200)
_SIGMA = 0.8
_SMALLEST = 150
_SIDE = 224
"""Felzenszwalb's settings are those of the paper's code, made for pictures of this side with values in [-1, 1]."""
_GROWTH = 5
_LEAST_NEW = 50

Region = NDArray[np.int64]


def segment(picture: NDArray[Any]) -> NDArray[np.int32]:
    """Felzenszwalb's segments at six scales, numbered through: `(H, W, 3)` -> `(6, H, W)`.

    Kapishnikov et al., sec. 3.2: no scale is right for every picture, so regions of all compete.
    """
    from skimage.segmentation import felzenszwalb
    from skimage.transform import resize

    resample: Any = partial(resize, mode="constant", preserve_range=True)
    image = picture.astype(np.float64)
    low, high = image.min(), image.max()
    image = (image - low) / (high - low if high > low else 1.0) * 2 - 1
    size = image.shape[:2]
    if size != (_SIDE, _SIDE):
        image = resample(image, (_SIDE, _SIDE), order=3, anti_aliasing=True)
    found, first = [], 0
    for scale in _SCALES:
        labels = felzenszwalb(image, scale=scale, sigma=_SIGMA, min_size=_SMALLEST)
        if size != (_SIDE, _SIDE):
            labels = resample(labels, size, order=0, anti_aliasing=False)
        labels = np.unique(labels, return_inverse=True)[1].reshape(size)
        found.append(labels + first)
        first += int(labels.max()) + 1
    return np.stack(found).astype(np.int32)


def _dilate(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """A mask `(H, W)` and all within a disc of it; the disc is made of a run of pixels in each of its rows."""
    run, grown = mask.copy(), mask.copy()
    reach = 0
    # From the disc's ends, where its rows are short, to its middle.
    for row in range(radius, -1, -1):
        half = int((radius**2 - row**2) ** 0.5)
        for step in range(reach + 1, half + 1):
            run[:, step:] |= mask[:, :-step]
            run[:, :-step] |= mask[:, step:]
        reach = half
        if row:
            grown[row:] |= run[:-row]
            grown[:-row] |= run[row:]
        else:
            grown |= run
    return grown


def grow(labels: NDArray[np.int32], radius: int = _GROWTH) -> list[Region]:
    """Every segment with a margin, so that its border belongs to it.

    Args:
        labels: `(S, H, W)` segmentations that number their segments through.
        radius: Of the margin, in pixels.

    Returns:
        Flat pixel indices of each segment, in the order of the labels.
    """
    from scipy.ndimage import find_objects

    width = labels.shape[2]
    regions = []
    for one in labels:
        for number, box in enumerate(find_objects(one + 1), start=1):
            if box is None:
                continue  # a label of another scale
            # Only where the segment and its margin can be.
            top, left = (max(side.start - radius, 0) for side in box)
            part = one[top : box[0].stop + radius, left : box[1].stop + radius] == number - 1
            rows, columns = np.nonzero(_dilate(part, radius))
            regions.append((rows + top) * width + columns + left)
    return regions


def rank_regions(
    attribution: NDArray[np.float64], regions: Sequence[Region], least_new: int = _LEAST_NEW
) -> NDArray[np.float64]:
    """Give every pixel the density of the region it came in with.

    Kapishnikov et al., alg. 1: again and again the region joins whose pixels not yet covered have the highest mean
    attribution. Only what a region still has is looked at, and sums are kept up to date pixel by pixel, so that all
    rounds together read every region once.

    Args:
        attribution: `(H, W)`.
        regions: Flat pixel indices of each; they may overlap.
        least_new: Regions with fewer pixels not yet covered are dropped.

    Returns:
        `(H, W)`; pixels no region covered get their own mean, so that the sum stays that of the attribution.
    """
    values = attribution.ravel()
    # Memberships twice: by region, and by pixel to see whose pixels a round takes away.
    counts = np.array([len(region) for region in regions])
    of_region, pixels = np.repeat(np.arange(len(regions)), counts), np.concatenate(regions)
    by_pixel = of_region[np.argsort(pixels, kind="stable")]
    held = np.bincount(pixels, minlength=len(values))
    first = np.cumsum(held) - held
    sums = np.bincount(of_region, weights=values[pixels], minlength=len(regions))
    is_free = np.ones(len(values), dtype=bool)
    densities = np.zeros_like(values)
    while (counts >= least_new).any():
        means = np.where(counts >= least_new, sums / np.maximum(counts, 1), -np.inf)
        best = int(means.argmax())
        new = regions[best][is_free[regions[best]]]
        # From the pixels themselves: running sums gather rounding.
        densities[new] = values[new].mean()
        is_free[new] = False
        many = held[new]
        places = np.arange(many.sum()) + np.repeat(first[new] - (np.cumsum(many) - many), many)
        losers = by_pixel[places]
        counts = counts - np.bincount(losers, minlength=len(regions))
        sums = sums - np.bincount(losers, weights=np.repeat(values[new], many), minlength=len(regions))
    if is_free.any():
        densities[is_free] = values[is_free].mean()
    return densities.reshape(attribution.shape)


@register(
    MethodCard(
        id="xrai",
        title="XRAI",
        family="perturbation",
        idea="Integrated gradients from black and from white say how much each pixel adds. The picture is cut into "
        "regions at six scales, and the region with the densest evidence among its new pixels joins the map, again and "
        "again. Every pixel shows the density of the region it came in with.",
        formula=r"M_{ij} = \frac{1}{|R_k\setminus A_{k-1}|}\sum_{R_k\setminus A_{k-1}} \max_c \mathrm{IG}_c,\quad "
        r"A_k = A_{k-1}\cup R_k",
        citation="Kapishnikov, Bolukbasi, Viégas, Terry: XRAI: Better Attributions Through Regions. ICCV 2019.",
        evidence="as_is",
        scaling="minmax",
        signed=False,
        passes=lambda parameters, size: 4.0 * float(parameters["steps"]),
        parameters=(
            Parameter(
                "steps", 100, "Points on each of the two paths; 100 in the authors' code.", low=1, high=500, step=1
            ),
            Parameter(
                "rule",
                "released",
                "Quadrature; `released` is the code of the paper's authors: equal weights with both ends. "
                "Gauss-Legendre comes closer to the integral.",
                choices=("gauss_legendre", "trapezoid", "released"),
            ),
        ),
        failures="Can only find what the segmentation cuts out: an object of the background's colour is lost.",
    )
)
def xrai(
    classifier: Classifier,
    x: Tensor,
    target: Target,
    *,
    generators: Sequence[torch.Generator],
    work: Work,
    steps: int,
    rule: str,
) -> Attribution:
    """XRAI: `(N, H, W)`, the attribution density of each pixel's region, in the units of the score a pixel."""
    assert isinstance(target, ClassTarget)  # noqa: S101 - the engine resolves targets first
    attribution = torch.zeros_like(x)
    for level in (0, 255):
        blank = classifier.preprocessing.normalise(torch.full_like(x, level, dtype=torch.uint8))
        gradient = straight_gradient(classifier, x, blank, target, rule, steps, work)
        attribution += (x - blank) * gradient / 2
    strongest = attribution.amax(dim=1)
    logits = shared_logits(classifier, x, work)
    if x.is_meta:
        # No pixels to segment: the ranking keeps the shape.
        return Attribution(strongest, logits)
    pictures = on_host(classifier, x, "picture")
    maps = [
        rank_regions(values, grow(remembered(picture, ("xrai",), segment)))
        for values, picture in zip(strongest.double().cpu().numpy(), pictures, strict=True)
    ]
    return Attribution(torch.from_numpy(np.stack(maps)).to(x.device, torch.float32), logits)
