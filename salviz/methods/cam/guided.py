"""Guided backpropagation, kept where Grad-CAM sees evidence."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from salviz.classifiers.classifier import Classifier
from salviz.methods.cam.closed import grad_cam_map, shares_head
from salviz.methods.card import Attribution, MethodCard, register
from salviz.methods.passes import LAYER, no_spatial_layer, shared_head
from salviz.methods.rectifiers import GUIDED, guided_gradient, needs_relu
from salviz.targets import Target
from salviz.work import Work


def _passes(parameters: Mapping[str, Any], size: tuple[int, int]) -> float:
    """A forward for Grad-CAM, a forward and a backward for the guided gradient."""
    return 3.0


def _shares(parameters: Mapping[str, Any]) -> Mapping[Hashable, float]:
    """Both of them whole."""
    return {**shares_head(parameters), GUIDED: 2.0}


def _refusal(classifier: Classifier) -> str | None:
    """Whatever either of the two refuses."""
    return no_spatial_layer(classifier) or needs_relu(classifier)


@register(
    MethodCard(
        id="guided_grad_cam",
        title="Guided Grad-CAM",
        family="class activation maps",
        idea="Guided backprop's fine lines, multiplied by Grad-CAM's coarse map. The lines show the texture, the map "
        "keeps those of the class. What is sharp in it knows little of the model.",
        formula=r"M = \mathrm{Up}\big(\mathrm{ReLU}(M_{\text{Grad-CAM}})\big) \odot M_{\text{guided}}",
        citation="Selvaraju, Cogswell, Das, Vedantam, Parikh, Batra: Grad-CAM. ICCV 2017.",
        evidence="magnitude",
        scaling="percentile",
        signed=True,
        passes=_passes,
        parameters=(LAYER,),
        explains_predicted=True,
        failures="Inherits guided backprop's blindness to the upper layers: details stay when weights are randomised.",
        refusal=_refusal,
        needs="a layer with a spatial map, and ReLU or ReLU6",
        shares=_shares,
    )
)
def guided_grad_cam(
    classifier: Classifier,
    x: Tensor,
    target: Target,
    *,
    generators: Sequence[torch.Generator],
    work: Work,
    layer: str,
) -> Attribution:
    """Guided Grad-CAM (sec. 3.1): `(N, 3, H, W)`; the ReLU belongs to the coarse map, so zero where that is against."""
    activation, gradient, logits = shared_head(classifier, x, target, layer, work)
    coarse = grad_cam_map(activation, gradient).clamp(min=0).unsqueeze(1).float()
    guided, _ = guided_gradient(classifier, x, target, work)
    return Attribution(guided * F.interpolate(coarse, size=x.shape[2:], mode="bilinear", align_corners=False), logits)
