"""Stretches of a net that run in oneDNN's own layout of activations, where there is no graph.

oneDNN computes fastest on tensors that hold eight or sixteen channels of a pixel side by side: a depthwise convolution
in half the time that it takes with channels last. PyTorch hands out such tensors (`Tensor.to_mkldnn`), but only some
layers take them. So a net's layers are tried, and where a stretch of them takes such a tensor and gives the same
numbers, its input is laid out that way once and its output laid back. Whoever hooks a layer sees plain tensors: there
the stretch is interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from salviz.classifiers.lean import FUSED, is_free

_TOLERANCE = 1e-4
"""Largest allowed difference of a layer's output, as a share of its range: some ten times what rounding makes."""

_MOST = 0.9
"""Share of a net's convolutions that a stretch must have: several short ones lose more at their ends than they gain."""
_FEWEST = 2
"""Convolutions for which it is worth laying anything out."""

Stretch = tuple[str, ...]
"""Names of modules that are called one after the other, each with the output of the one before."""


class _Part:
    """One module of a stretch.

    Attributes:
        inside: The module and all its own.
        convolutions: How many of them are.
        following: The next one.
        whole: Of an outer stretch, the one that this one is a piece of.
    """

    following: _Part | None = None

    def __init__(self, module: nn.Module, whole: _Part | None) -> None:
        self.inside = tuple(module.modules())
        self.convolutions = _convolutions([module])
        self.whole = whole

    def is_watched(self) -> bool:
        """Whether somebody wants to see or to replace what a module in it gives."""
        return any(part._forward_hooks or part._forward_pre_hooks or "forward" in part.__dict__ for part in self.inside)

    def is_worth(self) -> bool:
        """Whether there are enough convolutions from here to the end or to somebody who watches."""
        count, part = 0, self
        while count < _FEWEST and not part.is_watched():
            count += part.convolutions
            if part.following is None:
                break
            part = part.following
        return count >= _FEWEST

    def is_end(self) -> bool:
        """Whether what comes next takes plain tensors. Where the outer stretch goes on, so does this one."""
        if self.following is not None:
            return self.following.is_watched()
        return self.whole is None or self.whole.is_watched()


class _Blocked(nn.Module):
    """A module of a stretch; mixed into its class."""

    _part: _Part

    def forward(self, x: Tensor) -> Tensor:
        """As the module's own."""
        if not x.is_mkldnn and is_free(x) and self._part.is_worth():
            x = x.to_mkldnn()
        result: Tensor = super().forward(x)
        if not result.is_mkldnn or not self._part.is_end():
            return result
        result = result.to_dense()
        return result.contiguous(memory_format=torch.channels_last) if result.ndim == 4 else result


@cache
def _blocked(kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (_Blocked, kind), {"__module__": kind.__module__})


def lay_out(module: nn.Module, stretches: Sequence[Stretch]) -> None:
    """Let stretches of a net run in oneDNN's layout wherever nobody looks.

    Args:
        module: Nobody else's: the modules of its stretches get another class, a subclass of their own.
        stretches: From `find`, of this net or of one with the same layers.
    """
    parts: dict[str, _Part] = {}
    for stretch in stretches:
        last: _Part | None = None
        for name in stretch:
            child = module.get_submodule(name)
            whole = next((parts[outer] for outer in reversed(parts) if name.startswith(f"{outer}.")), None)
            part = parts[name] = _Part(child, whole)
            child.__class__ = _blocked(type(child))  # type: ignore[arg-type]
            # Past `nn.Module`, which would take the modules in it for the child's own.
            child.__dict__["_part"] = part
            if last is not None:
                last.following = part
            last = part


def takes(module: nn.Module, stretches: Sequence[Stretch], x: Tensor) -> bool:
    """Whether the first of a net's stretches will lay a tensor out, so that nobody need do so before.

    Args:
        module: As `lay_out` has left it.
        stretches: Its.
        x: What is given to the net, as it is given to its first layer.
    """
    if not stretches or not is_free(x):
        return False
    part: _Part = module.get_submodule(stretches[0][0])._part  # type: ignore[assignment]
    return part.is_worth()


def find(module: nn.Module, picture: Tensor) -> tuple[Stretch, ...]:
    """The stretches of a net that run in oneDNN's layout with the same outputs, found by trying.

    Args:
        module: Lean, in eval mode.
        picture: `(N, 3, H, W)` to run through it.

    Returns:
        The longest one, then one within that module of it that has nearly all of the net, if there is one, and so on:
        it serves when somebody watches within that module. None where the longest is short.
    """
    if FUSED is None or picture.device.type != "cpu":
        return ()
    found: list[Stretch] = []
    with torch.no_grad():
        calls = _record(module, picture.contiguous(memory_format=torch.channels_last))
        enough = max(_MOST * _convolutions([module]), _FEWEST)
        children = dict(module.named_children())
        while children:
            runs = _runs(children, calls)
            found += [tuple(run) for run in runs if _convolutions(children[name] for name in run) >= enough]
            deeper = next((name for name, part in children.items() if _convolutions([part]) >= enough), None)
            inner = [] if deeper is None else children[deeper].named_children()
            children = {f"{deeper}.{name}": part for name, part in inner}
    return tuple(found)


def _convolutions(parts: Iterable[nn.Module]) -> int:
    return sum(isinstance(inner, nn.Conv2d) for part in parts for inner in part.modules())


@dataclass(frozen=True)
class _Call:
    """What a module was called with and gave, the first time; `follows` is the module whose output it was given."""

    x: Tensor
    result: Tensor
    follows: str | None


def _record(module: nn.Module, picture: Tensor) -> dict[str, _Call]:
    """Every module that is called once with one tensor and gives one, in the order of the calls."""
    begun: dict[str, tuple[Tensor, str | None]] = {}
    calls: dict[str, _Call] = {}
    makers: dict[int, tuple[str, int]] = {}
    alive: list[Tensor] = []  # an id is only good while its tensor lives
    odd: set[str] = set()

    def before(name: str) -> Callable[..., None]:
        def note(part: nn.Module, inputs: tuple[Any, ...]) -> None:
            if name in begun:
                odd.add(name)
            if len(inputs) == 1 and isinstance(inputs[0], Tensor):
                (x,) = inputs
                maker, version = makers.get(id(x), (None, 0))
                # What was changed in place since is another value in the same tensor.
                begun[name] = x.clone(), maker if version == x._version else None
            else:
                odd.add(name)

        return note

    def after(name: str) -> Callable[..., None]:
        def note(part: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and name in begun:
                x, follows = begun[name]
                calls[name] = _Call(x, output.clone(), follows)
                makers[id(output)] = name, output._version
                alive.append(output)

        return note

    handles = []
    for name, part in module.named_modules():
        if name:
            handles += [part.register_forward_pre_hook(before(name)), part.register_forward_hook(after(name))]
    try:
        module(picture)
    finally:
        for handle in handles:
            handle.remove()
    return {name: calls[name] for name in begun if name in calls and name not in odd}


def _runs(children: dict[str, nn.Module], calls: dict[str, _Call]) -> list[list[str]]:
    """Modules that follow each other and take what the one before gives in oneDNN's layout."""
    runs: list[list[str]] = [[]]
    value: Tensor | None = None
    for name in (name for name in calls if name in children):
        call = calls[name]
        # Goes on from the tensor that the one before has really given, with what it may have noted on it.
        if value is not None:
            value = _tried(children[name], value, call) if call.follows == runs[-1][-1] else None
        if value is None:
            runs.append([])
            value = _tried(children[name], call.x, call) if call.x.ndim == 4 else None
        if value is not None:
            runs[-1].append(name)
    return runs


def _tried(part: nn.Module, x: Tensor, call: _Call) -> Tensor | None:
    """What a module makes of a tensor in oneDNN's layout, if it can, and it is what it made before."""
    try:
        result: object = part(x if x.is_mkldnn else x.to_mkldnn())
        if not isinstance(result, Tensor) or not result.is_mkldnn:
            return None
        found, expected = result.to_dense(), call.result
    except (RuntimeError, TypeError, ValueError):
        return None
    span = (expected.amax() - expected.amin()).clamp(min=1e-6)
    is_same = found.shape == expected.shape and bool((found - expected).abs().amax() <= _TOLERANCE * span)
    return result if is_same else None
