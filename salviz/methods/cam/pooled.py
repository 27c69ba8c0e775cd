"""The original class activation map, for nets that end in a global average and one linear layer."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from salviz.classifiers.classifier import Classifier
from salviz.classifiers.layers import TargetLayer, target_layer
from salviz.errors import MethodError
from salviz.methods.cam.closed import shares_head
from salviz.methods.card import Attribution, MethodCard, one_pass, register
from salviz.methods.passes import LAYER, no_spatial_layer, shared_head
from salviz.targets import Target
from salviz.work import Work

_TOLERANCE = 1e-3
"""Largest difference of gradients that should be equal, as a share of the largest: well above rounding."""

_linear: weakref.WeakKeyDictionary[nn.Module, dict[str, bool]] = weakref.WeakKeyDictionary()


def has_pooled_head(classifier: Classifier, layer: str = "") -> bool:
    """Whether the logits are a linear function of the layer's averages over places.

    Seen by trying: the head gets two random activations of different size and both signs. Only for such a head the
    gradient at the layer is the same in all places and for both. On the meta device nothing can be seen; there the
    answer is yes.

    Args:
        classifier: The model; its lock is held by the caller.
        layer: Dotted name, or empty for the rule's.

    Raises:
        MethodError: No layer with a spatial map, or the named one has none.
    """
    if classifier.device.type == "meta":
        return True
    where = target_layer(classifier, layer or None)
    known = _linear.setdefault(classifier.module, {})
    if where.name not in known:
        gradients = [_random_gradient(classifier, where, seed, spread) for seed, spread in ((0, 1.0), (1, 10.0))]
        scale = gradients[0].abs().amax()
        differences = [gradients[1] - gradients[0], gradients[0] - gradients[0].mean(dim=(2, 3), keepdim=True)]
        far = max(float(difference.abs().amax()) for difference in differences)
        known[where.name] = float(scale) > 0 and far <= _TOLERANCE * float(scale)
    return known[where.name]


def _random_gradient(classifier: Classifier, where: TargetLayer, seed: int, spread: float) -> Tensor:
    """Gradient `(1, C, h, w)` of a fixed mixture of all logits at a random activation."""
    leaves: list[Tensor] = []

    def hook(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        drawn = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed)) * spread
        leaves.append(drawn.to(output).requires_grad_(True))
        return leaves[-1].clone()

    module = classifier.module if where.is_published else classifier.runtime
    handle = module.get_submodule(where.name).register_forward_hook(hook)
    blank = torch.zeros(1, 3, *classifier.preprocessing.input_size, device=classifier.device)
    try:
        with torch.enable_grad():
            logits = classifier.forward(blank, is_published=where.is_published)
            mixture = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2)).to(logits)
            (gradient,) = torch.autograd.grad((logits * mixture).sum(), leaves[-1])
    finally:
        handle.remove()
    return where.channel_maps(gradient)


def needs_pooled_head(classifier: Classifier) -> str | None:
    """Why the original class activation map does not exist for a classifier, or None."""
    missing = no_spatial_layer(classifier)
    if missing is not None:
        return missing
    with classifier.lock, torch.inference_mode(mode=False):
        if has_pooled_head(classifier):
            return None
    return (
        "CAM is defined for nets that end in a global average and one linear layer only, and "
        f"{classifier.title} ends otherwise. Choose Grad-CAM or HiResCAM instead."
    )


@register(
    MethodCard(
        id="cam",
        title="CAM",
        family="class activation maps",
        idea="The last layer's channels, each weighted by the linear layer's weight for the class. Their average over "
        "places is the class score itself but for the bias, so every cell's share is exact. Only nets that end in a "
        "global average and one linear layer have it.",
        formula=r"M = \sum_k w^c_k A^k,\; f_c = b_c + \frac{1}{Z}\sum_{ij} M_{ij}",
        citation="Zhou, Khosla, Lapedriza, Oliva, Torralba: Learning Deep Features for Discriminative Localization. "
        "CVPR 2016.",
        evidence="positive",
        scaling="minmax",
        signed=True,
        differentiates=False,
        passes=one_pass,
        parameters=(LAYER,),
        explains_predicted=True,
        failures="Exact about the last layer's cells, but each cell has seen most of the picture.",
        refusal=needs_pooled_head,
        needs="a global average and one linear layer at the end",
        shares=shares_head,
        all_classes=True,
    )
)
def cam(
    classifier: Classifier,
    x: Tensor,
    target: Target,
    *,
    generators: Sequence[torch.Generator],
    work: Work,
    layer: str,
) -> Attribution:
    """CAM (eq. 2): `(N, h, w)`, whose mean over places is the logit less its bias.

    The linear layer's row is read off the head's gradient, which for such a head is the row divided by the number of
    places. So it is right for a contrast too (the difference of the two rows); for a probability it is the row of the
    probability's own linear approximation.

    Raises:
        MethodError: The named layer is not followed by a global average and one linear layer.
    """
    if layer and not has_pooled_head(classifier, layer):
        raise MethodError(
            f"After the layer {layer!r} of {classifier.title} comes more than a global average and one linear layer, "
            "so CAM is not defined there. Leave the layer empty, or choose Grad-CAM."
        )
    activation, gradient, logits = shared_head(classifier, x, target, layer, work)
    row = gradient.sum(dim=(2, 3))
    return Attribution(torch.einsum("nchw,nc->nhw", activation, row).float(), logits)
