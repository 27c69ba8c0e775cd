"""The smallest smooth blot that makes the class disappear."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from salviz.classifiers.classifier import Classifier
from salviz.methods.card import Attribution, MethodCard, Parameter, register
from salviz.methods.masks.machinery import Adam, BlurPyramid, descend, total_variation, upsample, upsampling
from salviz.methods.passes import shared_logits
from salviz.targets import ClassTarget, Target
from salviz.work import Work

SUPPRESSION = 0.99
"""Share of what a full blur takes from the score that the starting circle has to take."""


def _radii(grid: int) -> int:
    """Circles tried, one cell of radius apart; the last covers the corners."""
    return math.ceil(grid / math.sqrt(2))


def _circles(grid: int, like: Tensor) -> Tensor:
    """`(R, grid, grid)` centred discs of 1 to R cells of radius."""
    centred = torch.arange(grid, device=like.device, dtype=like.dtype) + 0.5 - grid / 2
    distance = (centred[:, None].square() + centred.square()).sqrt()
    radii = torch.arange(1, _radii(grid) + 1, device=like.device, dtype=like.dtype)
    return (distance <= radii[:, None, None]).to(like.dtype)


def _passes(parameters: Mapping[str, Any], size: tuple[int, int]) -> float:
    start = _radii(int(parameters["grid"])) if parameters["start"] == "circle" else 0
    return 2.0 * float(parameters["iterations"]) + start


def _smallest_circle(
    classifier: Classifier, x: Tensor, target: ClassTarget, pyramid: BlurPyramid, smooth: float, grid: int, work: Work
) -> Tensor:
    """The smallest centred disc that takes nearly all of the score that a full blur takes: `(N, grid, grid)`."""
    circles = _circles(grid, x)
    masks = upsample(circles, (x.shape[2], x.shape[3]), smooth)
    per_pass = work.copies(len(x))
    scores = []
    with torch.no_grad():
        whole = target.score(shared_logits(classifier, x, work))
        for part in torch.split(masks, per_pass):
            batch = torch.cat([pyramid.masked_out(mask.expand(len(x), -1, -1)) for mask in part])
            scores.append(target.repeat(len(part)).score(classifier.predict(batch)).view(len(part), len(x)))
            work.tick(len(batch))
        lost = whole - torch.cat(scores)
        # The first that is enough; the largest always is, whatever rounding makes of it.
        enough = lost >= SUPPRESSION * lost[-1]
        enough[-1] = True
        return circles[enough.to(torch.uint8).argmax(dim=0)]


@register(
    MethodCard(
        id="meaningful_perturbation",
        title="Meaningful perturbation",
        family="optimised masks",
        idea="A coarse mask is optimised for this one image so that blurring what it marks makes the class score "
        "collapse. Large and ragged masks cost something, so the smallest smooth region wins. Small random shifts keep "
        "it from exploiting single pixels.",
        formula=r"M = \arg\min_{m\in[0,1]} \lambda_1\lVert m\rVert_1 "
        r"+ \lambda_2\sum_u\lVert\nabla m(u)\rVert_\beta^\beta + \mathbb{E}_\tau\, f_c(\Phi(x, m_\tau))",
        citation="Fong, Vedaldi: Interpretable Explanations of Black Boxes by Meaningful Perturbation. ICCV 2017.",
        evidence="as_is",
        scaling="minmax",
        signed=False,
        passes=_passes,
        parameters=(
            Parameter("iterations", 300, "Steps of the optimiser, two passes each.", low=1, high=2000, step=1),
            Parameter("rate", 0.1, "Learning rate of Adam.", low=0.001, high=1.0, step=0.001),
            Parameter("size_weight", 1e-4, "Price of every cell that is hidden.", low=0.0, high=1.0, step=1e-4),
            Parameter("tv_weight", 1e-2, "Price of the mask's slopes.", low=0.0, high=10.0, step=0.01),
            Parameter(
                "tv_power", 3.0, "Power of the slopes: large ones prefer soft edges.", low=1.0, high=6.0, step=0.5
            ),
            Parameter("grid", 28, "Cells of the mask along each side.", low=2, high=112, step=1),
            Parameter("smooth", 5.0, "Blur of the enlarged mask, in pixels.", low=0.0, high=64.0, step=0.5),
            Parameter("sigma", 10.0, "Strongest blur of the image, in pixels.", low=0.5, high=200.0, step=0.5),
            Parameter("jitter", 4, "Width of the mask's random shifts, in pixels; 1 is none.", low=1, high=32, step=1),
            Parameter(
                "start",
                "circle",
                "Where the search begins: the smallest centred circle that hides the class, or all hidden.",
                choices=("circle", "all"),
            ),
            Parameter(
                "output",
                "probability",
                "What the mask lowers: the probability, for which the prices are made, or the score of the target.",
                choices=("probability", "target"),
            ),
        ),
        failures="Another start or other prices give another mask, and a class that survives a full blur gives none.",
    )
)
def meaningful_perturbation(
    classifier: Classifier,
    x: Tensor,
    target: Target,
    *,
    generators: Sequence[torch.Generator],
    work: Work,
    iterations: int,
    rate: float,
    size_weight: float,
    tv_weight: float,
    tv_power: float,
    grid: int,
    smooth: float,
    sigma: float,
    jitter: int,
    start: str,
    output: str,
) -> Attribution:
    """Meaningful perturbation, deletion game (eq. 4): `(N, H, W)` in [0, 1], 1 where the image has to be hidden.

    The paper's mask is 1 where the image stays; this one is its complement. The image stays in place and the mask is
    shifted, by up to `jitter` pixels around its place, so that the map is not moved.
    """
    assert isinstance(target, ClassTarget)  # noqa: S101 - the engine resolves targets first
    if output == "probability":
        target = replace(target, output="probability")
    height, width = x.shape[2], x.shape[3]
    shifts = [float(i) - (jitter - 1) / 2 for i in range(jitter)]
    rows = torch.stack([upsampling(grid, height, smooth, shift) for shift in shifts]).to(x)
    columns = torch.stack([upsampling(grid, width, smooth, shift) for shift in shifts]).to(x)
    drawn = [torch.randint(jitter, (iterations, 2), generator=g, device=g.device).to(x.device) for g in generators]
    moves = torch.stack(drawn, dim=2)  # (iterations, 2, N)
    logits = shared_logits(classifier, x, work)
    pyramid = BlurPyramid(x, sigma)
    is_felt = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    if start == "circle":
        mask = _smallest_circle(classifier, x, target, pyramid, smooth, grid, work)
    else:
        mask = torch.ones(len(x), grid, grid, device=x.device, dtype=x.dtype)

    def feel(gradient: Tensor) -> None:
        is_felt.logical_or_(gradient.flatten(1).count_nonzero(dim=1) > 0)

    def loss(cells: Tensor, iteration: int) -> Tensor:
        down, right = moves[iteration]
        hidden = rows[down] @ cells @ columns[right].transpose(1, 2)
        hidden.register_hook(feel)  # type: ignore[no-untyped-call]
        score = target.score(classifier.forward(pyramid.masked_out(hidden)))
        return size_weight * cells.sum(dim=(1, 2)) + tv_weight * total_variation(cells, tv_power) + score

    mask = descend(mask, loss, Adam(rate), iterations, work)
    # Where the score never had a gradient at the mask nothing is worth its price, however far the descent has come.
    mask = mask.masked_fill(~is_felt[:, None, None], 0.0)
    return Attribution(upsample(mask, (height, width), smooth), logits)
