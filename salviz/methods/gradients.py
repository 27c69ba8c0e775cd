"""Gradients of a class score with respect to the input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from salviz.classifiers.classifier import Classifier
from salviz.methods.card import Attribution, MethodCard, Parameter, register
from salviz.targets import ClassTarget, Target
from salviz.work import Work


def score_gradient(classifier: Classifier, x: Tensor, target: Target) -> tuple[Tensor, Tensor]:
    """Gradient of each image's score with respect to it, and the logits it came from.

    Args:
        classifier: The model; its lock is held by the caller.
        x: `(N, 3, H, W)` float32 in model space.
        target: One entry an image.

    Returns:
        `(N, 3, H, W)` gradient and `(N, K)` logits, both without a graph.
    """
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        logits = classifier.forward(leaf)
        score = target.resolve(logits).score(logits)
        (gradient,) = torch.autograd.grad(score.sum(), leaf)
    return gradient, logits.detach()


def _two_passes(parameters: Mapping[str, Any], size: tuple[int, int]) -> float:
    return 2.0


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
        passes=_two_passes,
        explains_predicted=True,
        failures="Noisy; in saturated models the gradient vanishes where the evidence is strongest.",
    )
)
def gradient(
    classifier: Classifier, x: Tensor, target: Target, *, generators: Sequence[torch.Generator], work: Work
) -> Attribution:
    """Plain gradient: `(N, 3, H, W)`."""
    maps, logits = score_gradient(classifier, x, target)
    work.tick(2 * len(x))
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
        passes=_two_passes,
        explains_predicted=True,
        failures="Shows the picture itself: edges of the input shine through whatever the model does.",
    )
)
def input_x_gradient(
    classifier: Classifier, x: Tensor, target: Target, *, generators: Sequence[torch.Generator], work: Work
) -> Attribution:
    """Input times gradient: `(N, 3, H, W)`."""
    maps, logits = score_gradient(classifier, x, target)
    work.tick(2 * len(x))
    return Attribution(x * maps, logits)


def _noise(x: Tensor, level: float, samples: int, generators: Sequence[torch.Generator]) -> Iterator[Tensor]:
    """Gaussian noise for one sample of every image at a time, from each image's own stream."""
    ranges = x.amax(dim=(1, 2, 3), keepdim=True) - x.amin(dim=(1, 2, 3), keepdim=True)
    for _ in range(samples):
        noise = torch.stack(
            [torch.randn(x.shape[1:], generator=g, device=g.device, dtype=x.dtype).to(x.device) for g in generators]
        )
        yield noise * (level * ranges)


def average_gradient(
    classifier: Classifier,
    x: Tensor,
    target: ClassTarget,
    noises: Iterable[Tensor],
    *,
    of: Callable[[Tensor], Tensor],
    work: Work,
) -> Tensor:
    """Mean of `of(gradient)` over noisy copies.

    Args:
        classifier: The model.
        x: `(N, 3, H, W)`.
        target: Resolved target.
        noises: `(N, 3, H, W)` tensors to add, one a sample.
        of: What is averaged: the gradient itself or its square.
        work: Budget and progress.

    Returns:
        `(N, 3, H, W)`.
    """
    total, count = torch.zeros_like(x), 0
    group: list[Tensor] = []
    per_pass = max(1, work.batch_size // len(x))

    def run() -> None:
        nonlocal count
        batch = torch.cat([x + noise for noise in group])
        classes = ClassTarget(target.classes.repeat(len(group)), target.output)
        found, _ = score_gradient(classifier, batch, classes)
        # Sample by sample, in order, so that the sum does not depend on how many fit in a pass.
        for sample in torch.split(of(found), len(x)):
            total.add_(sample)
        count += len(group)
        work.tick(2 * len(batch))
        group.clear()

    for noise in noises:
        group.append(noise)
        if len(group) == per_pass:
            run()
    if group:
        run()
    return total / count


_SMOOTHGRAD = (
    Parameter("samples", 25, "Noisy copies averaged.", low=1, high=500, step=1),
    Parameter(
        "noise",
        0.15,
        "Standard deviation of the noise, as a share of the input's range.",
        low=0.0,
        high=1.0,
        step=0.05,
    ),
)
_SMILKOV = "Smilkov, Thorat, Kim, Viégas, Wattenberg: SmoothGrad. arXiv 1706.03825, 2017."


def _smoothgrad_passes(parameters: Mapping[str, Any], size: tuple[int, int]) -> float:
    return 2.0 * float(parameters["samples"])


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
        passes=_smoothgrad_passes,
        parameters=_SMOOTHGRAD,
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
) -> Attribution:
    """SmoothGrad: `(N, 3, H, W)`, signed mean."""
    assert isinstance(target, ClassTarget)  # noqa: S101 - the engine resolves targets first
    draws = _noise(x, noise, samples, generators)
    return Attribution(average_gradient(classifier, x, target, draws, of=lambda g: g, work=work))


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
        passes=_smoothgrad_passes,
        parameters=_SMOOTHGRAD,
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
) -> Attribution:
    """SmoothGrad squared: `(N, 3, H, W)`, never negative."""
    assert isinstance(target, ClassTarget)  # noqa: S101 - the engine resolves targets first
    draws = _noise(x, noise, samples, generators)
    return Attribution(average_gradient(classifier, x, target, draws, of=torch.square, work=work))


class _GuidedClamp(torch.autograd.Function):
    """ReLU or ReLU6 whose backward also drops negative incoming gradients (Springenberg et al., sec. 3.4)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, upper: float | None) -> Tensor:
        passed = x > 0 if upper is None else (x > 0) & (x < upper)
        ctx.save_for_backward(passed)
        return x.clamp(min=0.0, max=upper)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (passed,) = ctx.saved_tensors
        return grad.clamp(min=0.0) * passed, None


_RELU = {F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu_}
_RELU6 = {F.relu6}
_OTHER_RECTIFIERS = {
    getattr(F, name): name
    for name in (
        "silu",
        "gelu",
        "hardswish",
        "elu",
        "selu",
        "celu",
        "leaky_relu",
        "prelu",
        "mish",
        "softplus",
        "glu",
    )
}


class RectifierMode(TorchFunctionMode):
    """Sees every rectifier a forward pass calls, as module or as function, and can replace ReLU and ReLU6.

    Module hooks would miss ReLU6, functional calls and fused norm-activation layers; captum's do, and return
    the plain gradient for such nets.

    Attributes:
        relus: ReLU and ReLU6 calls seen.
        others: Names of other rectifiers seen, for which guided backpropagation is not defined.
    """

    def __init__(self, replace: Callable[[Tensor, float | None], Tensor] | None = None) -> None:
        super().__init__()
        self.replace = replace
        self.relus = 0
        self.others: set[str] = set()

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Replace a ReLU call, note another rectifier, pass everything else on."""
        kwargs = kwargs or {}
        if func is F.hardtanh:
            low = args[1] if len(args) > 1 else kwargs.get("min_val", -1.0)
            high = args[2] if len(args) > 2 else kwargs.get("max_val", 1.0)
            if low != 0.0:
                self.others.add("hardtanh")
                return func(*args, **kwargs)
            self.relus += 1
            return self.replace(args[0], high) if self.replace else func(*args, **kwargs)
        if func in _RELU or func in _RELU6:
            self.relus += 1
            if self.replace is not None:
                x = args[0] if args else kwargs["input"]
                return self.replace(x, 6.0 if func in _RELU6 else None)
        elif func in _OTHER_RECTIFIERS:
            self.others.add(_OTHER_RECTIFIERS[func])
        return func(*args, **kwargs)


def _guided(x: Tensor, upper: float | None) -> Tensor:
    result: Tensor = _GuidedClamp.apply(x, upper)
    return result


def needs_relu(classifier: Classifier) -> str | None:
    """Why guided backpropagation is undefined for a classifier, or None."""
    height, width = classifier.preprocessing.input_size
    blank = torch.zeros(1, 3, height, width, device=classifier.device)
    with classifier.lock, torch.no_grad(), RectifierMode() as seen:
        classifier.forward(blank)
    if seen.others:
        return (
            f"Guided backpropagation is defined for ReLU nets only, and {classifier.title} uses "
            f"{', '.join(sorted(seen.others))}. Choose Gradient or Grad-CAM instead."
        )
    if not seen.relus:
        return (
            f"Guided backpropagation is defined for ReLU nets only, and {classifier.title} has no ReLU that "
            "could be guided. Choose Gradient or Grad-CAM instead."
        )
    return None


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
        passes=_two_passes,
        explains_predicted=True,
        failures="Fails the parameter randomisation test: the map stays when the head is re-initialised.",
        refusal=needs_relu,
    )
)
def guided_backprop(
    classifier: Classifier, x: Tensor, target: Target, *, generators: Sequence[torch.Generator], work: Work
) -> Attribution:
    """Guided backpropagation: `(N, 3, H, W)`."""
    with RectifierMode(_guided):
        maps, logits = score_gradient(classifier, x, target)
    work.tick(2 * len(x))
    return Attribution(maps, logits)
