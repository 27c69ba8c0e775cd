"""Gradients collected on the straight way from a blank image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from salviz.classifiers.classifier import Classifier
from salviz.methods.card import Attribution, MethodCard, Parameter, register
from salviz.methods.passes import blank_like, blank_logits, shared_logits, straight_gradient
from salviz.targets import ClassTarget, Target
from salviz.work import Work

STEPS = Parameter(
    "steps",
    25,
    "Points on a path: the paper finds 20 to 300 enough, COSE takes 25, Adebayo et al. take 50.",
    low=1,
    high=500,
    step=1,
)

RULE = Parameter(
    "rule",
    "gauss_legendre",
    "Quadrature: Gauss-Legendre comes closest to the integral with few points; the paper weighs all points alike, and "
    "so does `released`, the code of PAIR and COSE, which takes both ends.",
    choices=("gauss_legendre", "trapezoid", "released"),
)

BASELINE = Parameter(
    "baseline",
    "mean",
    "The blank image: the training set's mean colour, zero for the model as in COSE's code; or black, as the paper of "
    "integrated gradients takes it for pictures.",
    choices=("mean", "black"),
)


@register(
    MethodCard(
        id="integrated_gradients",
        title="Integrated gradients",
        family="paths",
        idea="The gradient is collected on the straight way from a blank image to this one and multiplied "
        "by the difference. The values add up to the change of the score between the two. How far they do "
        "is shown as the completeness error.",
        formula=r"M = (x-x_0)\odot\int_0^1 \frac{\partial f_c(x_0+\alpha(x-x_0))}{\partial x}\,d\alpha",
        citation="Sundararajan, Taly, Yan: Axiomatic Attribution for Deep Networks. ICML 2017.",
        evidence="magnitude",
        scaling="percentile",
        signed=True,
        completeness="the map adds up to {error} than the change of {score} from the blank image",
        passes=lambda parameters, size: 2.0 * float(parameters["steps"]) + 1.0,
        parameters=(
            STEPS,
            RULE,
            BASELINE,
        ),
        failures="Depends on the baseline: pixels of the baseline's colour get nothing.",
    )
)
def integrated_gradients(
    classifier: Classifier,
    x: Tensor,
    target: Target,
    *,
    generators: Sequence[torch.Generator],
    work: Work,
    steps: int,
    rule: str,
    baseline: str,
) -> Attribution:
    """Integrated gradients: `(N, 3, H, W)`; with the completeness error."""
    assert isinstance(target, ClassTarget)  # noqa: S101 - the engine resolves targets first
    blank = blank_like(classifier, x, baseline)
    maps = (x - blank) * straight_gradient(classifier, x, blank, target, rule, steps, work)
    logits = shared_logits(classifier, x, work)
    gained = target.score(logits) - target.score(blank_logits(classifier, blank, work))
    return Attribution(maps, logits, completeness=maps.sum(dim=(1, 2, 3)) - gained)
