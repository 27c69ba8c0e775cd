"""Where class activation maps attach: the target layer of a classifier, found by reading the model.

The rule: for transformers the input norm of the last block (what the CAM libraries and COSE use), tokens put
back on their grid; for everything else the last module, in execution order, that still gives a spatial map.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from salviz.classifiers.classifier import Classifier
from salviz.errors import MethodError

Layout = Literal["nchw", "nhwc", "tokens"]


@dataclass(frozen=True)
class TargetLayer:
    """A layer and how its activation becomes channel maps.

    Attributes:
        name: Dotted name in the module.
        layout: `nchw`, `nhwc` (Swin) or `tokens` (`(N, prefix + h*w, C)`).
        grid: `(h, w)` of the activation.
        prefix: Class and register tokens before the patch tokens.
        is_published: Whether it has to be taken from the published module, because folding batch norms changed or
            removed it.
    """

    name: str
    layout: Layout
    grid: tuple[int, int]
    prefix: int = 0
    is_published: bool = False

    def channel_maps(self, activation: Tensor) -> Tensor:
        """The activation (or its gradient) as `(N, C, h, w)`."""
        if self.layout == "nhwc":
            return activation.permute(0, 3, 1, 2)
        if self.layout == "tokens":
            patches = activation[:, self.prefix :]
            return patches.transpose(1, 2).reshape(len(patches), -1, *self.grid)
        return activation


class Capture:
    """Holds the activation of the target layer during one forward pass."""

    def __init__(self) -> None:
        self.activation: Tensor | None = None


@contextmanager
def cut_at(classifier: Classifier, layer: TargetLayer) -> Iterator[Capture]:
    """Make the layer's output a leaf: what comes before it builds no graph, what comes after does.

    With frozen parameters and an input that needs no gradient, autograd records nothing up to the leaf, so the
    trunk costs a plain forward and only the head is differentiated. The leaf is handed on as a clone, because
    some heads (DenseNet's) go on in place.
    """
    capture = Capture()

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        capture.activation = output.detach().requires_grad_(True)
        return capture.activation.clone()

    module = classifier.module if layer.is_published else classifier.runtime
    handle = module.get_submodule(layer.name).register_forward_hook(hook)
    try:
        yield capture
    finally:
        handle.remove()


_layers: weakref.WeakKeyDictionary[nn.Module, dict[str | None, TargetLayer]] = weakref.WeakKeyDictionary()


def target_layer(classifier: Classifier, name: str | None = None) -> TargetLayer:
    """The layer class activation maps of this classifier attach to.

    Args:
        classifier: Any classifier.
        name: Dotted module name that overrides the rule.

    Raises:
        MethodError: No layer with a spatial map, or the named one has none.
    """
    with classifier.lock:
        known = _layers.setdefault(classifier.module, {})
        if name not in known:
            found = _named(classifier, name) if name else _by_rule(classifier)
            is_gone = found.name in classifier.folded or _submodule(classifier.runtime, found.name) is None
            known[name] = replace(found, is_published=is_gone)
        return known[name]


def _by_rule(classifier: Classifier) -> TargetLayer:
    for candidate in ("blocks.{last}.norm1", "encoder.layers.{last}.ln_1"):
        stack = _submodule(classifier.module, candidate.split(".{last}")[0])
        if isinstance(stack, nn.Sequential | nn.ModuleList) and len(stack):
            last = [key for key, _ in stack.named_children()][-1]
            found = _tokens(classifier, candidate.format(last=last))
            if found is not None:
                return found
    swin = _swin_norm(classifier.module)
    if swin is not None:
        return _named(classifier, swin)
    shapes = _output_shapes(classifier)
    spatial = [name for name, shape in shapes if len(shape) == 4 and shape[2] * shape[3] > 1]
    if not spatial:
        raise MethodError(
            f"{classifier.title} has no layer with a spatial map, so class activation maps do not exist for it. "
            "Choose a gradient or perturbation method."
        )
    grid = next(shape[2:] for name, shape in reversed(shapes) if name == spatial[-1])
    return TargetLayer(spatial[-1], "nchw", (grid[0], grid[1]))


def _swin_norm(module: nn.Module) -> str | None:
    """Name of the first norm of the last block of a Swin transformer (timm's or torchvision's)."""
    if "swin" not in type(module).__name__.lower():
        return None
    norms = [name for name, _ in module.named_modules() if name.endswith(".norm1")]
    return norms[-1] if norms else None


def _tokens(classifier: Classifier, name: str) -> TargetLayer | None:
    """The layer as a sequence of tokens, or None where its output is none."""
    if _submodule(classifier.module, name) is None:
        return None
    shape = dict(_output_shapes(classifier)).get(name)
    if shape is None or len(shape) != 3:
        return None
    module, (height, width) = classifier.module, classifier.preprocessing.input_size
    patch_embed = getattr(module, "patch_embed", None) or getattr(module, "stem", None)  # Mixer: stem
    grid = getattr(patch_embed, "grid_size", None)
    if callable(getattr(patch_embed, "dynamic_feat_size", None)):
        grid = patch_embed.dynamic_feat_size((height, width))  # type: ignore[union-attr]
    if grid is None and isinstance(getattr(module, "patch_size", None), int):
        grid = (height // module.patch_size, width // module.patch_size)  # type: ignore[operator]
    if grid is None:
        return None
    cells = int(grid[0]) * int(grid[1])
    prefix = int(getattr(module, "num_prefix_tokens", shape[1] - cells))
    if prefix < 0 or prefix + cells != shape[1]:
        return None
    return TargetLayer(name, "tokens", (int(grid[0]), int(grid[1])), prefix)


def _named(classifier: Classifier, name: str) -> TargetLayer:
    if _submodule(classifier.module, name) is None:
        raise MethodError(
            f"{classifier.title} has no layer {name!r}. Leave the layer empty to use the one the rule finds."
        )
    shape = dict(_output_shapes(classifier)).get(name, ())
    if len(shape) == 4:
        # Channels lie last where the module is (in) a Swin-like net; there the side is the smaller number.
        if "swin" in type(classifier.module).__name__.lower() and shape[1] == shape[2]:
            return TargetLayer(name, "nhwc", (shape[1], shape[2]))
        return TargetLayer(name, "nchw", (shape[2], shape[3]))
    tokens = _tokens(classifier, name)
    if tokens is None:
        raise MethodError(
            f"The layer {name!r} of {classifier.title} gives no spatial map, so nothing can be drawn from it. "
            "Choose a convolution or a transformer block."
        )
    return tokens


def _submodule(module: nn.Module, name: str) -> nn.Module | None:
    try:
        return module.get_submodule(name)
    except AttributeError:
        return None


def _output_shapes(classifier: Classifier) -> list[tuple[str, tuple[int, ...]]]:
    """Names and output shapes of all modules in the order they finish, from one pass of a blank image."""
    shapes: list[tuple[str, tuple[int, ...]]] = []

    def note(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                shapes.append((name, tuple(output.shape)))

        return hook

    handles = [m.register_forward_hook(note(n)) for n, m in classifier.module.named_modules() if n]
    try:
        height, width = classifier.preprocessing.input_size
        with torch.no_grad():
            classifier.forward(torch.zeros(1, 3, height, width, device=classifier.device), is_published=True)
    finally:
        for handle in handles:
            handle.remove()
    return shapes
