"""Where class activation maps attach: the target layer of a classifier, found by reading the model.

The rule. For nets whose last block is a transformer's: the norm through which that block reads its input (what the CAM
libraries and COSE use), tokens put back on their grid; where the block normalises afterwards (Swin v2), what comes into
it. For everything else: the last module, in execution order, that still gives a spatial map.

What runs is watched rather than names believed: one pass of a blank image tells which modules give what, and in which
order. A four-dimensional output is a map only where its sides fit the image's, so that rows, columns and channels are
told apart and attention weights are taken for neither.
"""

from __future__ import annotations

import difflib
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from salviz.classifiers.classifier import Classifier
from salviz.errors import MethodError, Refusal

Layout = Literal["nchw", "nhwc", "tokens"]
_Shapes = list[tuple[str, tuple[int, ...]]]
_MOST_PREFIX = 16
"""Class and register tokens a sequence may begin with."""


@dataclass(frozen=True)
class TargetLayer:
    """A layer and how its activation becomes channel maps.

    Attributes:
        name: Dotted name in the module.
        layout: `nchw`, `nhwc` (Swin) or `tokens` (`(N, prefix + h*w, C)`).
        grid: `(h, w)` of the activation.
        channels: How many it has.
        prefix: Class and register tokens before the patch tokens.
        is_published: Whether it has to be taken from the published module, because folding batch norms changed or
            removed it.
    """

    name: str
    layout: Layout
    grid: tuple[int, int]
    channels: int
    prefix: int = 0
    is_published: bool = False

    def run(self, count: int) -> int:
        """How many channels run one by one where `count` are asked for; 0 stands for all."""
        return min(count or self.channels, self.channels)

    def channel_maps(self, activation: Tensor) -> Tensor:
        """The activation (or its gradient) as `(N, C, h, w)`."""
        if self.layout == "nhwc":
            return activation.permute(0, 3, 1, 2)
        if self.layout == "tokens":
            patches = activation[:, self.prefix :]
            return patches.transpose(1, 2).reshape(len(patches), -1, *self.grid)
        return activation


class Capture:
    """Holds the activation of the target layer during one forward pass.

    Attributes:
        output: As the layer gave it, with the trunk's graph where the input needs a gradient.
        activation: The same values as a leaf, on which the head grows.
    """

    def __init__(self) -> None:
        self.output: Tensor | None = None
        self.activation: Tensor | None = None


@contextmanager
def cut_at(classifier: Classifier, layer: TargetLayer) -> Iterator[Capture]:
    """Make the layer's output a leaf, so that the head's graph begins there.

    With frozen parameters and an input that needs no gradient, autograd records nothing up to the leaf, so the
    trunk costs a plain forward and only the head is differentiated. The leaf is handed on as a clone, because
    some heads (DenseNet's) go on in place.
    """
    capture = Capture()

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        capture.output = output
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
    if classifier.like is not None:
        return target_layer(classifier.like, name)
    known = _layers.get(classifier.module, {})
    if name in known:
        # Without the lock: somebody may explain the trained net while another asks for the layer of a randomised one.
        return known[name]
    with classifier.lock:
        known = _layers.setdefault(classifier.module, {})
        if name not in known:
            found = _named(classifier, name) if name else _by_rule(classifier)
            is_gone = found.name in classifier.folded or _submodule(classifier.runtime, found.name) is None
            known[name] = replace(found, is_published=is_gone)
        return known[name]


def known_layer(classifier: Classifier, name: str | None = None) -> TargetLayer | None:
    """`target_layer` for an estimate, which waits for nobody.

    Returns:
        None where there is no such layer, or where it is not known yet and somebody else holds the classifier's lock.
    """
    if classifier.like is not None:
        return known_layer(classifier.like, name)
    known = _layers.get(classifier.module, {})
    if name in known:
        return known[name]
    if not classifier.lock.acquire(blocking=False):
        return None
    try:
        return target_layer(classifier, name)
    except MethodError:
        return None
    finally:
        classifier.lock.release()


def _by_rule(classifier: Classifier) -> TargetLayer:
    shapes = _output_shapes(classifier)
    size = classifier.preprocessing.input_size
    block = _last_block(shapes, classifier.module)
    found = None if block is None else _block_input(classifier, shapes, block)
    if found is not None:
        return found
    # A map from before the last block would be one of edges; better none than that.
    since = 0 if block is None else next(i for i, (name, _) in enumerate(shapes) if _is_in(name, block))
    maps = []
    for name, shape in shapes[since:]:
        # Adaptive pools belong to the head: VGG's blows a map of another size up to 7 x 7.
        pools = isinstance(_submodule(classifier.module, name), nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d)
        layout = None if pools or _attention(name) is not None else _layout(shape, size)
        if layout is not None:
            maps.append((name, layout))
    if not maps:
        raise MethodError(
            f"{classifier.title} has no layer with a spatial map, so class activation maps do not exist for it. "
            "Choose a gradient or perturbation method."
        )
    name, layout = maps[-1]
    # A module may be used more than once; what it gave last is what the head saw.
    return _spatial(name, layout, dict(shapes)[name])


def _attention(name: str) -> int | None:
    """Depth at which a dotted name enters an attention, or None: 2 for `blocks.1.attn.proj`."""
    parts = name.split(".")
    for depth, part in enumerate(parts):
        # `cls_attn_blocks.1` is a block in a stack, not the attention in a block.
        is_stack = part.endswith("blocks") and parts[depth + 1 : depth + 2] != []
        if ("attn" in part or "attention" in part) and not is_stack:
            return depth
    return None


def _is_in(name: str, block: str) -> bool:
    return name.startswith(f"{block}.")


def _last_block(shapes: _Shapes, module: nn.Module) -> str | None:
    """Name of the last transformer or mixer block that ran; attention outside of one, as in a pool, is none."""
    for name, _ in reversed(shapes):
        depth = _attention(name)
        if depth:
            return ".".join(name.split(".")[:depth])
    stack = _submodule(module, "blocks")
    if isinstance(stack, nn.Sequential | nn.ModuleList) and len(stack):
        block = f"blocks.{[key for key, _ in stack.named_children()][-1]}"
        return block if any(_is_in(name, block) for name, _ in shapes) else None
    return None


def _block_input(classifier: Classifier, shapes: _Shapes, block: str) -> TargetLayer | None:
    """Where a block of a transformer reads its input, or None where it is none or a convolution comes after it."""
    size = classifier.preprocessing.input_size
    inside = [index for index, (name, _) in enumerate(shapes) if _is_in(name, block)]
    after = [name for name, _ in shapes[inside[-1] + 1 :]]
    if any(isinstance(_submodule(classifier.module, name), nn.Conv2d) for name in after):
        return None
    if any(_layout(shape, size) == "nchw" for name, shape in shapes if name == block):
        return None
    name, shape = shapes[inside[0]]
    if _attention(name) is None:
        return _place(classifier, name, shape)
    # It has no norm before its attention: its input is what the module before it gave.
    return _place(classifier, *shapes[inside[0] - 1]) if inside[0] else None


def _place(classifier: Classifier, name: str, shape: tuple[int, ...]) -> TargetLayer | None:
    """The layer of a name and output shape, or None where that is no map."""
    size = classifier.preprocessing.input_size
    layout = _layout(shape, size)
    if layout is not None:
        return _spatial(name, layout, shape)
    grid = _token_grid(classifier.module, size, shape[1]) if len(shape) == 3 and shape[0] == 1 else None
    return None if grid is None else TargetLayer(name, "tokens", grid, shape[2], shape[1] - grid[0] * grid[1])


def _spatial(name: str, layout: Layout, shape: tuple[int, ...]) -> TargetLayer:
    height, width, channels = shape[1:] if layout == "nhwc" else (*shape[2:], shape[1])
    return TargetLayer(name, layout, (height, width), channels)


def _layout(shape: tuple[int, ...], size: tuple[int, int]) -> Layout | None:
    """Which sides of a four-dimensional output are its rows and columns: those that shrank the image by one factor.

    Args:
        shape: Of an output for one image.
        size: `(height, width)` of the image.

    Returns:
        None where no two sides fit, or the map has a single cell.
    """
    if len(shape) != 4 or shape[0] != 1:
        return None
    sides: dict[Layout, tuple[int, int]] = {"nchw": (shape[2], shape[3]), "nhwc": (shape[1], shape[2])}
    # Convolutions without padding take more than a cell off; the channels are still far from the image's proportions.
    for fits in (_fits, _fits_roughly):
        for layout, grid in sides.items():
            if grid[0] * grid[1] > 1 and fits(grid, size):
                return layout
    return None


def _fits(grid: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether one stride explains both sides, give or take a cell: padding and rounding may add or cost one."""
    finest = max(length / (cells + 1) for length, cells in zip(size, grid, strict=True))
    coarsest = min(length / max(cells - 1, 0.5) for length, cells in zip(size, grid, strict=True))
    return finest < coarsest


def _fits_roughly(grid: tuple[int, int], size: tuple[int, int]) -> bool:
    stretch = grid[0] * size[1] / (grid[1] * size[0])
    return 2 / 3 < stretch < 3 / 2


def _token_grid(module: nn.Module, size: tuple[int, int], tokens: int) -> tuple[int, int] | None:
    """Grid of a sequence of tokens, of which the first few may be class and register tokens; None where none fits."""
    known = getattr(module, "num_prefix_tokens", None)
    grids = []
    patch_embed = getattr(module, "patch_embed", None) or getattr(module, "stem", None)  # Mixer: stem
    if callable(getattr(patch_embed, "dynamic_feat_size", None)):
        grids.append(patch_embed.dynamic_feat_size(size))  # type: ignore[union-attr]
    grids.append(getattr(patch_embed, "grid_size", None))
    if isinstance(getattr(module, "patch_size", None), int):
        grids.append((size[0] // module.patch_size, size[1] // module.patch_size))  # type: ignore[operator]
    for grid in grids:
        prefix = tokens - int(grid[0]) * int(grid[1]) if grid is not None else -1
        if grid is not None and 0 <= prefix <= _MOST_PREFIX and known in (None, prefix):
            return int(grid[0]), int(grid[1])
    # Nets that merge tokens on their way: the finest stride that fits both sides and leaves a few tokens at most.
    for stride in range(1, min(size) + 1):
        height, width = size[0] // stride, size[1] // stride
        is_whole = size[0] % stride == size[1] % stride == 0
        if is_whole and height * width > 1 and 0 <= tokens - height * width <= _MOST_PREFIX:
            return height, width
    return None


def _named(classifier: Classifier, name: str) -> TargetLayer:
    if _submodule(classifier.module, name) is None:
        size = classifier.preprocessing.input_size
        known = [path for path, shape in _output_shapes(classifier) if path and _layout(shape, size) is not None]
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known[-3:]
        raise Refusal(
            f"{classifier.title} has no layer {name!r}; there are {', '.join(close)} and others. Leave the layer empty "
            "to use the one the rule finds."
        )
    shape = dict(_output_shapes(classifier)).get(name, ())
    is_weights = _attention(name) is not None and len(shape) == 4
    found = None if is_weights else _place(classifier, name, shape)
    if found is None:
        raise Refusal(
            f"The layer {name!r} of {classifier.title} gives no spatial map, so nothing can be drawn from it. "
            "Choose a convolution or a transformer block."
        )
    return found


def _submodule(module: nn.Module, name: str) -> nn.Module | None:
    try:
        return module.get_submodule(name)
    except AttributeError:
        return None


def _output_shapes(classifier: Classifier) -> _Shapes:
    """Names and output shapes of all modules in the order they finish, from one pass of a blank image.

    The shape is empty where a module gave no tensor.
    """
    shapes: _Shapes = []

    def note(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            shapes.append((name, tuple(output.shape) if isinstance(output, Tensor) else ()))

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
