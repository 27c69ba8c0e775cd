"""Gradients of many noisy copies of the image: their mean, mean square and variance."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from salviz.classifiers.classifier import Classifier
from salviz.methods.card import Attribution, MethodCard, register
from salviz.methods.passes import NOISE, SAMPLES, gaussian_noise, score_gradient
from salviz.methods.sampling import CHECK, TOLERANCE, Estimate, VarianceEstimate, unfinished
from salviz.targets import ClassTarget, Target
from salviz.work import Work

_STREAM = "smoothgrad"
"""The three draw the same noise, so that explaining with all of them costs one."""
_VARIANCE = "error of the variance"
"""What is wanted beside the samples where VarGrad is among the methods of a set."""

_PARAMETERS = (
    SAMPLES,
    NOISE,
    TOLERANCE,
)
_SMILKOV = "Smilkov, Thorat, Kim, Viégas, Wattenberg: SmoothGrad. arXiv 1706.03825, 2017."


_Watched = Literal["value", "square", "variance"]


@dataclass(frozen=True)
class NoisyGradients:
    """Moments of the gradients of noisy copies.

    Attributes:
        value: Of the gradient itself, `(N, 3, H, W)`; a `VarianceEstimate` where that was wanted.
        square: Of its square.
    """

    value: Estimate
    square: Estimate

    def error(self, watched: _Watched) -> Tensor:
        """`(N,)` standard error of a moment."""
        if watched == "variance":
            assert isinstance(self.value, VarianceEstimate)  # noqa: S101 - it was wanted
            return self.value.variance_error()
        return (self.value if watched == "value" else self.square).error()


def sample_gradients(
    classifier: Classifier,
    x: Tensor,
    target: ClassTarget,
    draw: Callable[[Tensor], Tensor],
    *,
    samples: int,
    work: Work,
    tolerance: float = 0.0,
    watched: _Watched = "value",
    is_variance_sure: bool = False,
) -> NoisyGradients:
    """Gradients of noisy copies, until there are enough.

    Args:
        classifier: The model.
        x: `(N, 3, H, W)`.
        target: Resolved target.
        draw: Noise for one more copy of some images: `(R,)` indices -> `(R, 3, H, W)`.
        samples: Copies of every image at the most.
        work: Budget and progress.
        tolerance: Images whose `watched` moment is surer than this need no more copies.
        watched: Which moment.
        is_variance_sure: Whether the variance's error is wanted, which takes more moments.
    """
    found = NoisyGradients(VarianceEstimate(x) if is_variance_sure else Estimate(x), Estimate(x))
    active = torch.arange(len(x), device=x.device)
    done = 0
    while done < samples and len(active):
        wanted = min(CHECK, samples - done)
        copies = work.copies(len(active))
        images, rival = x[active], target.part(active)
        for start in range(0, wanted, copies):
            count = min(copies, wanted - start)
            batch = torch.cat([images + draw(active) for _ in range(count)])
            gradients, _ = score_gradient(classifier, batch, rival.repeat(count))
            # Sample by sample, in order, so that the mean does not depend on how many fit in a pass.
            for gradient in torch.split(gradients, len(active)):
                found.value.add(gradient, active)
                found.square.add(gradient.square(), active)
            work.tick(2 * len(batch))
        done += wanted
        active = unfinished(active, found.error(watched), tolerance) if tolerance else active
    return found


def _noisy_gradients(
    watched: _Watched,
    classifier: Classifier,
    x: Tensor,
    target: Target,
    generators: Sequence[torch.Generator],
    work: Work,
    samples: int,
    noise: float,
    tolerance: float,
) -> NoisyGradients:
    assert isinstance(target, ClassTarget)  # noqa: S101 - the engine resolves targets first

    def draw(rows: Tensor) -> Tensor:
        chosen = generators if len(rows) == len(x) else [generators[row] for row in rows.tolist()]
        return gaussian_noise(x[rows], noise, chosen)

    def compute() -> NoisyGradients:
        return sample_gradients(
            classifier, x, target, draw, samples=samples, work=work, tolerance=tolerance, watched=watched,
            is_variance_sure=watched == "variance" or (not tolerance and _VARIANCE in work.wanted),
        )  # fmt: skip

    # With a tolerance each moment decides for itself when it is sure enough.
    return work.once((_STREAM, samples, noise, (watched, tolerance) if tolerance else None), compute)


def _passes(parameters: Mapping[str, Any], size: tuple[int, int]) -> float:
    return 2.0 * float(parameters["samples"])


def _shares(parameters: Mapping[str, Any]) -> Mapping[Hashable, float]:
    if parameters["tolerance"]:
        return {}
    return {(_STREAM, parameters["samples"], parameters["noise"]): 2.0 * float(parameters["samples"])}


def _shares_variance(parameters: Mapping[str, Any]) -> Mapping[Hashable, float]:
    return {**_shares(parameters), _VARIANCE: 0.0}


@register(
    MethodCard(
        id="smoothgrad",
        title="SmoothGrad",
        family="gradients",
        idea="The mean of the gradients of many noisy copies of the image. Noise in the map averages out "
        "and what stays is common to the neighbourhood of the image. Signs are kept, so opposite gradients "
        "cancel.",
        formula=r"M = \frac{1}{n}\sum_{i=1}^{n} \frac{\partial f_c(x+\varepsilon_i)}{\partial x},\quad "
        r"\varepsilon_i \sim \mathcal{N}(0, \sigma^2)",
        citation=_SMILKOV,
        evidence="magnitude",
        scaling="percentile",
        signed=True,
        passes=_passes,
        parameters=_PARAMETERS,
        stochastic=True,
        stream=_STREAM,
        shares=_shares,
        failures="Depends on the noise level; explains a blurred version of the model, not the model.",
    )
)
def smoothgrad(
    classifier: Classifier,
    x: Tensor,
    target: Target,
    *,
    generators: Sequence[torch.Generator],
    work: Work,
    samples: int,
    noise: float,
    tolerance: float,
) -> Attribution:
    """SmoothGrad: `(N, 3, H, W)`, signed mean."""
    found = _noisy_gradients("value", classifier, x, target, generators, work, samples, noise, tolerance)
    return Attribution(found.value.mean, standard_error=found.value.error(), samples=found.value.count)


@register(
    MethodCard(
        id="smoothgrad_squared",
        title="SmoothGrad²",
        family="gradients",
        idea="The mean of the squared gradients of many noisy copies of the image. Nothing cancels, so the "
        "map shows where the score is sensitive, without direction. This is what COSE's code calls "
        "SmoothGrad.",
        formula=r"M = \frac{1}{n}\sum_{i=1}^{n} \Big(\frac{\partial f_c(x+\varepsilon_i)}{\partial x}\Big)^2",
        citation=_SMILKOV + " Squared form: Hooker et al., NeurIPS 2019.",
        evidence="magnitude",
        scaling="percentile",
        signed=False,
        passes=_passes,
        parameters=_PARAMETERS,
        stochastic=True,
        stream=_STREAM,
        shares=_shares,
        failures="Unsigned: evidence for and against look alike.",
    )
)
def smoothgrad_squared(
    classifier: Classifier,
    x: Tensor,
    target: Target,
    *,
    generators: Sequence[torch.Generator],
    work: Work,
    samples: int,
    noise: float,
    tolerance: float,
) -> Attribution:
    """SmoothGrad squared: `(N, 3, H, W)`, never negative."""
    found = _noisy_gradients("square", classifier, x, target, generators, work, samples, noise, tolerance)
    return Attribution(found.square.mean, standard_error=found.square.error(), samples=found.square.count)


@register(
    MethodCard(
        id="vargrad",
        title="VarGrad",
        family="gradients",
        idea="The variance of the gradients of many noisy copies of the image. It is large where the gradient "
        "depends most on small changes of the picture. The gradient itself plays no part in it.",
        formula=r"M = \frac{1}{n}\sum_{i=1}^{n} \Big(\frac{\partial f_c(x+\varepsilon_i)}{\partial x} - \bar g\Big)^2",
        citation="Adebayo, Gilmer, Goodfellow, Kim: Local Explanation Methods for Deep Neural Networks Lack "
        "Sensitivity to Parameter Values. ICLR workshop 2018.",
        evidence="magnitude",
        scaling="percentile",
        signed=False,
        passes=_passes,
        parameters=_PARAMETERS,
        stochastic=True,
        stream=_STREAM,
        shares=_shares_variance,
        failures="Unsigned; says where the gradient is unsteady, which need not be where the evidence is.",
    )
)
def vargrad(
    classifier: Classifier,
    x: Tensor,
    target: Target,
    *,
    generators: Sequence[torch.Generator],
    work: Work,
    samples: int,
    noise: float,
    tolerance: float,
) -> Attribution:
    """VarGrad: `(N, 3, H, W)`, never negative."""
    found = _noisy_gradients("variance", classifier, x, target, generators, work, samples, noise, tolerance)
    return Attribution(found.value.variance(ddof=0), standard_error=found.error("variance"), samples=found.value.count)
