"""The module that computes: a classifier's batch norms folded into the convolutions before them.

In eval mode a batch norm is a fixed scale and shift of each channel, so `norm(conv(x))` is one convolution. Values and
gradients stay the same up to rounding, and a pass gets a third faster. The published module itself is left alone: it
holds the parameters that randomisation and checkpoints speak of.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from salviz.classifiers.blocked import Stretch, find, lay_out
from salviz.classifiers.lean import clip_after, lean

_TOLERANCE = 1e-4
"""Largest allowed difference of logits, as a share of their range: some ten times what rounding makes."""


@dataclass(frozen=True)
class Folding:
    """A net with batch norms folded away, and how that was done.

    Attributes:
        module: The copy, or the net itself where nothing could be folded.
        pairs: Names of the convolutions that also do the work of the norm after them, and of those norms.
        clips: Names of the convolutions that can do the work of the ReLU6 after them, and that ReLU6's bounds.
        blocked: Stretches that run in oneDNN's own layout where there is no graph.
    """

    module: nn.Module
    pairs: tuple[tuple[str, str], ...] = ()
    clips: tuple[tuple[str, float, float], ...] = ()
    blocked: tuple[Stretch, ...] = ()

    @property
    def convolutions(self) -> frozenset[str]:
        """Names of the convolutions that now give what their norm gave before."""
        return frozenset(conv for conv, _ in self.pairs)


def fold(module: nn.Module, size: tuple[int, int], *, like: Folding | None = None) -> Folding:
    """A copy with batch norms folded away wherever that is proven to change nothing.

    Pairs are found by running a picture through: a convolution used once, whose output goes into a batch norm used
    once. Whether anything else reads that output cannot be seen from outside, so the copy must give the same logits;
    else nothing is folded. Parameters that are not folded are shared with the original, not copied. Names of modules
    stay; a folded norm becomes what followed inside it (nothing, or timm's activation).

    Args:
        module: Eval-mode, frozen; `(N, 3, H, W)` -> `(N, K)`. Not changed.
        size: `(height, width)` of its input.
        like: Of a net with the same layers and other weights: its pairs are tried first, and where it has none nothing
            is folded, so that a layer's name means the same in both.

    Returns:
        What came of it.
    """
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    where = next(module.parameters(), torch.zeros(0)).device
    cannot = not norms or where.type == "meta" or any(norm.training or not _is_fixed(norm) for norm in norms)
    if cannot or (like is not None and not like.pairs):
        return Folding(module)
    picture = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(
        where, next(module.parameters()).dtype
    )
    with torch.no_grad():
        expected = module(picture)
        if like is not None:
            found = _laid_out(_folded(module, like.pairs, like.clips), like.blocked)
            if _is_same_net(expected, found.module, picture):
                return found
        # Convolutions that only pad in their own way can be folded; those that change their weights cannot. They are
        # told apart by trying.
        for is_exact in (False, True):
            pairs = _pairs(module, picture, is_exact=is_exact)
            if not pairs:
                break
            found = _folded(module, pairs)
            clips = _clips(found.module, [conv for conv, _ in pairs], picture)
            found = _clipped(found, clips)
            if _is_same_net(expected, found.module, picture):
                stretches = find(found.module, picture)
                if not stretches or _is_same_net(expected, _laid_out(found, stretches).module, picture):
                    return replace(found, blocked=stretches)
                return _folded(module, pairs, clips)
    return Folding(module)


def _folded(
    module: nn.Module, pairs: Sequence[tuple[str, str]], clips: Sequence[tuple[str, float, float]] = ()
) -> Folding:
    """A lean copy with these pairs folded, which shares what it can."""
    shared = {id(value): value for value in [*module.parameters(), *module.buffers()]}
    copied = copy.deepcopy(module, dict(shared))
    for conv_name, norm_name in pairs:
        _fold_pair(copied, conv_name, norm_name)
    lean(copied)
    return _clipped(Folding(copied, tuple(pairs)), clips)


def _clipped(folding: Folding, clips: Sequence[tuple[str, float, float]]) -> Folding:
    for name, low, high in clips:
        clip_after(folding.module.get_submodule(name), low, high)
    return replace(folding, clips=tuple(clips))


def _laid_out(folding: Folding, found: tuple[Stretch, ...]) -> Folding:
    lay_out(folding.module, found)
    return replace(folding, blocked=found)


def _is_same_net(expected: Tensor, folded: nn.Module, picture: Tensor) -> bool:
    """Whether a copy gives these logits, in both layouts, because each has ways of its own."""
    lasts = picture.contiguous(memory_format=torch.channels_last)
    return _is_same(expected, folded(picture)) and _is_same(expected, folded(lasts))


def _clips(module: nn.Module, convs: Sequence[str], picture: Tensor) -> list[tuple[str, float, float]]:
    """Those convolutions whose output goes into a ReLU6 in place as it is, and that ReLU6's bounds."""
    made: dict[int, tuple[str, int]] = {}
    alive: list[Tensor] = []
    found: list[tuple[str, float, float]] = []

    def after(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(part: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            made[id(output)] = name, output._version
            alive.append(output)

        return hook

    def before(part: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        name, version = made.get(id(inputs[0]), ("", 0))
        # A residual that was added in place is another value in the same tensor.
        if name and inputs[0]._version == version:
            assert isinstance(part, nn.ReLU6)  # noqa: S101 - where the hook stands
            found.append((name, part.min_val, part.max_val))

    handles = [module.get_submodule(name).register_forward_hook(after(name)) for name in convs]
    handles += [
        part.register_forward_pre_hook(before)
        for part in module.modules()
        if isinstance(part, nn.ReLU6) and part.inplace
    ]
    try:
        module(picture)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _is_same(before: Tensor, after: Tensor) -> bool:
    span = (before.amax() - before.amin()).clamp(min=1e-6)
    return bool((before - after).abs().amax() <= _TOLERANCE * span)


def _is_fixed(norm: nn.BatchNorm2d) -> bool:
    return norm.running_mean is not None and norm.running_var is not None


def _pairs(module: nn.Module, picture: Tensor, *, is_exact: bool) -> list[tuple[str, str]]:
    """Names of convolutions and of the norms their outputs go into, each used once.

    Args:
        module: The net.
        picture: To run through it.
        is_exact: Only `nn.Conv2d` itself, none of its subclasses.
    """
    calls: Counter[str] = Counter()
    makers: dict[int, str] = {}
    alive: list[Tensor] = []  # an id is only good while its tensor lives
    found: list[tuple[str, str]] = []

    def after_conv(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(part: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            calls[name] += 1
            makers[id(output)] = name
            alive.append(output)

        return hook

    def before_norm(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(part: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            calls[name] += 1
            maker = makers.get(id(inputs[0]))
            if maker is not None:
                found.append((maker, name))

        return hook

    handles = []
    for name, part in module.named_modules():
        if type(part) is nn.Conv2d or (isinstance(part, nn.Conv2d) and not is_exact):
            handles.append(part.register_forward_hook(after_conv(name)))
        elif isinstance(part, nn.BatchNorm2d):
            handles.append(part.register_forward_pre_hook(before_norm(name)))
    try:
        module(picture)
    finally:
        for handle in handles:
            handle.remove()
    return [(conv, norm) for conv, norm in found if calls[conv] == calls[norm] == 1]


def _fold_pair(module: nn.Module, conv_name: str, norm_name: str) -> None:
    conv, norm = module.get_submodule(conv_name), module.get_submodule(norm_name)
    assert isinstance(conv, nn.Conv2d)  # noqa: S101 - `_pairs` looked
    assert isinstance(norm, nn.BatchNorm2d)  # noqa: S101
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None  # noqa: S101 - `_is_fixed` looked
    assert variance is not None  # noqa: S101
    scale = norm.weight if norm.affine else torch.ones_like(mean)
    shift = norm.bias if norm.affine else torch.zeros_like(mean)
    # In float64 and rounded once; on the CPU, because MPS has no float64.
    parts = [conv.weight, conv.bias, mean, variance, norm.eps, scale, shift]
    wide = [part.detach().to("cpu", torch.float64) if isinstance(part, Tensor) else part for part in parts]
    weight, bias = fuse_conv_bn_weights(*wide)  # type: ignore[arg-type]
    # `empty_like` keeps the memory layout.
    new_weight = torch.empty_like(conv.weight).copy_(weight)
    new_bias = torch.empty_like(new_weight[:, 0, 0, 0]).copy_(bias)
    conv.weight = nn.Parameter(new_weight, requires_grad=False)
    conv.bias = nn.Parameter(new_bias.contiguous(), requires_grad=False)
    # timm's norms carry their activation with them.
    rest = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if isinstance(part, nn.Module)]
    rest = [part for part in rest if not isinstance(part, nn.Identity)]
    parent, _, name = norm_name.rpartition(".")
    replacement = rest[0] if len(rest) == 1 else nn.Sequential(*rest)
    setattr(module.get_submodule(parent), name, replacement if rest else nn.Identity())
