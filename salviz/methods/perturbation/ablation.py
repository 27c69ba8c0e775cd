"""What the score loses when one superpixel is hidden."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from salviz.classifiers.classifier import Classifier
from salviz.methods.card import Attribution, MethodCard, register
from salviz.methods.passes import shared_logits
from salviz.methods.perturbation.coalitions import hidden
from salviz.methods.sampling import beyond_rounding
from salviz.methods.superpixels import FILL, PIXELS, SEGMENTS, grid_count, segmentation, superpixels
from salviz.targets import ClassTarget, Target
from salviz.work import Work


def _most(parameters: Mapping[str, Any], size: tuple[int, int]) -> int:
    """Superpixels of an image at the most: every one costs a pass."""
    segments = int(parameters["segments"])
    return grid_count(size, segments) if parameters["segmentation"] == "grid" else segments


@register(
    MethodCard(
        id="superpixel_ablation",
        title="Superpixel ablation",
        family="perturbation",
        idea="Each superpixel is hidden alone and the loss of score is noted. It is occlusion with pieces that follow "
        "the picture's own borders. Every pixel shows the loss of its superpixel, not divided by the superpixel's "
        "area.",
        formula=r"M_{ij} = f_c(x) - f_c(x_{\setminus s(i,j)})",
        citation="Zeiler, Fergus, ECCV 2014, on the superpixels of Achanta et al.: SLIC Superpixels. TPAMI 2012.",
        evidence="positive",
        scaling="minmax",
        signed=True,
        differentiates=False,
        passes=lambda parameters, size: float(_most(parameters, size)),
        all_classes=True,
        parameters=(segmentation("slic"), SEGMENTS, PIXELS, FILL),
        failures="What two superpixels both show is missed: hiding one leaves the other.",
    )
)
def superpixel_ablation(
    classifier: Classifier,
    x: Tensor,
    target: Target,
    *,
    generators: Sequence[torch.Generator],
    work: Work,
    segmentation: str,
    segments: int,
    pixels: str,
    fill: str,
) -> Attribution:
    """Superpixel ablation: `(N, H, W)`, the loss of each pixel's superpixel.

    Whatever the algorithm, there are at most `segments` superpixels: the smallest join their neighbours.
    """
    assert isinstance(target, ClassTarget)  # noqa: S101 - the engine resolves targets first
    most = _most({"segments": segments, "segmentation": segmentation}, (int(x.shape[2]), int(x.shape[3])))
    logits = shared_logits(classifier, x, work)
    x = work.images(x)
    found = superpixels(classifier, x, algorithm=segmentation, segments=segments, pixels=pixels, at_most=most)
    blank = hidden(classifier, x, found, fill)
    # Images and superpixels as one list, so that no pass is spent on the padding of images that have fewer.
    image = torch.repeat_interleave(
        torch.arange(len(x), device=x.device),
        torch.tensor(found.counts, device=x.device),
        output_size=sum(found.counts),
    )
    piece = torch.cat([torch.arange(count, device=x.device) for count in found.counts])
    whole = target.score(logits)
    lost = torch.zeros(len(whole), found.largest, device=x.device)
    errors = torch.zeros_like(lost)
    for part in work.chunks(len(image)):
        these, pieces = image[part], piece[part]
        seen = (found.labels[these] != pieces[:, None, None])[:, None]
        logits_without = work.rows(classifier.predict(torch.where(seen, x[these], blank[these])))
        rows, pieces = work.places(these), work.rows(pieces)
        own = target.part(rows)
        lost[rows, pieces] = whole[rows] - own.score(logits_without)
        errors[rows, pieces] = own.rounding(logits_without)
        work.tick(len(these))
    # An image with fewer superpixels than the card allows for is done sooner.
    work.tick(max(0, most * len(x) - len(image)))
    return Attribution(found.spread(beyond_rounding(lost, errors)), logits)
