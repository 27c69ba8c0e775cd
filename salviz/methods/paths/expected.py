"""Integrated gradients averaged over random pictures: noisy copies of this one, or random baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from salviz.classifiers.classifier import Classifier
from salviz.methods.card import Attribution, MethodCard, Parameter, register
from salviz.methods.passes import (
    NOISE,
    SAMPLES,
    blank_like,
    blank_logits,
    gaussian_noise,
    quadrature,
    score_gradient,
    shared_logits,
)
from salviz.methods.paths.integrated import BASELINE, RULE, STEPS
from salviz.methods.sampling import CHECK, TOLERANCE, Estimate, unfinished
from salviz.targets import ClassTarget, Target
from salviz.work import Work


def _chosen(generators: Sequence[torch.Generator], rows: Tensor, count: int) -> Sequence[torch.Generator]:
    return generators if len(rows) == count else [generators[row] for row in rows.tolist()]


def _smooth_passes(parameters: Mapping[str, Any], size: tuple[int, int]) -> float:
    return float(parameters["samples"]) * (2.0 * float(parameters["steps"]) + 1.0) + 1.0


@register(
    MethodCard(
        id="ig_smoothgrad",
        title="Integrated gradients, smoothed",
        family="paths",
        idea="Integrated gradients of many noisy copies of the image, averaged. What depends on the exact pixels "
        "cancels and what the copies have in common stays. The values add up to the mean change of the copies' scores, "
        "not to that of the picture itself.",
        formula=r"M = \frac{1}{n}\sum_{i=1}^{n} \mathrm{IG}(x+\varepsilon_i),\quad "
        r"\varepsilon_i \sim \mathcal{N}(0, \sigma^2)",
        citation="Smilkov, Thorat, Kim, Viégas, Wattenberg: SmoothGrad. arXiv 1706.03825, 2017; Sundararajan, Taly, "
        "Yan: Axiomatic Attribution for Deep Networks. ICML 2017.",
        evidence="magnitude",
        scaling="percentile",
        signed=True,
        completeness="the map adds up to {error} than the mean change of {score} from the blank image to the noisy "
        "copies",
        passes=_smooth_passes,
        parameters=(
            SAMPLES,
            STEPS,
            NOISE,
            RULE,
            BASELINE,
            TOLERANCE,
        ),
        stochastic=True,
        failures="Slow, and it inherits the baseline's blind colour; noise is multiplied into the map by the "
        "difference from the baseline.",
    )
)
def ig_smoothgrad(
    classifier: Classifier,
    x: Tensor,
    target: Target,
    *,
    generators: Sequence[torch.Generator],
    work: Work,
    samples: int,
    steps: int,
    noise: float,
    rule: str,
    baseline: str,
    tolerance: float,
) -> Attribution:
    """SmoothGrad over integrated gradients, signed: `(N, 3, H, W)`; with completeness and standard error."""
    assert isinstance(target, ClassTarget)  # noqa: S101 - the engine resolves targets first
    blank = blank_like(classifier, x, baseline)
    points, weights = quadrature(rule, steps)
    found, scores = Estimate(x), Estimate(x[:, 0, 0, 0])
    active = torch.arange(len(x), device=x.device)
    done = 0
    while done < samples and len(active):
        wanted = min(CHECK, samples - done)
        start, rival = blank[active], target.part(active)
        streams = _chosen(generators, active, len(x))
        # All copies and points of the round in one row, so that passes are full whatever the numbers are.
        ends = [x[active] + gaussian_noise(x[active], noise, streams) for _ in range(wanted)]
        totals = [torch.zeros_like(end) for end in ends]
        stops = [(copy, point) for copy in range(wanted) for point in range(steps)]
        copies = work.copies(len(active))
        for first in range(0, len(stops), copies):
            part = stops[first : first + copies]
            batch = torch.cat([torch.lerp(start, ends[copy], points[point]) for copy, point in part])
            gradients, _ = score_gradient(classifier, batch, rival.repeat(len(part)))
            for (copy, point), gradient in zip(part, torch.split(gradients, len(active)), strict=True):
                totals[copy].add_(gradient, alpha=weights[point])
            work.tick(2 * len(batch))
        for first in range(0, wanted, copies):
            batch = torch.cat(ends[first : first + copies])
            values = rival.repeat(len(batch) // len(active)).score(classifier.predict(batch))
            for value in torch.split(values, len(active)):
                scores.add(value, active)
            work.tick(len(batch))
        for end, total in zip(ends, totals, strict=True):
            found.add((end - start) * total, active)
        done += wanted
        active = unfinished(active, found.error(), tolerance)
    gained = scores.mean - target.score(blank_logits(classifier, blank, work))
    return Attribution(
        found.mean,
        completeness=found.mean.sum(dim=(1, 2, 3)) - gained,
        standard_error=found.error(),
        samples=found.count,
    )


def random_reference(classifier: Classifier, x: Tensor, kind: str, generators: Sequence[torch.Generator]) -> Tensor:
    """One random picture an image, in model space: the same for an image whatever it comes with.

    Args:
        classifier: Knows the normalisation.
        x: `(N, 3, H, W)`; only its shape matters.
        kind: `colours` for one colour all over, `uniform` for a colour of its own at every pixel. Red, green and blue
            are uniform between black and white.
        generators: One an image.

    Returns:
        `(N, 3, H, W)`.
    """
    shape = x.shape[1:] if kind == "uniform" else (x.shape[1], 1, 1)
    drawn = torch.stack(
        [torch.rand(shape, generator=g, device=g.device, dtype=x.dtype).to(x.device) for g in generators]
    )
    prep = classifier.preprocessing
    mean, std = x.new_tensor(prep.mean).view(1, 3, 1, 1), x.new_tensor(prep.std).view(1, 3, 1, 1)
    return ((drawn - mean) / std).expand(x.shape)


@register(
    MethodCard(
        id="expected_gradients",
        title="Expected gradients",
        family="paths",
        idea="Integrated gradients with a random picture as baseline, averaged over many of them and over the points "
        "of each way. No single colour is blind, as it is with one blank image. On average the values add up to the "
        "score less the mean score of the random pictures.",
        formula=r"M = \mathbb{E}_{x_0 \sim D,\ \alpha \sim \mathcal{U}(0,1)}\Big[(x-x_0)\odot "
        r"\frac{\partial f_c(x_0+\alpha(x-x_0))}{\partial x}\Big]",
        citation="Erion, Janizek, Sturmfels, Lundberg, Lee: Improving Performance of Deep Learning Models with "
        "Axiomatic Attribution Priors and Expected Gradients. Nature Machine Intelligence 2021.",
        evidence="magnitude",
        scaling="percentile",
        signed=True,
        completeness="the map adds up to {error} than the change of {score} from its mean over the random pictures",
        passes=lambda parameters, size: 3.0 * float(parameters["samples"]),
        parameters=(
            Parameter("samples", 200, "Random baselines, each with one point on its way.", low=1, high=2000, step=1),
            Parameter(
                "reference",
                "colours",
                "What the baselines are: images of one random colour each, or of uniform noise. The paper draws "
                "training images, which no classifier brings along.",
                choices=("colours", "uniform"),
            ),
            TOLERANCE,
        ),
        stochastic=True,
        failures="Needs many samples; random colours and noise are no natural images, which the paper's baselines are.",
    )
)
def expected_gradients(
    classifier: Classifier,
    x: Tensor,
    target: Target,
    *,
    generators: Sequence[torch.Generator],
    work: Work,
    samples: int,
    reference: str,
    tolerance: float,
) -> Attribution:
    """Expected gradients (eq. 2): `(N, 3, H, W)`; with completeness and standard error.

    The paper's baselines are training images. A classifier does not come with any here, so they are drawn from
    distributions that need none and say nothing of any class. The completeness error is taken against the very
    baselines that were drawn; it shrinks with the number of samples.
    """
    assert isinstance(target, ClassTarget)  # noqa: S101 - the engine resolves targets first
    found, scores = Estimate(x), Estimate(x[:, 0, 0, 0])
    active = torch.arange(len(x), device=x.device)
    done = 0
    while done < samples and len(active):
        wanted = min(CHECK, samples - done)
        images, rival = x[active], target.part(active)
        streams = _chosen(generators, active, len(x))
        copies = work.copies(len(active))
        for first in range(0, wanted, copies):
            count = min(copies, wanted - first)
            references, ways = [], []
            for _ in range(count):
                references.append(random_reference(classifier, images, reference, streams))
                drawn = [torch.rand(1, generator=g, device=g.device, dtype=x.dtype).to(x.device) for g in streams]
                ways.append(torch.lerp(references[-1], images, torch.stack(drawn).view(-1, 1, 1, 1)))
            repeated = rival.repeat(count)
            gradients, _ = score_gradient(classifier, torch.cat(ways), repeated)
            work.tick(2 * len(gradients))
            values = repeated.score(classifier.predict(torch.cat(references)))
            work.tick(len(values))
            parts = torch.split(gradients, len(active)), torch.split(values, len(active))
            for start, gradient, value in zip(references, *parts, strict=True):
                found.add((images - start) * gradient, active)
                scores.add(value, active)
        done += wanted
        active = unfinished(active, found.error(), tolerance)
    logits = shared_logits(classifier, x, work)
    return Attribution(
        found.mean,
        logits,
        completeness=found.mean.sum(dim=(1, 2, 3)) - (target.score(logits) - scores.mean),
        standard_error=found.error(),
        samples=found.count,
    )
