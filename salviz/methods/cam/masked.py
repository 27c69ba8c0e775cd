"""Class activation maps found by running the model on the image seen through its own channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from salviz.classifiers.classifier import Classifier
from salviz.classifiers.layers import target_layer
from salviz.methods.cam.channels import CHANNELS, TYPICAL_CHANNELS, strongest, weighted_sum
from salviz.methods.cam.closed import RECTIFIED, shares_head
from salviz.methods.card import Attribution, MethodCard, Parameter, register
from salviz.methods.passes import LAYER, no_spatial_layer, shared_trunk
from salviz.methods.sampling import alike
from salviz.targets import ClassTarget, Target
from salviz.work import Work


def as_mask(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps brought to the image's size and to [0, 1], each by its own extremes: `(R, h, w)` -> `(R, 1, H, W)`.

    A flat map becomes zero.
    """
    grown = F.interpolate(maps.unsqueeze(1), size=size, mode="bilinear", align_corners=False)
    # Over one flat dimension extremes are found several times faster than over two.
    low, high = grown.flatten(1).amin(dim=1), grown.flatten(1).amax(dim=1)
    span = torch.where(high > low, high - low, torch.ones_like(high))
    return (grown - low.view(-1, 1, 1, 1)) / span.view(-1, 1, 1, 1)


def _score_cam_passes(parameters: Mapping[str, Any], size: tuple[int, int]) -> float:
    return 1.0 + (float(parameters["channels"]) or TYPICAL_CHANNELS)


@register(
    MethodCard(
        id="score_cam",
        title="Score-CAM",
        family="class activation maps",
        idea="The image is shown through every channel of the last spatial layer in turn, and the class score of each "
        "view decides the channel's weight. No gradient is used. It costs one pass a channel.",
        formula=r"M = \sum_k w_k A^k,\; w = \mathrm{softmax}_k\, f_c\big(x \odot s(\mathrm{Up}(A^k))\big)" + RECTIFIED,
        citation="Wang, Wang, Du, Yang, Zhang, Ding, Mardziel, Hu: Score-CAM. CVPR workshops 2020.",
        evidence="positive",
        scaling="minmax",
        signed=False,
        differentiates=False,
        passes=_score_cam_passes,
        all_classes=True,
        parameters=(LAYER, CHANNELS),
        explains_predicted=True,
        failures="A soft mask darkens as well as hides; where scores are close all channels weigh nearly the same.",
        refusal=no_spatial_layer,
        needs="a layer with a spatial map",
        shares=shares_head,
    )
)
def score_cam(
    classifier: Classifier,
    x: Tensor,
    target: Target,
    *,
    generators: Sequence[torch.Generator],
    work: Work,
    layer: str,
    channels: int,
) -> Attribution:
    """Score-CAM (algorithm 1): `(N, h, w)`, before the final ReLU.

    A channel multiplies the normalised input, so what it hides becomes the training set's mean colour. The baseline's
    score, which the paper takes off every channel's, cancels in the softmax. Channels without any contrast all hide
    everything: they are run once, not one by one, and count as run. Where no view scores otherwise than the image and
    nothing at all do, the weights say nothing of the class and the map is zero.
    """
    where = target_layer(classifier, layer or None)
    trunk = shared_trunk(classifier, x, layer, work)
    activation, logits = where.channel_maps(trunk.leaf.detach()).float(), work.rows(trunk.logits.detach())
    resolved = target.resolve(logits)
    chosen = strongest(activation, channels)
    count = chosen.shape[1]
    shown, positions = _with_contrast(activation, chosen)
    images = work.images(x)
    # Whatever is not run below is a view of nothing.
    nothing = classifier.predict(torch.zeros_like(x[:1]), may_halve=True).expand(len(x), -1)
    precision = classifier.autocast or torch.float32
    blank, rounding = resolved.score(nothing), resolved.rounding(nothing, precision)
    scores, errors = (values.unsqueeze(1).repeat(1, count) for values in (blank, rounding))
    for part in work.chunks(len(shown)):
        these, places = shown[part], positions[part]
        views = images[these].mul_(as_mask(activation[these, chosen[these, places]], (x.shape[2], x.shape[3])))
        seen = work.rows(classifier.predict(views, may_halve=True))
        rows, places = work.places(these), work.rows(places)
        own = resolved.part(rows)
        scores[rows, places], errors[rows, places] = own.score(seen), own.rounding(seen, precision)
        work.tick(len(these))
    work.tick(count * len(images) - len(shown))
    is_flat = alike(torch.cat([scores, blank[:, None], resolved.score(logits)[:, None]], dim=1), errors)
    weights = scores.softmax(dim=1).masked_fill(is_flat[:, None], 0.0)
    return Attribution(weighted_sum(work.rows(activation), weights, work.rows(chosen)), logits)


def _with_contrast(activation: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Image and position in `chosen` `(N, k)` of every channel that is not flat: `(R,)` twice, image by image."""
    picked = torch.take_along_dim(activation.flatten(2), chosen.unsqueeze(2), dim=1)
    is_shown = picked.amax(dim=2) > picked.amin(dim=2)
    if is_shown.is_meta:
        # How many there are depends on values, which meta tensors do not have.
        is_shown = torch.ones(is_shown.shape, dtype=torch.bool)
    images, positions = is_shown.nonzero(as_tuple=True)
    return images.to(activation.device), positions.to(activation.device)


def _opti_cam_passes(parameters: Mapping[str, Any], size: tuple[int, int]) -> float:
    return 1.0 + 2.0 * int(parameters["steps"])


@register(
    MethodCard(
        id="opti_cam",
        title="Opti-CAM",
        family="class activation maps",
        idea="The channels' weights are improved step by step, until the image seen through the weighted map scores "
        "as high as it can. Weights are positive and add up to one. Every image has its own.",
        formula=r"M = \sum_k \mathrm{softmax}(u)_k A^k,\; u = \arg\max_u f_c\big(x \odot s(\mathrm{Up}(M))\big)",
        citation="Zhang, Torres, Sicre, Avrithis, Ayache: Opti-CAM. Computer Vision and Image Understanding 2024.",
        evidence="positive",
        scaling="minmax",
        signed=False,
        passes=_opti_cam_passes,
        parameters=(
            LAYER,
            Parameter("steps", 100, "Steps of the optimiser (Adam).", low=1, high=500, step=1),
            Parameter("rate", 0.1, "Learning rate.", low=0.001, high=1.0, step=0.01),
        ),
        explains_predicted=True,
        failures="Shows what suffices for the score: maps are wide and keep context that helps the class.",
        refusal=no_spatial_layer,
        needs="a layer with a spatial map",
        shares=shares_head,
    )
)
def opti_cam(
    classifier: Classifier,
    x: Tensor,
    target: Target,
    *,
    generators: Sequence[torch.Generator],
    work: Work,
    layer: str,
    steps: int,
    rate: float,
) -> Attribution:
    """Opti-CAM (eq. 10 to 12): `(N, h, w)`, never negative.

    As in the authors' code activations go through a ReLU and all channels begin alike. That code stops a whole batch
    at once; here every image gets all steps. An image whose score never had a gradient keeps the weights all begin
    with, which say nothing of it: its map is zero.
    """
    where = target_layer(classifier, layer or None)
    trunk = shared_trunk(classifier, x, layer, work)
    activation = work.rows(where.channel_maps(trunk.leaf.detach()).float().clamp(min=0))
    logits = work.rows(trunk.logits.detach())
    resolved: ClassTarget = target.resolve(logits)
    is_flat = activation.amax(dim=(2, 3)) == activation.amin(dim=(2, 3))

    def mixed(weights: Tensor) -> Tensor:
        # A flat channel changes neither the scaled map nor the score. Its gradient is nothing but rounding, of which
        # Adam would make whole steps.
        shares = weights.masked_fill(is_flat, -torch.inf).softmax(dim=1).nan_to_num()
        return torch.einsum("nchw,nc->nhw", activation, shares)

    with torch.enable_grad():
        weights = torch.zeros(activation.shape[:2], device=x.device).requires_grad_(True)
        optimiser = torch.optim.Adam([weights], lr=rate, maximize=True)
        is_moved = torch.zeros(len(x), 1, dtype=torch.bool, device=x.device)
        for _ in range(steps):
            maps = mixed(weights)
            views = as_mask(maps, (x.shape[2], x.shape[3])) * x
            score = resolved.score(classifier.forward(views))
            (weights.grad,) = torch.autograd.grad(score.sum(), weights)
            is_moved |= weights.grad.count_nonzero(dim=1).gt(0)[:, None]
            optimiser.step()
            work.tick(2 * len(x))
    return Attribution(mixed(weights.detach()).masked_fill(~is_moved[..., None], 0.0), logits)
