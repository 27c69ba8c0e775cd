"""Gradients collected on the straight way from a blank image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from salviz.classifiers.classifier import Classifier
from salviz.methods.card import Attribution, MethodCard, Parameter, register
from salviz.methods.passes import blank_like, score_gradient, shared_logits
from salviz.targets import ClassTarget, Target
from salviz.work import Work

BASELINE = Parameter(
    "baseline",
    "mean",
    "The blank image: mean colour of the training set, or black.",
    choices=("mean", "black"),
)


def _nodes(rule: str, steps: int) -> tuple[list[float], list[float]]:
    """Points in [0, 1] and their weights for a quadrature rule."""
    if rule == "gauss_legendre":
        points, weights = np.polynomial.legendre.leggauss(steps)
        return list((points + 1) / 2), list(weights / 2)
    points = np.linspace(0.0, 1.0, steps) if steps > 1 else np.array([1.0])
    if rule == "trapezoid" and steps > 1:
        weights = np.full(steps, 1.0 / (steps - 1))
        weights[[0, -1]] /= 2
    else:
        weights = np.full(steps, 1.0 / steps)
    return list(points), list(weights)


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
        passes=lambda parameters, size: 2.0 * float(parameters["steps"]) + 1.0,
        parameters=(
            Parameter("steps", 25, "Points on the path.", low=1, high=500, step=1),
            Parameter(
                "rule",
                "gauss_legendre",
                "Quadrature; `released` is COSE's code: equal weights with both ends.",
                choices=("gauss_legendre", "trapezoid", "released"),
            ),
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
    difference = x - blank
    points, weights = _nodes(rule, steps)
    total = torch.zeros_like(x)
    per_pass = work.copies(len(x))
    for start in range(0, steps, per_pass):
        part = points[start : start + per_pass]
        batch = torch.cat([blank + alpha * difference for alpha in part])
        gradients, _ = score_gradient(classifier, batch, target.repeat(len(part)))
        for gradient, weight in zip(torch.split(gradients, len(x)), weights[start:], strict=False):
            total.add_(gradient, alpha=weight)
        work.tick(2 * len(batch))
    maps = difference * total
    logits = shared_logits(classifier, x, work)
    gained = target.score(logits) - target.score(classifier.predict(blank))
    work.tick(len(x))
    return Attribution(maps, logits, completeness=maps.sum(dim=(1, 2, 3)) - gained)
