"""Seeing and replacing the rectifiers of a net, however they are called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from salviz.classifiers.classifier import Classifier
from salviz.methods.passes import score_gradient
from salviz.targets import Target
from salviz.work import Work


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


def guided_gradient(classifier: Classifier, x: Tensor, target: Target, work: Work) -> tuple[Tensor, Tensor]:
    """Guided backpropagation of the images, made once for all methods that explain them together.

    Returns:
        `(N, 3, H, W)` and `(N, K)` logits.
    """

    def compute() -> tuple[Tensor, Tensor]:
        with RectifierMode(_guided):
            found = score_gradient(classifier, x, target)
        work.tick(2 * len(x))
        return found

    return work.once("guided backprop", compute)


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
