"""The region of a given size that keeps the class best, or whose loss hurts it most."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from salviz.classifiers.classifier import Classifier
from salviz.methods.card import Attribution, MethodCard, Parameter, register
from salviz.methods.masks.machinery import BlurPyramid, Momentum, area_loss, descend, precise, upsample
from salviz.methods.passes import shared_logits
from salviz.targets import ClassTarget, Target
from salviz.work import Work

AREAS = (0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
"""Shares of the image whose masks are summed."""
TEMPERATURE = 1 / 20
"""Of the smooth maximum: the maximum itself at 0, the mean at infinity."""
AREA_WEIGHT = 300.0
"""Of the area constraint at the start."""
START = 0.5
"""Value of all cells before the first step."""
FAINT = 0.2
"""The kernel is cut where it falls below this: of such values the smooth maximum leaves less than a hundredth."""


def area_weight(iteration: int, iterations: int) -> float:
    """Weight of the area constraint in an iteration: doubled after each third of the way."""
    return AREA_WEIGHT * float(1 << (3 * iteration // iterations))


def kernel(distance: Tensor, sigma: float) -> Tensor:
    """A bell with a flat top: 1 up to `sigma`, then half a Gaussian of width `sqrt(2) * sigma`."""
    return torch.exp(-(distance / sigma - 1).clamp_min(0).square() / 4)


class SmoothMasks:
    """Masks as the smooth maximum of bells around the cells of a lattice (max-convolution).

    Wherever the cells' values go, the mask cannot be finer than the bell: smoothness is built in and needs no price.
    The maximum is taken at the lattice's points and interpolated linearly between them; the bell is wider than a cell.
    """

    def __init__(self, size: tuple[int, int], stride: int, sigma: float, like: Tensor) -> None:
        """Prepare the kernel.

        Args:
            size: `(height, width)` in pixels.
            stride: Distance of the lattice's points in pixels; rounded so that whole cells fill each side.
            sigma: Radius of the bell's flat top, in pixels.
            like: Says type and device.
        """
        self._size = size
        self.cells = (max(1, round(size[0] / stride)), max(1, round(size[1] / stride)))
        far = sigma * (1 + 2 * math.sqrt(-math.log(FAINT)))
        steps = [length / cells for length, cells in zip(size, self.cells, strict=True)]
        self._reach = tuple(min(int(far / step), cells - 1) for step, cells in zip(steps, self.cells, strict=True))
        down, right = (
            torch.arange(-reach, reach + 1, device=like.device, dtype=like.dtype) * step
            for reach, step in zip(self._reach, steps, strict=True)
        )
        self._kernel = kernel((down[:, None].square() + right.square()).sqrt(), sigma).reshape(1, -1, 1)

    def _around(self, cells: Tensor) -> Tensor:
        """Every cell's neighbours: `(N, h, w)` -> `(N, K, h * w)`.

        Beyond the border lies the mirror image, so that cells at the border are like all others: a flat lattice makes
        a flat mask, and every cell has the same share in its mean. Else the ranking would begin with the corners.
        """
        for axis, reach in zip((1, 2), self._reach, strict=True):
            near, far = cells.narrow(axis, 0, reach), cells.narrow(axis, cells.shape[axis] - reach, reach)
            cells = torch.cat([near.flip(axis), cells, far.flip(axis)], dim=axis)
        return F.unfold(cells.unsqueeze(1), tuple(2 * reach + 1 for reach in self._reach))

    def at_lattice(self, cells: Tensor) -> Tensor:
        """The mask at the lattice's points: `(N, h, w)` in [0, 1] -> `(N, h, w)` in [0, 1]."""
        values = self._around(cells) * self._kernel
        weights = (values / TEMPERATURE).exp()
        return ((weights * values).sum(dim=1) / weights.sum(dim=1)).view_as(cells)

    def at_pixels(self, mask: Tensor) -> Tensor:
        """The lattice's values at all pixels: `(N, h, w)` -> `(N, H, W)`."""
        return upsample(mask, self._size)


def _areas(parameters: Mapping[str, Any]) -> tuple[float, ...]:
    return AREAS if parameters["areas"] == "sum" else (float(parameters["area"]),)


def _passes(parameters: Mapping[str, Any], size: tuple[int, int]) -> float:
    return 2.0 * float(parameters["iterations"]) * len(_areas(parameters))


@register(
    MethodCard(
        id="extremal_perturbation",
        title="Extremal perturbation",
        family="optimised masks",
        idea="Among all smooth masks that leave a given share of the image sharp, the one that keeps the class score "
        "highest is searched for. Size is a constraint and not a price, so there is nothing to balance. Asked for "
        "several sizes, the masks are summed: what is kept at every size matters most.",
        formula=r"M_a = \arg\max_{m\in\mathcal{M}} f_c(m\otimes x) - \lambda\,\lVert\mathrm{vecsort}(m)-r_a\rVert^2",
        citation="Fong, Patrick, Vedaldi: Understanding Deep Networks via Extremal Perturbations and Smooth Masks. "
        "ICCV 2019.",
        evidence="as_is",
        scaling="minmax",
        signed=False,
        passes=_passes,
        parameters=(
            Parameter("area", 0.1, "Share of the image in the mask.", low=0.01, high=0.95, step=0.005),
            Parameter(
                "areas",
                "one",
                "A mask of that area, or the sum of masks of seven areas from 0.025 to 0.8.",
                choices=("one", "sum"),
            ),
            Parameter(
                "variant",
                "preserve",
                "Keep the class with what is in the mask, or delete it by blurring what is in the mask.",
                choices=("preserve", "delete"),
            ),
            Parameter(
                "iterations",
                800,
                "Steps of the optimiser, two passes each; 800 in the paper. On EfficientNet-Lite0 a mask has its area "
                "and its place after about 100.",
                low=1,
                high=3000,
                step=1,
            ),
            Parameter("rate", 0.01, "Learning rate.", low=0.0001, high=1.0, step=0.001),
            Parameter("stride", 7, "Distance between the mask's cells, in pixels.", low=1, high=64, step=1),
            Parameter(
                "smooth",
                7.0,
                "Radius of the flat top of a mask's smallest spot, in pixels; 10.5 with steeper sides in the authors' "
                "code.",
                low=0.5,
                high=100.0,
                step=0.5,
            ),
            Parameter("sigma", 20.0, "Strongest blur of the image, in pixels.", low=0.5, high=200.0, step=0.5),
        ),
        failures="An optimum near the start is found, not the best there is, and spots cannot be finer than the mask "
        "is smooth.",
    )
)
def extremal_perturbation(
    classifier: Classifier,
    x: Tensor,
    target: Target,
    *,
    generators: Sequence[torch.Generator],
    work: Work,
    area: float,
    areas: str,
    variant: str,
    iterations: int,
    rate: float,
    stride: int,
    smooth: float,
    sigma: float,
) -> Attribution:
    """Extremal perturbations: `(N, H, W)` in [0, 1], or in [0, 7] for the sum over areas.

    Every image and area is a row of its own. The mask is 1 in the salient region in both variants.
    """
    assert isinstance(target, ClassTarget)  # noqa: S101 - the engine resolves targets first
    shares = _areas({"area": area, "areas": areas})
    logits = shared_logits(classifier, x, work)
    # Ranks hang on the last digits of the cells: in float32 rounding would decide, and the batch an image is in.
    wanted = torch.tensor(shares, device=x.device, dtype=precise(x)).repeat_interleave(len(x))
    masks = SmoothMasks((x.shape[2], x.shape[3]), stride, smooth, wanted)
    # Rows in the order of `target.repeat`: all images with the first area, then all with the second.
    everyone = target.repeat(len(shares))
    found = []
    for rows in work.chunks(len(wanted)):
        image = torch.arange(rows.start, rows.stop, device=x.device) % len(x)
        found.append(
            _optimise(
                classifier, x[image], everyone.part(rows), wanted[rows], masks, variant, iterations, rate, sigma, work
            )
        )
    maps = torch.cat(found).view(len(shares), len(x), *masks.cells).sum(dim=0)
    return Attribution(masks.at_pixels(maps), logits)


def _optimise(
    classifier: Classifier,
    x: Tensor,
    target: ClassTarget,
    area: Tensor,
    masks: SmoothMasks,
    variant: str,
    iterations: int,
    rate: float,
    sigma: float,
    work: Work,
) -> Tensor:
    """One mask a row, at the lattice's points: `(R, h, w)`."""
    pyramid = BlurPyramid(x, sigma)

    def loss(cells: Tensor, iteration: int) -> Tensor:
        mask = masks.at_lattice(cells)
        pixels = masks.at_pixels(mask.to(x.dtype))
        changed = pyramid.masked_in(pixels) if variant == "preserve" else pyramid.masked_out(pixels)
        score = target.score(classifier.forward(changed)).to(mask.dtype)
        weight = area_weight(iteration, iterations)
        return weight * area_loss(mask, area) + (-score if variant == "preserve" else score)

    start = torch.full((len(x), *masks.cells), START, device=x.device, dtype=area.dtype)
    return masks.at_lattice(descend(start, loss, Momentum(rate), iterations, work)).to(x.dtype)
