"""Class activation maps by switching channels off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from typing import Any

import torch
from torch import Tensor

from salviz.classifiers.classifier import Classifier
from salviz.classifiers.layers import TargetLayer, target_layer
from salviz.methods.cam.channels import CHANNELS, strongest, weighted_sum
from salviz.methods.cam.closed import shares_head
from salviz.methods.cam.head import Head
from salviz.methods.cam.pooled import has_pooled_head
from salviz.methods.card import Attribution, MethodCard, one_pass, register
from salviz.methods.passes import LAYER, no_spatial_layer, shared_head
from salviz.methods.sampling import alike
from salviz.targets import ClassTarget, Target
from salviz.work import Work

_VERSIONS = 4
"""Versions of an activation in one run of the head, in multiples of the images in a pass: a head needs less memory."""


def _head_passes(classifier: Classifier, parameters: Mapping[str, Any]) -> float:
    """What running the head a channel comes to, in passes of the whole net, for a stack of transformer blocks.

    There the head is a block or more of a dozen, and it runs once a channel. After a convolutional net's last layer it
    is next to nothing.
    """
    blocks, width = getattr(classifier.module, "blocks", None), getattr(classifier.module, "embed_dim", None)
    if not isinstance(blocks, Sized) or not isinstance(width, int):
        return 0.0
    depth, layer = len(blocks), str(parameters["layer"])
    place = layer.split(".")[1] if layer.startswith("blocks.") else ""
    behind = depth - int(place) if place.isdecimal() else 1
    return min(int(parameters["channels"]) or width, width) * behind / depth


@register(
    MethodCard(
        id="ablation_cam",
        title="Ablation-CAM",
        family="class activation maps",
        idea="Each channel of the last spatial layer is switched off in turn, and what the class score loses is the "
        "channel's weight. No gradient is used. Only the part after the layer runs again, from stored activations.",
        formula=r"M = \mathrm{ReLU}\Big(\sum_k \big(f_c - f_c^{A^k=0}\big) A^k\Big)",
        citation="Desai, Ramaswamy: Ablation-CAM. WACV 2020.",
        evidence="positive",
        scaling="minmax",
        signed=True,
        passes=one_pass,
        more=_head_passes,
        parameters=(LAYER, CHANNELS),
        explains_predicted=True,
        failures="Channels that can stand in for each other all look unimportant, because one is removed at a time.",
        refusal=no_spatial_layer,
        needs="a layer with a spatial map",
        shares=shares_head,
    )
)
def ablation_cam(
    classifier: Classifier,
    x: Tensor,
    target: Target,
    *,
    generators: Sequence[torch.Generator],
    work: Work,
    layer: str,
    channels: int,
) -> Attribution:
    """Ablation-CAM (eq. 4 and 5): `(N, h, w)`, before the final ReLU.

    The paper divides each loss by the score. That is one factor for the whole map, and turns it round where the score
    is negative, so it is left out. Of a transformer's tokens only those of the map lose the channel, not the class
    token. Runs of the head alone are no steps of progress; what they come to is estimated (see `_head_passes`).
    Where the head is an average and a linear layer none is needed: a channel's loss is its average times its weight.
    """
    where = target_layer(classifier, layer or None)
    # Meta tensors have no values to see that from; there the general way is taken.
    if x.device.type != "meta" and target.output == "logit" and has_pooled_head(classifier, layer):
        activation, gradient, logits = shared_head(classifier, x, target, layer, work)
        activation = activation.float()
        losses = (activation * gradient).sum(dim=(2, 3))
        chosen = strongest(activation, channels)
        return Attribution(weighted_sum(activation, losses.gather(1, chosen), chosen), logits)
    head = Head(classifier, where, x)
    work.tick(len(x))
    activation = where.channel_maps(head.activation)
    chosen = strongest(activation.float(), channels)
    losses = _losses(head, where, target.resolve(head.logits), chosen, work)
    passes = 1.0 + _head_passes(classifier, {"layer": layer, "channels": channels})
    return Attribution(weighted_sum(activation.float(), losses, chosen), head.logits, passes=passes)


def _losses(head: Head, where: TargetLayer, target: ClassTarget, chosen: Tensor, work: Work) -> Tensor:
    """What each image's score loses without each of its chosen channels: `(N, k)`; zeros where it is but rounding."""
    whole = target.score(head.logits)
    losses, errors = (torch.zeros(chosen.shape, device=chosen.device) for _ in range(2))
    versions = _VERSIONS * work.batch_size
    for image in range(len(chosen)):
        own = target.part(slice(image, image + 1))
        for start in range(0, chosen.shape[1], versions):
            off = chosen[image, start : start + versions]
            batch = head.activation[image : image + 1].repeat(len(off), *(1,) * (head.activation.ndim - 1))
            where.channel_maps(batch)[torch.arange(len(off), device=off.device), off] = 0
            without, copies = head.run(image, batch), own.repeat(len(off))
            losses[image, start : start + len(off)] = whole[image] - copies.score(without)
            errors[image, start : start + len(off)] = copies.rounding(without)
            # Not counted, but a moment to cancel.
            work.tick(0)
    # With all its channels the score loses nothing.
    is_flat = alike(torch.nn.functional.pad(losses, (0, 1)), errors)
    return losses.masked_fill(is_flat[:, None], 0.0)
