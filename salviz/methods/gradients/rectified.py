"""Gradients whose way back through the rectifiers is changed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from salviz.classifiers.classifier import Classifier
from salviz.methods.card import Attribution, MethodCard, register, two_passes
from salviz.methods.rectifiers import GUIDED, deconvnet_gradient, guided_gradient, needs_relu, no_relu
from salviz.targets import Target
from salviz.work import Work


@register(
    MethodCard(
        id="guided_backprop",
        title="Guided backprop",
        family="gradients",
        idea="The gradient, with every negative signal stopped at every ReLU on the way back. The map looks "
        "crisp and follows the edges of the object. It hardly depends on the class or on the upper layers.",
        formula=r"R^{l} = \mathbf{1}[x^{l}>0]\,\mathbf{1}[R^{l+1}>0]\,R^{l+1}",
        citation="Springenberg, Dosovitskiy, Brox, Riedmiller: Striving for Simplicity. ICLR workshop 2015.",
        evidence="magnitude",
        scaling="percentile",
        signed=True,
        passes=two_passes,
        explains_predicted=True,
        failures="Fails the parameter randomisation test: the map stays when the head is re-initialised.",
        refusal=needs_relu,
        needs="ReLU or ReLU6",
        shares=lambda parameters: {GUIDED: 2.0},
    )
)
def guided_backprop(
    classifier: Classifier, x: Tensor, target: Target, *, generators: Sequence[torch.Generator], work: Work
) -> Attribution:
    """Guided backpropagation: `(N, 3, H, W)`."""
    return Attribution(*guided_gradient(classifier, x, target, work))


@register(
    MethodCard(
        id="deconvnet",
        title="Deconvnet",
        family="gradients",
        idea="The score is sent back through the net turned upside down, and every ReLU on the way back lets only "
        "positive signals pass. Which units were active in the picture is known to the pooling layers alone. The map "
        "is a sketch of the pattern that the class answers to.",
        formula=r"R^{l} = \mathbf{1}[R^{l+1}>0]\,R^{l+1}",
        citation="Zeiler, Fergus: Visualizing and Understanding Convolutional Networks. ECCV 2014.",
        evidence="magnitude",
        scaling="percentile",
        signed=True,
        passes=two_passes,
        explains_predicted=True,
        failures="In nets without max pooling, which most are today, the map is the same for every picture.",
        refusal=lambda classifier: no_relu(classifier, "The deconvnet"),
        needs="ReLU or ReLU6",
    )
)
def deconvnet(
    classifier: Classifier, x: Tensor, target: Target, *, generators: Sequence[torch.Generator], work: Work
) -> Attribution:
    """Deconvnet: `(N, 3, H, W)`. The cap of a ReLU6 is ignored on the way back, as its zero is."""
    return Attribution(*deconvnet_gradient(classifier, x, target, work))
