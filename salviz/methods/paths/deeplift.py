"""DeepLIFT: differences from a baseline, handed back through the net by finite-difference slopes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from salviz.classifiers.classifier import Classifier
from salviz.errors import MethodError
from salviz.methods.card import Attribution, MethodCard, register, two_passes
from salviz.methods.passes import blank_like
from salviz.methods.paths.integrated import BASELINE
from salviz.methods.rectifiers import HOMOGENEOUS, Activation, as_activation, as_product, overwrite
from salviz.pieces import parts
from salviz.targets import ClassTarget, Target
from salviz.work import Work

_TINY = 1e-30
"""Added to a quotient of differences it changes nothing but 0/0."""

_NODES = 32
"""Gauss-Legendre points on the straight way between two vectors of logits, for a softmax on top of them."""

_TWO_WAYS = (
    "DeepLIFT compares the net's activations for the picture with those for the baseline, and this net takes another "
    "way for each or overwrites them. Choose Integrated gradients instead."
)

_Pool = Callable[[Tensor], tuple[Tensor, Tensor]]


class _Rescaled(torch.autograd.Function):
    """An activation with the Rescale rule (eq. 10): its slope is its change over its input's change."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, call: Activation, z0: Tensor) -> Tensor:
        out0 = call.apply(z0)
        is_straight = call.bounds is not None or call.name in HOMOGENEOUS
        tiny = _derivative(call, z0, out0).mul_(_TINY) if is_straight else out0
        # Memory is dear: the kernel clears what is new. So there is one new activation, overwritten until it is the
        # slope, and where the net overwrites its own, so does this.
        out = z if call.is_inplace else torch.empty_like(z)
        slope = torch.empty_like(z)
        for z_, z0_, out_, out0_, slope_, tiny_ in parts(z, z0, out, out0, slope, tiny):
            run = z_ - z0_
            if not is_straight:
                # Of a small difference rounding leaves little. There the derivative half-way is nearer to the truth.
                half_way = _derivative(call, (z_ + z0_) / 2, out0_)
            if call.bounds is None:
                out_.copy_(call.apply(z_))
            else:
                torch.clamp(z_, *call.bounds, out=out_)
            rise = torch.sub(out_, out0_, out=slope_)
            if is_straight:
                # Differences on a straight piece are exact, so only no difference at all needs the derivative, which
                # is the baseline's then. A number too small to change any other quotient brings it in: 0/0 becomes
                # the derivative, without a mask.
                rise.add_(tiny_).div_(run.add_(_TINY))
            else:
                is_close = run.abs() < _close(z)
                torch.where(is_close, half_way, rise.div_(run), out=rise)
        if call.is_inplace:
            ctx.mark_dirty(z)
        ctx.save_for_backward(slope)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        # Needed once; should somebody go back a second time, autograd sees that it was overwritten.
        return slope.mul_(grad), None, None


def _close(z: Tensor) -> float:
    """Difference at which rounding and the error of the derivative half-way are about alike."""
    return float(torch.finfo(z.dtype).eps ** (1 / 3))


def _derivative(call: Activation, z: Tensor, out: Tensor) -> Tensor:
    if call.bounds is not None and call.bounds[0] == 0.0:
        return out.sign() if math.isinf(call.bounds[1]) else (call.bounds[1] - out).mul_(out).sign_()
    with torch.enable_grad():
        leaf = z.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(call.apply(leaf).sum(), leaf)
    return slope


class _RescaledPool(torch.autograd.Function):
    """Max pooling: where the picture's maximum is larger its place is handed the change, else the baseline's place.

    That place changed by at least as much as the maximum did, and in the same direction, so slopes lie between 0 and 1
    and the changes add up.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, pool: _Pool, z0: Tensor) -> Tensor:
        out, place = pool(z)
        out0, place0 = pool(z0)
        chosen = torch.where(out >= out0, place, place0)
        change = (z - z0).flatten(2).gather(2, chosen.flatten(2)).view_as(out)
        is_close = change == 0
        slope = torch.where(is_close, torch.ones_like(out), (out - out0) / change)
        ctx.save_for_backward(slope, torch.where(is_close, place, chosen))
        ctx.shape = z.shape
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        slope, place = ctx.saved_tensors
        back = grad.new_zeros(ctx.shape).flatten(2)
        # Windows overlap, so a place may be handed several signals.
        back.scatter_add_(2, place.flatten(2), (grad * slope).flatten(2))
        return back.view(ctx.shape), None, None


class _RescaledProduct(torch.autograd.Function):
    """A product: each factor's slope is the other's mean of picture and baseline, so the two changes add up."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, a0: Tensor, b0: Tensor) -> Tensor:
        ctx.save_for_backward((a + a0) / 2, (b + b0) / 2)
        ctx.shapes = a.shape, b.shape
        return a * b

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        a, b = ctx.saved_tensors
        return (grad * b).sum_to_size(ctx.shapes[0]), (grad * a).sum_to_size(ctx.shapes[1]), None, None


class _RescaledNorm(torch.autograd.Function):
    """`(z - mean) / deviation` over the last dimension, as the product and the chain of activations that it is.

    With `c` the centred input and `d` its deviation, `c/d` changes by `1/d` times the change of `c`, and by `c0` times
    the change of `1/d`. That is `-1 / (d d0 (d + d0))` times the change of `d^2`, which is the mean of `c + c0` times
    the change of `c`. All changes add up and nothing grows beyond bounds, not even where the baseline is flat.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, z0: Tensor, eps: float) -> Tensor:
        centred, centred0 = (part - part.mean(dim=-1, keepdim=True) for part in (z, z0))
        d, d0 = (part.square().mean(dim=-1, keepdim=True).add_(eps).sqrt_() for part in (centred, centred0))
        ctx.save_for_backward((centred + centred0) / (-centred.shape[-1] * d * (d + d0)), centred0 / d0, 1 / d)
        return centred / d

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        both, out0, scale = ctx.saved_tensors
        back = grad * scale + both * (grad * out0).sum(dim=-1, keepdim=True)
        return back - back.mean(dim=-1, keepdim=True), None, None


def _as_pooling(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, _Pool] | None:
    """Input and `z -> (maxima, flat places)` of a two-dimensional max pooling, or None."""
    if getattr(func, "__name__", "") not in ("max_pool2d", "adaptive_max_pool2d") or kwargs.get("return_indices"):
        return None
    x = args[0] if args else kwargs["input"]
    rest = {key: value for key, value in kwargs.items() if key not in ("input", "return_indices")}
    pool: Any = F.adaptive_max_pool2d if "adaptive" in func.__name__ else F.max_pool2d
    return x, lambda z: pool(z, *args[1:], **rest, return_indices=True)


def _rescaled_norm(
    func: Any,
    z0: Tensor,
    z: Tensor,
    extent: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """A layer or group norm: `extent` is the normalised shape or the number of groups."""
    if func is F.layer_norm:
        flat, flat0 = (part.flatten(-len(extent)) for part in (z, z0))
        affine: tuple[int, ...] = tuple(extent)
    else:
        flat, flat0 = (part.reshape(len(part), extent, -1) for part in (z, z0))
        affine = (z.shape[1], *(1,) * (z.ndim - 2))
    out: Tensor = _RescaledNorm.apply(flat, flat0, eps).reshape(z.shape)
    out = out if weight is None else out * weight.view(affine)
    return out if bias is None else out + bias.view(affine)


class _NeedsEveryBaseline(Exception):  # noqa: N818 - no error: another way is taken
    """The net cuts its batch up (in windows, say), so one baseline cannot stand for all pictures."""


class _Differences(TorchFunctionMode):
    """Sees the activations, max poolings, norms and products of a forward pass, however they are called.

    The first pass, of the baseline and without a graph, notes what each was given. The second, of the picture, gives
    each the slope between the two. Calls are told apart by their order alone, so modules may be used again. What is
    none of these and not linear (attention's softmax and products) keeps its gradient at the picture.
    """

    def __init__(self, *, is_single: bool) -> None:
        """Nothing seen yet.

        Args:
            is_single: Whether the baseline's pass holds one baseline for all pictures.
        """
        super().__init__()
        self.is_single = is_single
        self._seen: list[tuple[str, int, tuple[Tensor, ...]]] = []
        self._next: int | None = None

    def rewind(self) -> None:
        """The baseline's pass is over; the picture's begins."""
        self._next = 0

    def finish(self) -> None:
        """The picture's pass is over.

        Raises:
            MethodError: The baseline's had more calls.
        """
        if self._next != len(self._seen):
            raise MethodError(_TWO_WAYS)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Note a call of the baseline's pass; replace one of the picture's."""
        kwargs = kwargs or {}
        call = as_activation(func, args, kwargs)
        if call is not None:
            before = self._pair(call.name, call.x)
            if before is None:
                # Over its input, as in the picture's pass: the net may read that, and not the answer.
                self._keep(call)
                return overwrite(call, call.apply(call.x))
            return _Rescaled.apply(call.x, call, before[0])
        pooling = _as_pooling(func, args, kwargs)
        if pooling is not None:
            before = self._pair("max pooling", pooling[0])
            return func(*args, **kwargs) if before is None else _RescaledPool.apply(*pooling, before[0])
        if func in (F.layer_norm, F.group_norm):
            before = self._pair("norm", args[0])
            return func(*args, **kwargs) if before is None else _rescaled_norm(func, before[0], *args, **kwargs)
        factors = as_product(func, args)
        if factors is not None:
            before = self._pair("product", *factors)
            if before is not None and all(factor.requires_grad for factor in factors):
                return _RescaledProduct.apply(*factors, *before)
        return func(*args, **kwargs)

    def _keep(self, call: Activation) -> None:
        """Copy what was noted of the tensor that a call of the baseline's pass is about to overwrite."""
        if not call.is_inplace:
            return
        place = call.x.untyped_storage().data_ptr()
        for row, (name, version, given) in enumerate(self._seen):
            is_met = any(part.untyped_storage().data_ptr() == place for part in given)
            if is_met and version == sum(part._version for part in given):
                self._seen[row] = (name, 0, tuple(part.clone() for part in given))

    def _pair(self, name: str, *given: Tensor) -> tuple[Tensor, ...] | None:
        """What the baseline gave to this call, or None in the baseline's own pass."""
        if self._next is None:
            # Kept as they are: should the net change them in place later, their version tells.
            self._seen.append((name, sum(part._version for part in given), tuple(part.detach() for part in given)))
            return None
        found, version, before = self._seen[self._next] if self._next < len(self._seen) else ("", 0, ())
        shapes = [part.shape for part in given]
        if self.is_single and found == name and [(1, *shape[1:]) for shape in shapes] != [p.shape for p in before]:
            raise _NeedsEveryBaseline
        is_same = self.is_single or [part.shape for part in before] == shapes
        if not is_same or found != name or version != sum(part._version for part in before):
            raise MethodError(_TWO_WAYS)
        # Each is needed once.
        self._seen[self._next] = ("", 0, ())
        self._next += 1
        return before


def _two_ways(classifier: Classifier) -> str | None:
    """Why the activations for the mean colour and for noise cannot be paired, or None."""
    noise = torch.randn(1, 3, *classifier.preprocessing.input_size, generator=torch.Generator().manual_seed(0))
    noise, _ = noise.to(classifier.device), classifier.runtime
    # Both pictures are single: a net that cuts them up gets a baseline for each all the same.
    differences = _Differences(is_single=False)
    try:
        with classifier.lock, torch.no_grad():
            with differences:
                classifier.forward(torch.zeros_like(noise))
            differences.rewind()
            with differences:
                classifier.forward(noise)
            differences.finish()
    except MethodError as error:
        return str(error)
    return None


def _head_slope(target: ClassTarget, logits: Tensor, logits0: Tensor) -> Tensor:
    """`(N, K)` mean gradient of the score on the straight way between two vectors of logits.

    For a logit it is its gradient; for a probability it makes the changes of the logits add up to the score's.
    """
    points, weights = np.polynomial.legendre.leggauss(_NODES)
    total = torch.zeros_like(logits)
    with torch.enable_grad():
        for point, weight in zip(points, weights, strict=True):
            leaf = torch.lerp(logits0, logits, float((point + 1) / 2)).requires_grad_(True)
            (gradient,) = torch.autograd.grad(target.score(leaf).sum(), leaf)
            total.add_(gradient, alpha=float(weight / 2))
    return total


def _multiplier(
    classifier: Classifier, x: Tensor, blank: Tensor, target: Target, *, is_single: bool
) -> tuple[Tensor, Tensor, Tensor, ClassTarget]:
    """Both passes and the way back.

    Args:
        classifier: The net.
        x: `(N, 3, H, W)` pictures.
        blank: One baseline for all of them, or one for each.
        target: What is explained.
        is_single: Whether `_NeedsEveryBaseline` may still be raised.

    Returns:
        `(N, 3, H, W)` multipliers, `(N, K)` logits of pictures and of baselines, and the classes.
    """
    _ = classifier.runtime  # Made now: folding batch norms runs pictures through the net, which must not be noted.
    differences = _Differences(is_single=is_single)
    with torch.no_grad(), differences:
        logits0 = classifier.forward(blank)
    differences.rewind()
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        with differences:
            logits = classifier.forward(leaf)
        differences.finish()
        resolved = target.resolve(logits)
        logits0 = logits0.expand_as(logits)
        slope = _head_slope(resolved, logits.detach(), logits0)
        (multiplier,) = torch.autograd.grad(logits, leaf, slope)
    return multiplier, logits.detach(), logits0, resolved


@register(
    MethodCard(
        id="deeplift",
        title="DeepLIFT",
        family="paths",
        idea="The picture and a blank one are sent through the net, and the difference of their scores is handed back "
        "layer by layer. Each activation passes on its change in proportion to its input's change, however large, so "
        "saturation hides nothing. How far the values add up to the change of score is shown as the completeness "
        "error.",
        formula=r"M = (x-x_0)\odot m_x,\quad m_z = m_y\,\frac{y-y_0}{z-z_0}\ \text{at every activation } y=\phi(z)",
        citation="Shrikumar, Greenside, Kundaje: Learning Important Features Through Propagating Activation "
        "Differences. ICML 2017.",
        evidence="magnitude",
        scaling="percentile",
        signed=True,
        completeness="the map adds up to {error} than the change of {score} from the blank image",
        passes=two_passes,
        parameters=(BASELINE,),
        explains_predicted=True,
        failures="Depends on the baseline; attention has no such rule, so in transformers the values do not add up.",
        refusal=_two_ways,
        needs="the same way through the net for every picture",
    )
)
def deeplift(
    classifier: Classifier,
    x: Tensor,
    target: Target,
    *,
    generators: Sequence[torch.Generator],
    work: Work,
    baseline: str,
) -> Attribution:
    """DeepLIFT with the Rescale rule: `(N, 3, H, W)`; with the completeness error.

    The paper's rule covers elementwise activations (section 3.5.1). Three rules are ours, and exact: a max pooling
    hands the change to the place that decides it, a product of two features (a gate) is split at the mean of both
    ends, and a LayerNorm is taken as the product and the chain of activations that it is. Attention's softmax and
    products keep their gradient at the picture: see the completeness error.
    """
    blank = blank_like(classifier, x, baseline)
    # The baseline's pass is one for the whole batch, and not worth counting.
    passes = None
    try:
        multiplier, logits, logits0, resolved = _multiplier(classifier, x, blank[:1], target, is_single=True)
    except _NeedsEveryBaseline:
        multiplier, logits, logits0, resolved = _multiplier(classifier, x, blank, target, is_single=False)
        passes = 3.0
    work.tick(2 * len(x))
    maps = multiplier * (x - blank)
    gained = resolved.score(logits) - resolved.score(logits0)
    return Attribution(maps, logits, completeness=maps.sum(dim=(1, 2, 3)) - gained, passes=passes)
