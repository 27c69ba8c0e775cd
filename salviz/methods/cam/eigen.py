"""The strongest pattern in a layer's activations, whatever the class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from salviz.classifiers.classifier import Classifier
from salviz.classifiers.layers import target_layer
from salviz.flatness import is_flat
from salviz.methods.cam.closed import shares_head
from salviz.methods.card import Attribution, MethodCard, Parameter, one_pass, register
from salviz.methods.passes import LAYER, no_spatial_layer, shared_trunk
from salviz.targets import Target
from salviz.work import Work


def first_component(activation: Tensor, *, is_centred: bool) -> Tensor:
    """Projection of each place's channels on their first principal direction.

    The direction comes from the smaller of the two Gram matrices, so that early layers with many places and late ones
    with many channels cost the same little. Its sign is arbitrary; it is chosen so that the map's cubes add up to
    something positive, which says that the few strong places count for, not against. Without centring the map of
    non-negative activations has one sign anyway, and this makes it positive.

    Args:
        activation: `(N, C, h, w)`.
        is_centred: Take the channels' means over places off first.

    Returns:
        `(N, h, w)`.
    """
    table = activation.flatten(2).transpose(1, 2)
    if is_centred:
        # Of an even activation nothing is left but rounding.
        is_even = is_flat(table.amin(dim=1), table.amax(dim=1)).all(dim=1)
        table = (table - table.mean(dim=1, keepdim=True)).masked_fill(is_even[:, None, None], 0.0)
    # The scale is taken out, lest squares of small activations vanish.
    scale = table.abs().amax(dim=(1, 2), keepdim=True)
    unit = table / torch.where(scale > 0, scale, torch.ones_like(scale))
    if unit.shape[1] <= unit.shape[2]:
        values, vectors = torch.linalg.eigh(unit @ unit.transpose(1, 2))
        projection = vectors[:, :, -1] * values[:, -1:].clamp(min=0).sqrt()
    else:
        _, vectors = torch.linalg.eigh(unit.transpose(1, 2) @ unit)
        projection = (unit @ vectors[:, :, -1:]).squeeze(2)
    is_turned = projection.pow(3).sum(dim=1, keepdim=True) < 0
    projection = torch.where(is_turned, -projection, projection) * scale.squeeze(2)
    return projection.view(len(activation), *activation.shape[2:])


@register(
    MethodCard(
        id="eigen_cam",
        title="Eigen-CAM",
        family="class activation maps",
        idea="The one pattern over the places that accounts for most of the layer's activations. It needs neither a "
        "class nor a gradient. It shows what the layer responds to, not why a class was chosen.",
        formula=r"A = U \Sigma V^{\top},\; M = A\, V_{1}",
        citation="Muhammad, Yeasin: Eigen-CAM. IJCNN 2020.",
        evidence="positive",
        scaling="minmax",
        signed=False,
        differentiates=False,
        passes=one_pass,
        parameters=(
            LAYER,
            Parameter(
                "centre",
                False,
                "Whether each channel's mean over the places is taken off first, as pytorch-grad-cam does and the "
                "paper does not.",
            ),
        ),
        explains_predicted=True,
        failures="The same map for every class; on transformers without centring it is nearly flat.",
        refusal=no_spatial_layer,
        needs="a layer with a spatial map",
        has_target=False,
        shares=shares_head,
        all_classes=True,
    )
)
def eigen_cam(
    classifier: Classifier,
    x: Tensor,
    target: Target,
    *,
    generators: Sequence[torch.Generator],
    work: Work,
    layer: str,
    centre: bool,
) -> Attribution:
    """Eigen-CAM (eq. 3): `(N, h, w)`, of either sign only where activations are.

    The paper takes the singular vectors of the activations as they are. Centred, as in pytorch-grad-cam, the map says
    where the layer differs most from its own average, and has both signs.
    """
    trunk = shared_trunk(classifier, x, layer, work)
    activation = target_layer(classifier, layer or None).channel_maps(trunk.leaf.detach())
    maps = first_component(activation.float(), is_centred=centre)
    return Attribution(work.rows(maps), work.rows(trunk.logits.detach()))
