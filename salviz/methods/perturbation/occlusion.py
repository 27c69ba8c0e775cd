"""What the score loses when part of the image is hidden."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from salviz.classifiers.classifier import Classifier
from salviz.methods.card import Attribution, MethodCard, Parameter, register
from salviz.methods.passes import blank_like, shared_logits
from salviz.methods.sampling import alike
from salviz.targets import ClassTarget, Target
from salviz.work import Work


def _windows(size: tuple[int, int], window: int, stride: int) -> list[tuple[slice, slice]]:
    """Windows that together cover the image; those at the far edges are cut off by it."""
    spans = []
    for length in size:
        count = -(-max(length - window, 0) // stride) + 1
        spans.append([slice(i * stride, min(i * stride + window, length)) for i in range(count)])
    return [(rows, columns) for rows in spans[0] for columns in spans[1]]


def _occlusion_passes(parameters: Mapping[str, Any], size: tuple[int, int]) -> float:
    return float(len(_windows(size, int(parameters["window"]), int(parameters["stride"]))))


@register(
    MethodCard(
        id="occlusion",
        title="Occlusion",
        family="perturbation",
        idea="A blank square slides over the image and the loss of score is noted at every place. It needs "
        "no gradient and says what really happens when a region is hidden. The square's size sets what can "
        "be seen.",
        formula=r"M_{ij} = \frac{1}{|W_{ij}|}\sum_{w \ni (i,j)} f_c(x) - f_c(x_{\setminus w})",
        citation="Zeiler, Fergus: Visualizing and Understanding Convolutional Networks. ECCV 2014.",
        evidence="positive",
        scaling="minmax",
        signed=True,
        differentiates=False,
        passes=_occlusion_passes,
        all_classes=True,
        parameters=(
            Parameter("window", 32, "Side of the square, in pixels; the paper gives none.", low=1, high=512, step=1),
            Parameter(
                "stride", 16, "Distance between squares, in pixels; the paper gives none.", low=1, high=512, step=1
            ),
            Parameter(
                "fill",
                "mean",
                "Colour of the square: mean of the training set, close to the paper's grey, or black.",
                choices=("mean", "black"),
            ),
        ),
        failures="A blank square is itself something the model has never seen.",
    )
)
def occlusion(
    classifier: Classifier,
    x: Tensor,
    target: Target,
    *,
    generators: Sequence[torch.Generator],
    work: Work,
    window: int,
    stride: int,
    fill: str,
) -> Attribution:
    """Occlusion: `(N, H, W)`, mean loss of score over the windows that cover a pixel."""
    assert isinstance(target, ClassTarget)  # noqa: S101 - the engine resolves targets first
    blank = blank_like(classifier, x[:1], fill)
    windows = _windows((x.shape[2], x.shape[3]), window, stride)
    lost = torch.zeros(len(x), *x.shape[2:], device=x.device)
    covered = torch.zeros(x.shape[2:], device=x.device)
    images = work.images(x)
    per_pass = work.copies(len(images))
    with torch.no_grad():
        logits = shared_logits(classifier, x, work)
        whole = target.score(logits)
        scores, errors = [whole[None]], [target.rounding(logits)[None]]
        for start in range(0, len(windows), per_pass):
            part = windows[start : start + per_pass]
            batch = images.repeat(len(part), 1, 1, 1).view(len(part), *images.shape)
            for image, (rows, columns) in zip(batch, part, strict=True):
                image[..., rows, columns] = blank[..., rows, columns]
            without, everyone = work.rows(classifier.predict(batch.flatten(0, 1))), target.repeat(len(part))
            scores.append(everyone.score(without).view(len(part), len(x)))
            errors.append(everyone.rounding(without).view(len(part), len(x)))
            for score, (rows, columns) in zip(scores[-1], part, strict=True):
                lost[:, rows, columns] += (whole - score)[:, None, None]
                covered[rows, columns] += 1
            work.tick(len(part) * len(images))
    # A stride wider than the window leaves gaps: nothing was hidden there, so nothing was lost.
    maps = lost / covered.clamp(min=1)
    is_flat = alike(torch.cat(scores).T, torch.cat(errors).T)
    return Attribution(maps.masked_fill(is_flat[:, None, None], 0.0), logits)
