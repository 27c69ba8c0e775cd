"""Layers that compute what the libraries' own compute, with fewer copies of their tensors.

Early activations of a batch are far larger than any cache: a copy of one can take as long as the convolution it is for.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function_unary

# PyTorch's compiler calls it; on other builds there is none.
FUSED: Any = getattr(torch.ops.mkldnn, "_convolution_pointwise", None)
"""oneDNN's convolution with an activation at its end, or None."""


def clip_after(conv: nn.Module, low: float, high: float) -> None:
    """Let a convolution do the work of the ReLU6 after it where no gradient is asked for: one way through memory less.

    Args:
        conv: Of a lean net, followed by a lean ReLU6 that alone reads what it makes. Nobody else's.
        low: The ReLU6's bounds.
        high: As above.
    """
    if isinstance(conv, _Conv2d | _Conv2dSame):
        conv.bounds = low, high


def is_free(x: Tensor) -> bool:
    """Whether oneDNN may be called by its own name, with whatever layout suits it.

    Not where somebody asks for a gradient or for half precision, or watches the calls: methods that look at a net's
    calls see those they know.
    """
    return (
        FUSED is not None
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.ndim == 4
        and not (torch.is_grad_enabled() and x.requires_grad)
        and not torch.is_autocast_enabled("cpu")
        and not torch.is_inference_mode_enabled()
        and not has_torch_function_unary(x)
        and torch._C._len_torch_dispatch_stack() == 0
    )


def _fused(
    conv: nn.Conv2d, x: Tensor, weight: Tensor, padding: list[int], bounds: tuple[float, float] | None
) -> Tensor | None:
    """The convolution in one call of oneDNN's, marked where it is clipped; None where PyTorch has to make it."""
    is_ours = bounds is not None and is_free(x) and x.is_contiguous(memory_format=torch.channels_last)
    # What `blocked` has laid out no other call takes.
    if not x.is_mkldnn and not is_ours:
        return None
    activation, scalars = ("none", []) if bounds is None else ("hardtanh", list(bounds))
    result: Tensor = FUSED(
        x, weight, conv.bias, padding, conv.stride, conv.dilation, conv.groups, activation, scalars, ""
    )
    if bounds is not None:
        # The ReLU6 that comes next has nothing left to do. What is made of the tensor does not inherit the mark, and
        # whatever writes into it raises the version, so that it means nothing any more.
        result._clipped_at = result._version  # type: ignore[attr-defined]
    return result


class _Conv2d(nn.Conv2d):
    """One that can clip what it makes, see `clip_after`, and takes what `blocked` has laid out."""

    bounds: tuple[float, float] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` -> `(N, K, h, w)`."""
        result = _fused(self, x, self.weight, list(self.padding), self.bounds)  # type: ignore[arg-type]
        return super().forward(x) if result is None else result


def lean(module: nn.Module) -> None:
    """Change the layers of a net to those of this file.

    Args:
        module: Nobody else's: its layers get another class, which is a subclass of their own.
    """
    for part in module.modules():
        if type(part) is Conv2dSame:
            part.__class__ = _Conv2dSame
        elif type(part) is nn.Conv2d and part.padding_mode == "zeros" and not isinstance(part.padding, str):
            part.__class__ = _Conv2d
        elif type(part) is nn.ReLU6 and part.inplace:
            part.__class__ = _ReLU6


class _Conv2dSame(Conv2dSame):
    """TensorFlow's padding without a padded copy of the input.

    It pads one pixel more on the right than on the left, which no convolution does by itself. With a row and a column
    of zeros before its kernel it may begin a pixel earlier and pad both sides alike.
    """

    bounds: tuple[float, float] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` -> `(N, K, ceil(H / stride), ceil(W / stride))`."""
        missing = [
            max((-(-length // stride) - 1) * stride + (kernel - 1) * dilation + 1 - length, 0)
            for length, kernel, stride, dilation in zip(
                x.shape[2:], self.kernel_size, self.stride, self.dilation, strict=True
            )
        ]
        uneven = [pixels % 2 for pixels in missing]
        if any(uneven) and self.dilation != (1, 1):
            return self._cut(x, missing)
        padding = [pixels // 2 + is_uneven for pixels, is_uneven in zip(missing, uneven, strict=True)]
        weight: Tensor = self.weight
        if any(uneven):
            weight = F.pad(weight, (uneven[1], 0, uneven[0], 0))
            # For methods that look at a net's calls, see `kernel_of_ones`.
            weight._unseen = uneven  # type: ignore[attr-defined]
        result = _fused(self, x, weight, padding, self.bounds)
        if result is not None:
            return result
        return F.conv2d(x, weight, self.bias, self.stride, padding, self.dilation, self.groups)

    def _cut(self, x: Tensor, missing: list[int]) -> Tensor:
        """The same with the kernel as it is: padded by a stride more, behind a row and a column that are dropped."""
        padding: list[int] = []
        kept: list[slice] = []
        for length, stride, pixels in zip(x.shape[2:], self.stride, missing, strict=True):
            is_uneven, count = pixels % 2, -(-length // stride)
            padding.append(pixels // 2 + is_uneven * stride)
            kept.append(slice(is_uneven, count + is_uneven))
        wide = F.conv2d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)
        result = wide[:, :, kept[0], kept[1]]
        # What writes into a view costs the way back more than a copy: where the layer strides, of a quarter of the
        # input that would have been padded.
        return result.clone() if result.requires_grad else result


def kernel_of_ones(weight: Tensor) -> Tensor:
    """Ones in the place of a layer's weights, but for the zeros that a lean layer has put before its kernel."""
    ones = torch.ones_like(weight)
    rows, columns = getattr(weight, "_unseen", (0, 0))
    ones[..., :rows, :] = 0
    ones[..., :columns] = 0
    return ones


class _ReLU6(nn.ReLU6):
    """A ReLU6 in place that does not keep what it overwrites.

    PyTorch's own way back asks for the input, so that under autograd its in-place form begins with a copy. The output
    says as well where the gradient passes.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, overwritten."""
        clipped_at = getattr(x, "_clipped_at", None)
        if clipped_at is not None and clipped_at == x._version:
            return x
        if has_torch_function_unary(x):
            # Methods that look at a net's calls see the one they know.
            seen: Tensor = handle_torch_function(F.hardtanh, (x,), x, self.min_val, self.max_val, True)
            return seen
        return clip_(x, self.min_val, self.max_val)


def clip_(x: Tensor, low: float, high: float) -> Tensor:
    """Values between two bounds, written over `x` where autograd lets it: a clamp that keeps nothing but its output."""
    if torch.is_grad_enabled() and x.requires_grad and not (x.is_leaf or x._is_view()):
        result: Tensor = _Clip.apply(x, low, high)
        return result
    return F.hardtanh(x, low, high, inplace=not x.requires_grad)


class _Clip(torch.autograd.Function):
    """`clamp_` that remembers its output alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        x.clamp_(low, high)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        ctx.bounds = low, high
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (result,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(grad, result, *ctx.bounds), None, None
