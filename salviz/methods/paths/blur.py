"""Gradients collected on the way from the strongly blurred image."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from salviz.classifiers.classifier import Classifier
from salviz.methods.card import Attribution, MethodCard, Parameter, register
from salviz.methods.passes import score_gradient, shared_logits
from salviz.targets import ClassTarget, Target
from salviz.work import Work


@lru_cache(maxsize=512)
def _gaussian_matrix(size: int, sigma: float) -> Tensor:
    """`(size, size)` matrix that blurs a zero-padded signal (scipy's kernel, truncated at 4 sigma)."""
    radius = int(4.0 * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2) if sigma > 1e-15 else (offsets == 0).astype(np.float64)
    kernel /= kernel.sum()
    matrix = np.zeros((size, size))
    for offset, value in zip(offsets, kernel, strict=True):
        if abs(offset) < size:
            matrix += value * np.eye(size, k=int(offset))
    return torch.from_numpy(matrix).float()


def gaussian_blur(x: Tensor, sigma: float) -> Tensor:
    """Blur `(N, C, H, W)` with zeros outside, as scipy's `gaussian_filter(mode="constant")` does.

    Two small matrix products are faster than a convolution with a kernel as wide as the image.
    """
    rows = _gaussian_matrix(x.shape[2], sigma).to(x.device, x.dtype)
    columns = _gaussian_matrix(x.shape[3], sigma).to(x.device, x.dtype)
    return rows @ x @ columns.T


@register(
    MethodCard(
        id="blur_ig",
        title="Blur integrated gradients",
        family="paths",
        idea="Integrated gradients along a path that starts from the strongly blurred image and adds "
        "detail. No colour is special, unlike with a blank baseline. Evidence appears at the scale where "
        "the model starts to use it.",
        formula=r"M = -\int_0^{\sigma_{\max}} \frac{\partial f_c(L_\sigma x)}{\partial L_\sigma x}\odot"
        r"\frac{\partial L_\sigma x}{\partial \sigma}\,d\sigma",
        citation="Xu, Venugopalan, Sundararajan: Attribution in Scale and Space. CVPR 2020.",
        evidence="magnitude",
        scaling="percentile",
        signed=True,
        completeness="the map adds up to {error} than the change of {score} from the most blurred image",
        # One more for the most blurred image.
        passes=lambda parameters, size: 2.0 * float(parameters["steps"]) + 1.0,
        parameters=(
            Parameter(
                "max_sigma",
                50.0,
                "Blur of the path's start, in pixels; 50 in the authors' code.",
                low=1.0,
                high=200.0,
                step=1.0,
            ),
            Parameter("steps", 100, "Points on the path; 100 in the authors' code.", low=2, high=500, step=1),
        ),
        failures="The blurred start is dark at the edges, so borders can light up.",
    )
)
def blur_ig(
    classifier: Classifier,
    x: Tensor,
    target: Target,
    *,
    generators: Sequence[torch.Generator],
    work: Work,
    max_sigma: float,
    steps: int,
) -> Attribution:
    """Blur integrated gradients as in PAIR's `saliency` and COSE's code: `(N, 3, H, W)`; with the completeness error.

    The way ends at the blur of `max_sigma`, at which no gradient is taken: the sum is a left Riemann sum.
    """
    assert isinstance(target, ClassTarget)  # noqa: S101 - the engine resolves targets first
    step, epsilon = max_sigma / steps, 0.01
    total = torch.zeros_like(x)
    per_pass = work.copies(len(x))
    for start in range(0, steps, per_pass):
        sigmas = [i * step for i in range(start, min(start + per_pass, steps))]
        blurred = [gaussian_blur(x, sigma) for sigma in sigmas]
        batch = torch.cat(blurred)
        gradients, _ = score_gradient(classifier, batch, target.repeat(len(sigmas)))
        for sigma, image, gradient in zip(sigmas, blurred, torch.split(gradients, len(x)), strict=True):
            change = (gaussian_blur(x, sigma + epsilon) - image) / epsilon
            total.addcmul_(change, gradient, value=-step)
        work.tick(2 * len(batch))
    logits = shared_logits(classifier, x, work)
    blurred_score = target.score(classifier.predict(gaussian_blur(x, max_sigma)))
    work.tick(len(x))
    gained = target.score(logits) - blurred_score
    return Attribution(total, logits, completeness=total.sum(dim=(1, 2, 3)) - gained)
