"""The attention maps of a transformer, however its blocks compute them, with their gradients.

Maps are caught where a softmax makes them: written out by the net itself (timm's eager path), or inside the fused
functions of PyTorch, which are taken apart for the pass (timm's fused path, torchvision's `nn.MultiheadAttention`,
whose inference fast path is off while a mode sees its calls). No module is hooked or changed.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from salviz.classifiers.classifier import Classifier
from salviz.classifiers.layers import TargetLayer, target_layer
from salviz.errors import MethodError
from salviz.methods.unfused import UNFUSED
from salviz.targets import Target
from salviz.work import Work

_SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)


class AttentionMode(TorchFunctionMode):
    """Keeps what `keep` makes of every square attention map of a forward pass, in order.

    Where gradients are on, the first map is a leaf of the graph (as nothing before it needs a gradient), so that what
    comes before it is not differentiated. Attention of other shapes, such as that of a pooling token, is left alone.

    Attributes:
        kept: What `keep` made of each `(N, heads, T, T)` map.
    """

    def __init__(self, keep: Callable[[Tensor], Tensor] = lambda attention: attention) -> None:
        super().__init__()
        self.keep = keep
        self.kept: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Take fused attention apart, keep softmaxes, pass everything else on."""
        kwargs = kwargs or {}
        if func in UNFUSED:
            with self:
                return UNFUSED[func](*args, **kwargs)
        result = func(*args, **kwargs)
        if func in _SOFTMAX and result.ndim == 4 and result.shape[-1] == result.shape[-2]:
            if torch.is_grad_enabled() and not result.requires_grad:
                result.requires_grad_(True)
            self.kept.append(self.keep(result))
        return result


@dataclass(frozen=True, eq=False)
class Layout:
    """How the attention of a transformer is read.

    Attributes:
        layer: Its last block's norm: where the patches lie in the sequence of T tokens and on the image.
        blocks: Dotted name of the container of its blocks.
        depth: Number of blocks, each with one attention map.
        queries: `(T,)` share that each token has in what the head reads: 1 for the class token where the head reads it
            alone, else the mean of the tokens it reads (all patches under mean pooling).
    """

    layer: TargetLayer
    blocks: str
    depth: int
    queries: Tensor

    def grid(self, relevance: Tensor) -> Tensor:
        """The patches' part of `(N, T)` relevances on their grid: `(N, h, w)`."""
        return relevance[:, self.layer.prefix :].reshape(-1, *self.layer.grid)


_layouts: weakref.WeakKeyDictionary[nn.Module, Layout] = weakref.WeakKeyDictionary()


def layout(classifier: Classifier) -> Layout:
    """How to read a classifier's attention, found from one pass of a noise image and remembered.

    Raises:
        MethodError: It has no attention between all patches of the image.
    """
    with classifier.lock:
        if classifier.module not in _layouts:
            _layouts[classifier.module] = _find(classifier)
        return _layouts[classifier.module]


def needs_attention(classifier: Classifier) -> str | None:
    """Why attention cannot explain a classifier, or None."""
    try:
        layout(classifier)
    except MethodError as error:
        return str(error)
    return None


def _find(classifier: Classifier) -> Layout:
    choose = "Choose Grad-CAM or a gradient method instead."
    height, width = classifier.preprocessing.input_size
    # Noise, because equal patches would leave attention without a gradient.
    noise = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0)).to(classifier.device)
    with torch.enable_grad(), AttentionMode() as seen:
        logits = classifier.forward(noise)
    if not seen.kept:
        raise MethodError(
            f"{classifier.title} has no attention between all patches of the image, so there is none to show. {choose}"
        )
    found = _stack(classifier, seen.kept)
    if found is None:
        raise MethodError(
            f"{classifier.title} has no plain stack of blocks that attend over the whole image (some attend within "
            f"windows, over channels or side by side), so its attention cannot be followed to the patches. {choose}"
        )
    layer, blocks = found
    (gradient,) = torch.autograd.grad(logits.square().sum(), seen.kept[-1])
    # What a token attends to in the last block reaches the logits only if the head reads the token.
    is_read = (gradient.abs().sum(dim=(0, 1, 3)) > 0).float()
    first = torch.zeros_like(is_read)
    first[:1] = 1.0
    is_read = torch.where(is_read.sum() > 0, is_read, first)
    return Layout(layer, blocks, len(seen.kept), is_read / is_read.sum())


def _stack(classifier: Classifier, maps: list[Tensor]) -> tuple[TargetLayer, str] | None:
    """Where the patches lie and the container of the blocks, where every block attends once over all tokens."""
    try:
        layer = target_layer(classifier)
    except MethodError:
        return None
    tokens = layer.prefix + layer.grid[0] * layer.grid[1]
    if layer.layout != "tokens" or any(m.shape[0] != 1 or m.shape[-1] != tokens for m in maps):
        return None
    parts = layer.name.split(".")
    for name in (".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1)):
        container = classifier.runtime.get_submodule(name)
        if isinstance(container, nn.Sequential | nn.ModuleList) and len(container) == len(maps):
            return layer, name
    return None


def attention(
    classifier: Classifier, x: Tensor, work: Work, name: str, keep: Callable[[Tensor], Tensor]
) -> tuple[list[Tensor], Tensor]:
    """What `keep` makes of every block's attention, and the logits, from one forward pass made once.

    Args:
        classifier: The model; its lock is held by the caller.
        x: `(N, 3, H, W)`.
        work: Progress, and what others found.
        name: Says what `keep` does.
        keep: `(N, heads, T, T)` -> what is kept of it.

    Returns:
        One tensor a block, first block first; `(N, K)` logits.
    """

    def compute() -> tuple[list[Tensor], Tensor]:
        with torch.no_grad(), AttentionMode(keep) as seen:
            logits = classifier.forward(x)
        work.tick(len(x))
        return seen.kept, logits.float()

    return work.once(("attention", name), compute)


@dataclass(frozen=True, eq=False)
class WeighedAttention:
    """A block's attention times its gradient, both heads' means.

    Attributes:
        mean: `(N, T, T)` mean over heads of gradient x attention.
        positive: `(N, T, T)` mean over heads of its positive part.
    """

    mean: Tensor
    positive: Tensor


def weighed_attention(
    classifier: Classifier, x: Tensor, target: Target, work: Work
) -> tuple[list[WeighedAttention], Tensor]:
    """Every block's attention weighed with the score's gradient, from one forward and one backward made once.

    Returns:
        One entry a block, first block first; `(N, K)` logits.
    """

    def compute() -> tuple[list[WeighedAttention], Tensor]:
        with torch.enable_grad(), AttentionMode() as seen:
            logits = classifier.forward(x)
            score = target.resolve(logits).score(logits)
        gradients = torch.autograd.grad(score.sum(), seen.kept)
        found = []
        for weight, gradient in zip(seen.kept, gradients, strict=True):
            product = weight.detach() * gradient
            found.append(WeighedAttention(product.mean(dim=1), product.clamp(min=0).mean(dim=1)))
        work.tick(2 * len(x))
        return found, logits.detach()

    return work.once("attention gradients", compute)
