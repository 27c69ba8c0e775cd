"""A forward pass whose gradient is the rules' one: every call of a net sorted into what has a rule and what needs none.

What is not known to be right is refused by name (`NoRuleError`) rather than differentiated as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils.weak import WeakIdKeyDictionary

from salviz.classifiers.stages import tensors_in
from salviz.methods.rectifiers import as_activation
from salviz.methods.relevance.nonlinear import norm, rectified, through
from salviz.methods.relevance.rules import FirstRule, Layer, NoRuleError, Pixels, Rule, settle
from salviz.methods.unfused import UNFUSED


@dataclass(frozen=True)
class Composite:
    """Which rule acts where.

    Attributes:
        convolution: For convolutions.
        linear: For linear layers.
        first: For the layers that read the image.
    """

    convolution: Rule
    linear: Rule
    first: FirstRule


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Names as functions and as methods of tensors are the same. Those that move values about:
_MOVES = _names(
    "view reshape flatten unflatten permute transpose t mT T movedim moveaxis swapaxes swapdims squeeze unsqueeze "
    "contiguous clone expand expand_as repeat repeat_interleave roll flip cat concat stack chunk split tensor_split "
    "split_with_sizes unbind select narrow __getitem__ index_select gather pixel_shuffle pixel_unshuffle view_as "
    "reshape_as to float type type_as channel_shuffle native_channel_shuffle pad dropout dropout1d dropout2d unfold"
)
# Linear ones, and maxima, which hand all on to the winner; none turns positive into negative.
_KEEP_SIGN = _MOVES | _names(
    "add add_ mean sum avg_pool1d avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d max_pool1d max_pool2d amax "
    "adaptive_max_pool1d adaptive_max_pool2d"
)
_LINEAR = _KEEP_SIGN | _names(
    "sub sub_ rsub __rsub__ neg interpolate upsample batch_norm masked_fill masked_fill_ addcmul cumsum where"
)
_PRODUCTS = _names("mul mul_ multiply __mul__ __rmul__ div div_ true_divide __truediv__")
_DIVIDES_BY = _names("__rtruediv__ __rdiv__ reciprocal")
_MATRIX = _names("matmul bmm mm einsum")
_AFFINE = _names("add sub mul div true_divide rsub __rsub__ add_ sub_ mul_ div_")
# Elementwise functions through zero: relevance goes through as it is.
_THROUGH = _names(
    "relu relu_ relu6 hardtanh leaky_relu leaky_relu_ silu gelu hardswish elu elu_ selu celu mish tanh tanh_ prelu"
)
# What comes from these only scales other values, and is taken as a constant.
_SCALES = _names("sigmoid sigmoid_ hardsigmoid norm vector_norm linalg_vector_norm var std rsqrt var_mean")
_NORMS = _names("layer_norm group_norm rms_norm instance_norm normalize")


def _swap(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        return type(value)(_swap(part, change) for part in value)
    return value


def _name(func: Any) -> str:
    full: str = resolve_name(func) or getattr(func, "__name__", str(func))
    return full.removesuffix(".__get__").rpartition(".")[2]


class PropagationMode(TorchFunctionMode):
    """Replaces what has a rule and lets through what needs none.

    Attributes:
        has_attention: Whether values were multiplied with values as matrices.
    """

    def __init__(self, composite: Composite, pixels: Pixels) -> None:
        """Prepare one pass.

        Args:
            composite: Rules by layer.
            pixels: The image; its `values` are what the net will be called with.
        """
        super().__init__()
        self.composite = composite
        self.has_attention = False
        self._pixels: dict[int, Pixels] = {id(pixels.values): pixels}
        # Values that depend on the image, and whether they cannot be negative.
        self._signals: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._scales: WeakIdKeyDictionary = WeakIdKeyDictionary()
        # What a rule has made and nobody has read.
        self._untouched: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Sort the call by what it is given."""
        kwargs = kwargs or {}
        if func in UNFUSED:
            with self:
                return UNFUSED[func](*args, **kwargs)
        given = list(tensors_in([*args, *kwargs.values()]))
        if any(id(tensor) in self._pixels for tensor in given):
            return self._of_image(func, args, kwargs, given)
        live = [tensor for tensor in given if tensor.requires_grad]
        if live:
            return self._of_signals(func, args, kwargs, live)
        result = func(*args, **kwargs)
        if any(tensor in self._scales for tensor in given):
            if _name(func) in _MATRIX | {"linear", "conv1d", "conv2d"}:
                raise NoRuleError("a gate that goes into another layer")
            for tensor in tensors_in([result]):
                self._scales[tensor] = True
        return result

    def _of_image(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], given: list[Tensor]) -> Any:
        """A call that reads the image or a rearranged or rescaled form of it."""
        name = _name(func)
        of_weights = _layer(name, func, args, kwargs)
        if of_weights is not None and id(of_weights.x) in self._pixels:
            pixels = self._pixels[id(of_weights.x)]
            value = self.composite.first(of_weights.call, pixels, of_weights.weight, of_weights.bias)
            self._signals[value] = False
            return value
        own = [tensor for tensor in given if id(tensor) in self._pixels]

        def apply(part: Callable[[Pixels], Tensor]) -> list[Tensor]:
            def change(tensor: Tensor) -> Tensor:
                return part(self._pixels[id(tensor)]) if id(tensor) in self._pixels else tensor

            swapped = {key: _swap(value, change) for key, value in kwargs.items()}
            return list(tensors_in([func(*_swap(args, change), **swapped)]))

        result = func(*args, **kwargs)
        outputs = list(tensors_in([result]))
        if not outputs:
            return result
        if name in _MOVES and not (name == "pad" and (len(args) > 3 or kwargs.get("value"))):
            gates = apply(lambda pixels: pixels.gate)
        elif name in _AFFINE and len(own) == 1 and (args[0] is own[0] or "div" not in name):
            # A pixel keeps its relevance when it is only measured on another scale.
            gates = [self._pixels[id(own[0])].gate]
        else:
            raise NoRuleError(f"{name} of the image itself")
        if any(tensor.requires_grad for tensor in given):
            raise NoRuleError("the image joined with what came of it")
        bounds = zip(apply(lambda pixels: pixels.low), apply(lambda pixels: pixels.high), strict=True)
        for value, gate, (low, high) in zip(outputs, gates, bounds, strict=True):
            self._pixels[id(value)] = Pixels(value, gate, torch.minimum(low, high), torch.maximum(low, high))
        return result

    def _of_signals(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], live: list[Tensor]) -> Any:
        """A call that is given values which depend on the image."""
        name = _name(func)
        if name == "__iter__":
            return iter(self._of_signals(torch.unbind, args, {}, live))
        if name not in _THROUGH:
            for tensor in live:
                settle(tensor)
        known = all(tensor in self._signals for tensor in live)
        is_positive = known and all(self._signals[tensor] for tensor in live)
        scales = [tensor for tensor in tensors_in([*args, *kwargs.values()]) if tensor in self._scales]
        of_weights = _layer(name, func, args, kwargs)
        result: Any
        if of_weights is not None and of_weights.x.requires_grad and not of_weights.weight.requires_grad:
            rule = self.composite.convolution if name.startswith("conv") else self.composite.linear
            result = rule(of_weights.call, of_weights.x, of_weights.weight, of_weights.bias, is_positive)
            is_positive = False
        elif name in _THROUGH:
            call = as_activation(func, args, kwargs)
            if call is None:
                raise NoRuleError(name)
            if call.bounds is not None and call.bounds[0] == 0.0:
                result, is_positive = rectified(call, is_untouched=call.x in self._untouched), True
            else:
                result = through(call)
        elif name in _SCALES:
            found = func(*args, **kwargs)
            result = (found[0].detach(), found[1]) if name == "var_mean" else _swap(found, Tensor.detach)
            for tensor in tensors_in([result]):
                if not tensor.requires_grad:
                    self._scales[tensor] = True
            is_positive = False
        elif name in _PRODUCTS:
            result, is_positive = self._product(name, func, args, kwargs), False
        elif name in _MATRIX:
            result, is_positive = self._matrices(func, args, kwargs, live), False
        elif name in _NORMS:
            result, is_positive = norm(name, args, kwargs), False
        elif name in _DIVIDES_BY:
            raise NoRuleError("division by a value that depends on the image")
        elif name == "softmax":
            result, is_positive = func(*args, **kwargs), True
        else:
            result = func(*args, **kwargs)
            is_product = name == "addcmul" and len([t for t in tensors_in(args[1:]) if t.requires_grad]) > 1
            if (name not in _LINEAR or is_product) and any(tensor.requires_grad for tensor in tensors_in([result])):
                raise NoRuleError(name)
            if scales and name not in _MOVES:
                raise NoRuleError(f"{name} of a gate")
            is_positive = is_positive and name in _KEEP_SIGN and not _has_constants(name, args, kwargs)
        outputs = list(tensors_in([result] if isinstance(result, Tensor) else result if _is_group(result) else []))
        if any(tensor.requires_grad for tensor in outputs) and not known:
            raise NoRuleError("a function that cannot be seen into")
        if outputs:
            for tensor in live:
                if tensor in self._untouched:
                    del self._untouched[tensor]
        for tensor in outputs:
            if tensor.requires_grad:
                self._signals[tensor] = is_positive
                if of_weights is not None:
                    self._untouched[tensor] = True
        return result

    def _product(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Products: a gate is a constant, equal factors get half the relevance each; divisors are constants."""
        first, second = args[0], args[1] if len(args) > 1 else kwargs.get("other")
        if not (isinstance(second, Tensor) and second.requires_grad):
            return func(*args, **kwargs)
        if "div" in name:
            if isinstance(first, Tensor) and first.requires_grad:
                return func(first, second.detach(), *args[2:], **kwargs)
            raise NoRuleError("division by a value that depends on the image")
        if not (isinstance(first, Tensor) and first.requires_grad):
            return func(*args, **kwargs)
        if first.numel() != second.numel():
            is_gate = first.numel() < second.numel()
            return torch.mul(first.detach() if is_gate else first, second if is_gate else second.detach())
        return _halved(torch.mul(first, second))

    def _matrices(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], live: list[Tensor]) -> Any:
        """Matrix products: of two values, half the relevance goes to each (AttnLRP, eq. 14)."""
        result = func(*args, **kwargs)
        if len(live) == 1:
            return result
        if len(live) > 2:
            raise NoRuleError("a product of three values")
        self.has_attention = True
        return _halved(result)


def _is_group(result: Any) -> bool:
    return isinstance(result, list | tuple)


def _has_constants(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether something that may be negative comes in beside the values: a term of a sum, a filling."""
    if any(not tensor.requires_grad for tensor in tensors_in([*args, *kwargs.values()])):
        return True
    if name == "pad":
        return len(args) > 2 or bool(kwargs)
    return name in ("add", "add_") and (bool(kwargs) or not all(isinstance(term, Tensor) for term in args))


def _halved(product: Tensor) -> Tensor:
    product.register_hook(lambda grad: grad * 0.5)  # type: ignore[no-untyped-call]
    return product


@dataclass(frozen=True, eq=False)
class _OfWeights:
    """A convolution or linear map taken apart."""

    call: Layer
    x: Tensor
    weight: Tensor
    bias: Tensor | None


def _layer(name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _OfWeights | None:
    if name == "matmul" and len(args) == 2 and args[1].ndim == 2 and not args[1].requires_grad:
        # As for a linear layer, an output's weights are a row.
        return _OfWeights(lambda x, weight, bias: x @ weight.transpose(0, 1), args[0], args[1].transpose(0, 1), None)
    if name not in ("linear", "conv1d", "conv2d"):
        return None
    given = dict(zip(("input", "weight", "bias", "stride", "padding", "dilation", "groups"), args, strict=False))
    given.update(kwargs)
    x, weight, bias = given.pop("input"), given.pop("weight"), given.pop("bias", None)
    return _OfWeights(lambda x, weight, bias: func(x, weight, bias, **given), x, weight, bias)
