"""Seeing and replacing the rectifiers of a net, however they are called."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from salviz.classifiers.classifier import Classifier
from salviz.methods.passes import score_gradient
from salviz.targets import Target
from salviz.work import Work


class _PositiveGradient(torch.autograd.Function):
    """ReLU or ReLU6 that lets only positive gradients back.

    The deconvnet's forgets what the rectifier saw (Zeiler & Fergus, sec. 2.1), guided backpropagation's also stops
    where the rectifier did (Springenberg et al., sec. 3.4). That can be told from its output, so that nothing else is
    kept and the net's in-place rectifiers stay in place.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, bounds: tuple[float, float], is_inplace: bool, is_guided: bool) -> Tensor:
        result = x.clamp_(*bounds) if is_inplace else x.clamp(*bounds)
        if is_inplace:
            ctx.mark_dirty(x)
        ctx.bounds = bounds if is_guided else None
        if is_guided:
            ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        if ctx.bounds is None:
            return grad.clamp(min=0.0), None, None, None
        passed = torch.ops.aten.hardtanh_backward(grad, *ctx.saved_tensors, *ctx.bounds)
        return passed.clamp_(min=0.0), None, None, None


_RELU = {F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu_, F.relu6}
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


_ELEMENTWISE = frozenset(
    {
        "relu", "relu6", "hardtanh", "leaky_relu", "prelu", "silu", "gelu", "hardswish", "hardsigmoid", "elu", "selu",
        "celu", "mish", "softplus", "sigmoid", "tanh", "logsigmoid", "softsign", "threshold",
    }
)  # fmt: skip
GUIDED = "guided backprop"
"""What methods share that need guided backpropagation of the images."""
HOMOGENEOUS = frozenset({"relu", "leaky_relu", "prelu"})
"""Activations that are a slope times their input, whichever side it is on: they have no intercept."""


@dataclass(frozen=True)
class Activation:
    """One call of an activation function.

    Attributes:
        name: Without the underscore of its in-place form.
        x: What it was called on.
        apply: The function itself, of one tensor of any shape; never in place.
        bounds: For a clamp such as ReLU or ReLU6, between which values it changes nothing.
        is_inplace: Whether the net overwrites `x` with the result.
    """

    name: str
    x: Tensor
    apply: Callable[[Tensor], Tensor]
    bounds: tuple[float, float] | None = None
    is_inplace: bool = False


def reads_attribute(func: Any) -> bool:
    """Whether a call reads a tensor's shape, type or the like: those are far more than the calls that compute."""
    return getattr(func, "__name__", "") == "__get__"


def as_activation(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Activation | None:
    """The activation that a call seen by a `TorchFunctionMode` is, or None where it is something else.

    Whether it came from a module, a function or a tensor's method makes no difference.
    """
    given = getattr(func, "__name__", "")
    name = given.rstrip("_")
    if name not in _ELEMENTWISE or (args and not isinstance(args[0], Tensor)):
        return None
    x = args[0] if args else kwargs.get("input")
    if not isinstance(x, Tensor):
        return None
    rest = {key: value for key, value in kwargs.items() if key != "input"}
    # An in-place flag is the only Boolean that these functions take.
    is_inplace = given.endswith("_") or rest.get("inplace") is True or any(value is True for value in args[1:])
    if "inplace" in rest:
        rest["inplace"] = False
    others = tuple(False if value is True else value for value in args[1:])

    def apply(z: Tensor) -> Tensor:
        result: Tensor = func(z.clone() if given.endswith("_") else z, *others, **rest)
        return result

    bounds = {"relu": (0.0, math.inf), "relu6": (0.0, 6.0)}.get(name)
    if name == "hardtanh":
        low = args[1] if len(args) > 1 else rest.get("min_val", -1.0)
        high = args[2] if len(args) > 2 else rest.get("max_val", 1.0)
        bounds = (float(low), float(high))
    return Activation(name, x, apply, bounds, is_inplace)


def overwrite(call: Activation, result: Tensor) -> Tensor:
    """What a net gets of an activation that was computed in another way, written over its input where the net does so.

    A net that works in place may read what it has overwritten, and not the answer.

    Args:
        call: As the net made it.
        result: Of the input's shape, made of it without reading its memory again on the way back.
    """
    # A leaf that wants a gradient cannot be overwritten, nor did the net do so with what was a constant to it.
    is_leaf = call.x.is_leaf and call.x.requires_grad and torch.is_grad_enabled()
    return call.x.copy_(result) if call.is_inplace and not is_leaf else result


def as_product(func: Any, args: tuple[Any, ...]) -> tuple[Tensor, Tensor] | None:
    """The factors of a product of two tensors, such as a gate and what it gates; None where it is something else.

    Products made in place are left alone: what they overwrite may be read again.
    """
    if getattr(func, "__name__", "") not in ("mul", "multiply") or len(args) < 2:
        return None
    return (args[0], args[1]) if isinstance(args[0], Tensor) and isinstance(args[1], Tensor) else None


class RectifierMode(TorchFunctionMode):
    """Sees every rectifier a forward pass calls, as module or as function, and can replace ReLU and ReLU6.

    Module hooks would miss ReLU6, functional calls and fused norm-activation layers; captum's do, and return
    the plain gradient for such nets.

    Attributes:
        relus: ReLU and ReLU6 calls seen.
        others: Names of other rectifiers seen, for which guided backpropagation is not defined.
    """

    def __init__(self, change: Callable[[Activation], Tensor] | None = None) -> None:
        """See the rectifiers.

        Args:
            change: Called in place of each ReLU and ReLU6 on the way of a gradient; gives its output.
        """
        super().__init__()
        self.change = change
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
            if low != 0.0:
                self.others.add("hardtanh")
                return func(*args, **kwargs)
            return self._rectify(func, args, kwargs)
        if func in _RELU:
            return self._rectify(func, args, kwargs)
        if func in _OTHER_RECTIFIERS:
            self.others.add(_OTHER_RECTIFIERS[func])
        return func(*args, **kwargs)

    def _rectify(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.relus += 1
        call = as_activation(func, args, kwargs)
        if self.change is None or call is None or not (torch.is_grad_enabled() and call.x.requires_grad):
            return func(*args, **kwargs)
        return self.change(call)


def _changed(call: Activation, *, is_guided: bool) -> Tensor:
    assert call.bounds is not None  # noqa: S101 - a ReLU or a ReLU6
    result: Tensor = _PositiveGradient.apply(call.x, call.bounds, call.is_inplace, is_guided)
    return result


def guided_gradient(classifier: Classifier, x: Tensor, target: Target, work: Work) -> tuple[Tensor, Tensor]:
    """Guided backpropagation of the images, made once for all methods that explain them together.

    Returns:
        `(N, 3, H, W)` and `(N, K)` logits.
    """

    def compute() -> tuple[Tensor, Tensor]:
        with RectifierMode(partial(_changed, is_guided=True)):
            found = score_gradient(classifier, x, target)
        work.tick(2 * len(x))
        return found

    return work.once(GUIDED, compute)


def deconvnet_gradient(classifier: Classifier, x: Tensor, target: Target, work: Work) -> tuple[Tensor, Tensor]:
    """The deconvnet's reconstruction of the images.

    Returns:
        `(N, 3, H, W)` and `(N, K)` logits.
    """
    with RectifierMode(partial(_changed, is_guided=False)):
        found = score_gradient(classifier, x, target)
    work.tick(2 * len(x))
    return found


def no_relu(classifier: Classifier, method: str) -> str | None:
    """Why a method that changes the way back through the ReLUs is undefined for a classifier, or None.

    Args:
        classifier: Asked with one blank image.
        method: How the sentence names the method.
    """
    height, width = classifier.preprocessing.input_size
    blank = torch.zeros(1, 3, height, width, device=classifier.device)
    with classifier.lock, torch.no_grad(), RectifierMode() as seen:
        classifier.forward(blank)
    if seen.others:
        return (
            f"{method} is defined for ReLU nets only, and {classifier.title} uses "
            f"{', '.join(sorted(seen.others))}. Choose Gradient or Grad-CAM instead."
        )
    if not seen.relus:
        return (
            f"{method} is defined for ReLU nets only, and {classifier.title} has no ReLU on the way. "
            "Choose Gradient or Grad-CAM instead."
        )
    return None


def needs_relu(classifier: Classifier) -> str | None:
    """Why guided backpropagation is undefined for a classifier, or None."""
    return no_relu(classifier, "Guided backpropagation")
