"""Gradients of a class score with respect to the input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from salviz.classifiers.classifier import Classifier
from salviz.methods.card import Attribution, MethodCard, register, two_passes
from salviz.methods.passes import GRADIENT, plain_gradient
from salviz.targets import Target
from salviz.work import Work


@register(
    MethodCard(
        id="gradient",
        title="Gradient",
        family="gradients",
        idea="The derivative of the class score with respect to every pixel. A large value means that a "
        "small change of this pixel would move the score most. It is local: it says nothing of large "
        "changes.",
        formula=r"M = \frac{\partial f_c(x)}{\partial x}",
        citation="Simonyan, Vedaldi, Zisserman: Deep Inside Convolutional Networks. ICLR workshop 2014.",
        evidence="magnitude",
        scaling="percentile",
        signed=True,
        passes=two_passes,
        explains_predicted=True,
        shares=lambda parameters: {GRADIENT: 2.0},
        failures="Noisy; in saturated models the gradient vanishes where the evidence is strongest.",
    )
)
def gradient(
    classifier: Classifier, x: Tensor, target: Target, *, generators: Sequence[torch.Generator], work: Work
) -> Attribution:
    """Plain gradient: `(N, 3, H, W)`."""
    maps, logits = plain_gradient(classifier, x, target, work)
    return Attribution(maps, logits)


@register(
    MethodCard(
        id="input_x_gradient",
        title="Input × gradient",
        family="gradients",
        idea="The gradient times the input, pixel by pixel. For a linear model this is each pixel's exact "
        "share of the score. Dark (zero after normalisation) pixels always get zero.",
        formula=r"M = x \odot \frac{\partial f_c(x)}{\partial x}",
        citation="Shrikumar, Greenside, Shcherbina, Kundaje: Not Just a Black Box. arXiv 1605.01713, 2016.",
        evidence="magnitude",
        scaling="percentile",
        signed=True,
        passes=two_passes,
        explains_predicted=True,
        shares=lambda parameters: {GRADIENT: 2.0},
        failures="Shows the picture itself: edges of the input shine through whatever the model does.",
    )
)
def input_x_gradient(
    classifier: Classifier, x: Tensor, target: Target, *, generators: Sequence[torch.Generator], work: Work
) -> Attribution:
    """Input times gradient: `(N, 3, H, W)`."""
    maps, logits = plain_gradient(classifier, x, target, work)
    return Attribution(x * maps, logits)
