"""Gradients whose way back through the rectifiers is changed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from salviz.classifiers.classifier import Classifier
from salviz.methods.card import Attribution, MethodCard, register, two_passes
from salviz.methods.rectifiers import guided_gradient, needs_relu
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
        shares=lambda parameters: "guided backprop",
    )
)
def guided_backprop(
    classifier: Classifier, x: Tensor, target: Target, *, generators: Sequence[torch.Generator], work: Work
) -> Attribution:
    """Guided backpropagation: `(N, 3, H, W)`."""
    return Attribution(*guided_gradient(classifier, x, target, work))
