"""Linear models of the score, fitted on images with some superpixels hidden: LIME and KernelSHAP."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from salviz.classifiers.classifier import Classifier
from salviz.methods.card import Attribution, MethodCard, Parameter, register
from salviz.methods.passes import shared_logits
from salviz.methods.perturbation.coalitions import Fit, explain_coalitions, fit_ridge, fit_shapley, hidden
from salviz.methods.sampling import TOLERANCE
from salviz.methods.superpixels import FILL, PIXELS, SEGMENTS, Superpixels, segmentation, superpixels
from salviz.targets import ClassTarget, Target
from salviz.work import Work


def _padded(parts: Sequence[Tensor], largest: int, x: Tensor) -> Tensor:
    """Coalitions `(S, M_n)` of every image -> `(N, S, M)` bool on x's device."""
    wide = [torch.nn.functional.pad(part, (0, largest - part.shape[1])) for part in parts]
    return torch.stack(wide).to(x.device)


def draw_even(found: Superpixels, samples: int, generators: Sequence[torch.Generator], x: Tensor) -> Tensor:
    """LIME's coalitions: the whole image first, then every superpixel by the toss of a coin.

    Args:
        found: The superpixels.
        samples: S.
        generators: One an image.
        x: Whose device is wanted.

    Returns:
        `(N, S, M)` bool.
    """
    parts = []
    for count, generator in zip(found.counts, generators, strict=True):
        tossed = torch.rand(samples, count, generator=generator, device=generator.device) < 0.5
        tossed[0] = True
        parts.append(tossed)
    return _padded(parts, found.largest, x)


def draw_shapley(found: Superpixels, samples: int, generators: Sequence[torch.Generator], x: Tensor) -> Tensor:
    """KernelSHAP's coalitions: sizes by the Shapley kernel, members at random, each followed by its complement.

    A size k has the kernel's mass over all coalitions of that size, `(M - 1) / (k (M - k))`, as its probability, so
    that coalitions enter the regression with equal weights (Covert & Lee, AISTATS 2021, sec. 3).

    Args:
        found: The superpixels.
        samples: S; the last pair is cut where it is odd.
        generators: One an image.
        x: Whose device is wanted.

    Returns:
        `(N, S, M)` bool.
    """
    parts = []
    for count, generator in zip(found.counts, generators, strict=True):
        drawn = torch.rand(-(-samples // 2), count + 1, generator=generator, device=generator.device)
        sizes = torch.arange(1, max(count, 2), device=drawn.device)
        shares = (1 / (sizes * (count - sizes)).clamp(min=1)).cumsum(0)
        size = 1 + torch.searchsorted(shares / shares[-1], drawn[:, 0].contiguous()).clamp(max=len(sizes) - 1)
        members = drawn[:, 1:].argsort(dim=1).argsort(dim=1) < size[:, None]
        parts.append(torch.stack([members, ~members], dim=1).flatten(0, 1)[:samples])
    return _padded(parts, found.largest, x)


@register(
    MethodCard(
        id="lime",
        title="LIME",
        family="perturbation",
        idea="Superpixels are hidden at random many times and a linear model is fitted to what the score does. "
        "Its coefficients say how much each superpixel adds to the score near this image. Every pixel shows the "
        "coefficient of its superpixel, not divided by the superpixel's area.",
        formula=r"\arg\min_{\beta_0,\beta} \sum_{z} \pi(z)\,\big(f_c(x_z)-\beta_0-\beta^\top z\big)^2"
        r"+\lambda\|\beta\|^2,\quad \pi(z) = e^{-d(z,\mathbf 1)^2/2\sigma^2}",
        citation="Ribeiro, Singh, Guestrin: “Why Should I Trust You?” Explaining the Predictions of Any Classifier. "
        "KDD 2016.",
        evidence="positive",
        scaling="minmax",
        signed=True,
        differentiates=False,
        # The whole image is the first sample, and its score is known.
        passes=lambda parameters, size: float(parameters["samples"]) - 1.0,
        all_classes=True,
        parameters=(
            Parameter(
                "samples",
                1000,
                "Images scored, the untouched one included; 1000 in the authors' code and in COSE.",
                low=2,
                high=20000,
                step=1,
            ),
            segmentation("quickshift"),
            SEGMENTS,
            PIXELS,
            FILL,
            Parameter(
                "width", 0.25, "Width of the kernel, in cosine distance from the whole image.", low=0.01, high=10.0
            ),
            Parameter("ridge", 1.0, "Penalty on the squared coefficients.", low=1e-6, high=1000.0),
            Parameter(
                "top",
                0,
                "Superpixels shown: those with the largest coefficients, by their sign alone, as in COSE (10); 0 shows "
                "the coefficients of all.",
                low=0,
                high=1000,
                step=1,
                unset="all",
            ),
            TOLERANCE,
        ),
        stochastic=True,
        failures="Depends on the superpixels and on chance: run it with two seeds before you believe a detail.",
    )
)
def lime(
    classifier: Classifier,
    x: Tensor,
    target: Target,
    *,
    generators: Sequence[torch.Generator],
    work: Work,
    samples: int,
    segmentation: str,
    segments: int,
    pixels: str,
    fill: str,
    width: float,
    ridge: float,
    top: int,
    tolerance: float,
) -> Attribution:
    """LIME: `(N, H, W)`, the coefficient of each pixel's superpixel, or its sign where `top` is set.

    The standard error is that of the coefficients, also where only their signs are shown.
    """
    assert isinstance(target, ClassTarget)  # noqa: S101 - the engine resolves targets first
    found = superpixels(classifier, x, algorithm=segmentation, segments=segments, pixels=pixels)
    coalitions = draw_even(found, samples, generators, x)
    logits = shared_logits(classifier, x, work)
    whole = target.score(logits)[:, None]

    def solve(rows: slice, drawn: Tensor, scores: Tensor, taken: Tensor, exist: Tensor) -> Fit:
        return fit_ridge(drawn, scores, taken, exist, width=width, penalty=ridge)

    fitted = explain_coalitions(
        classifier, x, hidden(classifier, x, found, fill), found, coalitions, target, solve, work,
        known=whole, ends=whole, tolerance=tolerance,
    )  # fmt: skip
    maps = fitted.maps
    if top:
        values = fitted.values
        largest = values.abs().topk(min(top, found.largest), dim=1).indices
        signs = torch.zeros_like(values).scatter_(1, largest, values.gather(1, largest).sign())
        maps = found.spread(signs.to(x.device, torch.float32))
    return Attribution(maps, logits, standard_error=fitted.error, samples=fitted.samples)


@register(
    MethodCard(
        id="kernel_shap",
        title="KernelSHAP",
        family="perturbation",
        idea="The score is shared out among the superpixels as the Shapley value shares the winnings of a team. "
        "Superpixels are hidden in random coalitions, and a weighted linear fit gives the shares. They add up exactly "
        "to the change of score from the blank image, and every pixel shows its superpixel's share, undivided.",
        formula=r"\arg\min_{\phi} \sum_{z} \frac{M-1}{\binom{M}{|z|}|z|(M-|z|)}"
        r"\Big(f_c(x_z)-f_c(x_0)-\phi^\top z\Big)^2,\quad \sum_i\phi_i = f_c(x)-f_c(x_0)",
        citation="Lundberg, Lee: A Unified Approach to Interpreting Model Predictions. NeurIPS 2017. Pairs and exact "
        "sum: Covert, Lee, AISTATS 2021.",
        evidence="positive",
        scaling="minmax",
        signed=True,
        completeness="the superpixels' values add up to {error} than the change of {score} from the blank image",
        differentiates=False,
        # One more for the blank image.
        passes=lambda parameters, size: float(parameters["samples"]) + 1.0,
        all_classes=True,
        parameters=(
            Parameter(
                "samples",
                1000,
                "Coalitions scored, in pairs of one and its complement, besides all and none. The paper names none; "
                "1000 of 50 superpixels as in its authors' example on ImageNet.",
                low=2,
                high=20000,
                step=2,
            ),
            segmentation("slic"),
            SEGMENTS,
            PIXELS,
            FILL,
            TOLERANCE,
        ),
        stochastic=True,
        failures="Half-hidden pictures are unlike any the model has seen, and all superpixels share what they cause.",
    )
)
def kernel_shap(
    classifier: Classifier,
    x: Tensor,
    target: Target,
    *,
    generators: Sequence[torch.Generator],
    work: Work,
    samples: int,
    segmentation: str,
    segments: int,
    pixels: str,
    fill: str,
    tolerance: float,
) -> Attribution:
    """KernelSHAP: `(N, H, W)`, the Shapley value of each pixel's superpixel.

    The completeness error is that of the sum over superpixels, not over pixels.
    """
    assert isinstance(target, ClassTarget)  # noqa: S101 - the engine resolves targets first
    found = superpixels(classifier, x, algorithm=segmentation, segments=segments, pixels=pixels)
    coalitions = draw_shapley(found, samples, generators, x)
    logits = shared_logits(classifier, x, work)
    blank = hidden(classifier, x, found, fill)
    bare = work.images(blank)
    empty = target.score(work.rows(classifier.predict(bare)))
    work.tick(len(bare))
    gained = target.score(logits) - empty

    def solve(rows: slice, drawn: Tensor, scores: Tensor, taken: Tensor, exist: Tensor) -> Fit:
        return fit_shapley(drawn, scores - empty[rows].to(scores)[:, None], taken, exist, gained=gained[rows])

    fitted = explain_coalitions(
        classifier, x, blank, found, coalitions, target, solve, work, known=gained.new_empty(len(x), 0),
        ends=torch.stack([empty, target.score(logits)], dim=1), tolerance=tolerance,
    )  # fmt: skip
    missing = fitted.values.sum(dim=1).to(x.device, torch.float32) - gained
    return Attribution(fitted.maps, logits, completeness=missing, standard_error=fitted.error, samples=fitted.samples)
