"""RISE: the mean of random masks, each weighted with the score of the image seen through it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from salviz.classifiers.classifier import Classifier
from salviz.methods.card import Attribution, MethodCard, Parameter, register
from salviz.methods.passes import blank_like, shared_logits
from salviz.methods.sampling import CHECK, TOLERANCE, alike, relative_error, sampled, unfinished
from salviz.targets import ClassTarget, Target
from salviz.work import Work


def _ramps(length: int, cells: int, like: Tensor) -> tuple[Tensor, int]:
    """Bilinear upsampling of one axis, as a matrix, and the side of a cell.

    The grid is stretched to one cell more than covers the axis, so that it can be shifted by up to a cell.

    Args:
        length: Pixels of the axis.
        cells: Cells of the grid.
        like: Type and device.

    Returns:
        `((cells + 1) * side, cells)` shares of every cell in every pixel, and `side` = `ceil(length / cells)`.
    """
    side = -(-length // cells)
    identity = torch.eye(cells, device=like.device, dtype=like.dtype)[None]
    ramps = F.interpolate(identity, size=(cells + 1) * side, mode="linear", align_corners=False)
    return ramps[0].T, side


def masks_of(grids: Tensor, shifts: Tensor, size: tuple[int, int]) -> Tensor:
    """Grids as smooth masks (Petsiuk et al., sec. 3.2).

    Args:
        grids: `(B, s, s)` of zeros and ones.
        shifts: `(B, 2)` in [0, 1): down and to the right, as a share of a cell.
        size: `(height, width)` of the masks.

    Returns:
        `(B, height, width)` in [0, 1].
    """
    sides = []
    for axis, length in enumerate(size):
        ramps, side = _ramps(length, grids.shape[1], grids)
        start = (shifts[:, axis] * side).long()
        sides.append(ramps[start[:, None] + torch.arange(length, device=grids.device)])
    return sides[0] @ grids @ sides[1].mT


def _stream(generator: torch.Generator, cells: int, keep: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless grids `(CHECK, s, s)` with their shifts `(CHECK, 2)`, always so many at once, whatever a pass holds."""
    while True:
        drawn = torch.rand(CHECK, cells * cells + 2, generator=generator, device=generator.device)
        yield (drawn[:, 2:] < keep).float().view(CHECK, cells, cells), drawn[:, :2]


class _Moments:
    """First and second moments of score times mask, gathered by matrix products.

    Attributes:
        count: `(N,)` masks so far.
    """

    def __init__(self, x: Tensor, centre: bool) -> None:
        """Start empty.

        Args:
            x: `(N, 3, H, W)`.
            centre: Whether the mean score is taken off; the moments of the masks alone are then needed too.
        """
        places = x.shape[2] * x.shape[3]
        self._centre = centre
        self.count = torch.zeros(len(x), device=x.device)
        self._score = torch.zeros(len(x), device=x.device)
        # The lowest and the highest score, and the most that rounding may come to in one.
        self._ends = torch.tensor([torch.inf, -torch.inf], device=x.device).repeat(len(x), 1)
        self._rounding = torch.zeros(len(x), 1, device=x.device)
        # Of the mask, times the score and, to centre it, once more times one.
        self._first = torch.zeros(len(x), 1 + centre, places, device=x.device)
        # Of its square, times the score's square, the score and one.
        self._second = torch.zeros(len(x), 1 + 2 * centre, places, device=x.device)

    def add(self, scores: Tensor, rounding: Tensor, masks: Tensor, rows: Tensor | slice) -> None:
        """Take more masks.

        Args:
            scores: `(R, B)`.
            rounding: `(R, B)`; see `targets.ClassTarget.rounding`.
            masks: `(R, B, H W)`.
            rows: The images they belong to.
        """
        one = torch.ones_like(scores)
        powers = [scores.square(), scores, one] if self._centre else [scores.square()]
        self._first[rows] += torch.stack([scores, one][: self._first.shape[1]], dim=1) @ masks
        self._second[rows] += torch.stack(powers, dim=1) @ masks.square()
        self._score[rows] += scores.sum(dim=1)
        lowest, highest = self._ends[rows].unbind(dim=1)
        lowest, highest = torch.minimum(lowest, scores.amin(dim=1)), torch.maximum(highest, scores.amax(dim=1))
        self._ends[rows] = torch.stack([lowest, highest], dim=1)
        self._rounding[rows] = torch.maximum(self._rounding[rows], rounding.amax(dim=1, keepdim=True))
        self.count[rows] += scores.shape[1]

    def _mean_score(self) -> Tensor:
        return (self._score / self.count.clamp(min=1))[:, None]

    def is_flat(self) -> Tensor:
        """`(N,)` bool: no mask made a difference, and a single one cannot tell."""
        return alike(self._ends, self._rounding) & (self.count >= 2)

    def _products(self) -> Tensor:
        """`(N, H W)` mean of score times mask, the mean score taken off where that was asked for."""
        total = self._first[:, 0]
        if self._centre:
            total = total - self._mean_score() * self._first[:, 1]
        return total / self.count.clamp(min=1)[:, None]

    def mean(self, keep: float) -> Tensor:
        """`(N, H W)` importance.

        Args:
            keep: Mean of the masks.
        """
        share = self._products() / keep
        share = share + self._mean_score() if self._centre else share
        # How often a place happened to be seen is no importance; what it is in expectation leaves the score alone.
        return torch.where(self.is_flat()[:, None], self._mean_score(), share)

    def error(self) -> Tensor:
        """`(N,)` standard error; see `sampling.Estimate.error`."""
        taken = self.count.clamp(min=1)[:, None]
        squares, mean = self._second[:, 0], self._products()
        if self._centre:
            score = self._mean_score()
            squares = squares - 2 * score * self._second[:, 1] + score.square() * self._second[:, 2]
        # The share of cells kept scales map and noise alike.
        variance = (squares / taken - mean.square()).clamp(min=0) / (taken - 1).clamp(min=1)
        return relative_error(variance.mean(dim=1).sqrt(), mean, self.count)


@register(
    MethodCard(
        id="rise",
        title="RISE",
        family="perturbation",
        idea="The image is looked at through thousands of random masks, and each mask is weighted with the score it "
        "leaves. Pixels that are seen whenever the score is high stand out in the mean. Nothing but the scores "
        "is asked of the model.",
        formula=r"M_{ij} = \frac{1}{n\,p}\sum_{k=1}^{n} f_c(x\odot m_k)\, m_k(i,j)",
        citation="Petsiuk, Das, Saenko: RISE: Randomized Input Sampling for Explanation of Black-box Models. BMVC "
        "2018.",
        evidence="as_is",
        scaling="minmax",
        signed=False,
        differentiates=False,
        passes=lambda parameters, size: float(parameters["samples"]),
        all_classes=True,
        parameters=(
            Parameter(
                "samples",
                4000,
                "Masks; the paper takes 4000 for VGG16 and 8000 for ResNet50, others 1000 to 8000.",
                low=1,
                high=20000,
                step=1,
            ),
            Parameter("cells", 7, "Cells along a side of the grid the masks are made from.", low=1, high=32, step=1),
            Parameter("keep", 0.5, "Share of the cells that are seen.", low=0.05, high=0.95, step=0.05),
            Parameter(
                "fill",
                "mean",
                "What is seen behind the mask: mean colour of the training set, or black.",
                choices=("mean", "black"),
            ),
            Parameter(
                "centre",
                False,
                "Weigh masks by how far the score is above its mean: the same in the limit, with far less noise.",
            ),
            TOLERANCE,
        ),
        stochastic=True,
        failures="Blurred to the size of a cell; noise stays where masks are few, above all around a small object.",
    )
)
def rise(
    classifier: Classifier,
    x: Tensor,
    target: Target,
    *,
    generators: Sequence[torch.Generator],
    work: Work,
    samples: int,
    cells: int,
    keep: float,
    fill: str,
    centre: bool,
    tolerance: float,
) -> Attribution:
    """RISE: `(N, H, W)`, mean of score times mask over the share of cells seen (Petsiuk et al., sec. 3.1).

    The score is a probability or a logit, as the target says; the paper's is a probability. Where scores lie far from
    zero, the map is mostly the mean score times how often a place happened to be seen. With `centre` the mean score is
    multiplied by the share of cells seen instead, which is what that frequency is in expectation. Where no mask makes
    a difference, the mean score is all there is, everywhere.
    """
    assert isinstance(target, ClassTarget)  # noqa: S101 - the engine resolves targets first
    size = (int(x.shape[2]), int(x.shape[3]))
    blank = blank_like(classifier, x[:1], fill)
    visible = work.images(x) - blank
    moments = _Moments(x, centre)
    # The rows of one image are seeded alike.
    streams = [_stream(generator, cells, keep) for generator in generators[:: work.each]]
    active = torch.arange(len(x), device=x.device)
    chosen, done = list(range(len(visible))), 0
    now = sampled(active, len(x), work)
    while done < samples and chosen:
        wanted = min(CHECK, samples - done)
        drawn = [next(streams[image]) for image in chosen]
        # Copies lead, in the order of `target.repeat`.
        grids = torch.stack([grid for grid, _ in drawn], dim=1).to(x.device)
        shifts = torch.stack([shift for _, shift in drawn], dim=1).to(x.device)
        images, rival, copies = visible[now.images], target.part(now.shown), work.copies(len(chosen))
        for start in range(0, wanted, copies):
            part = slice(start, min(start + copies, wanted))
            masks = masks_of(grids[part].flatten(0, 1), shifts[part].flatten(0, 1), size)
            masks = masks.view(-1, len(chosen), *size)
            times = len(masks)
            batch = torch.addcmul(blank, images, masks[:, :, None]).flatten(0, 1)
            logits, everyone = work.rows(classifier.predict(batch, may_halve=True)), rival.repeat(times)
            rounding = everyone.rounding(logits, classifier.autocast or torch.float32)
            scores, errors = (values.view(times, -1).T[now.wanted] for values in (everyone.score(logits), rounding))
            moments.add(scores, errors, work.rows(masks.flatten(2).transpose(0, 1))[now.wanted], now.rows)
            work.tick(times * len(chosen))
        done += wanted
        if tolerance:
            active = unfinished(active, moments.error(), tolerance)
            now = sampled(active, len(x), work)
            chosen = now.images.tolist() if isinstance(now.images, Tensor) else chosen
    maps = moments.mean(keep).view(len(x), *size)
    error = moments.error().masked_fill(moments.is_flat(), 0.0)
    return Attribution(maps, shared_logits(classifier, x, work), standard_error=error, samples=moments.count)
