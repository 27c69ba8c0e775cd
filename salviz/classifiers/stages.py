"""The stages of a net: its parameters cut into parts that are randomised one after the other.

A stage is a block of the architecture, or a layer between blocks. Stages stand in the order in which a forward pass
first uses their parameters, not in the order of registration, and every parameter belongs to exactly one: class tokens,
position tables and layer scales too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from salviz.classifiers.classifier import Classifier

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Stage:
    """A part of a net.

    Attributes:
        name: Of the module, as in `named_modules`; for parameters that the net itself holds, theirs.
        parameters: Names as in `named_parameters`, in order of registration.
        is_used: Whether a forward pass in eval mode uses any of them (auxiliary heads are not).
    """

    name: str
    parameters: tuple[str, ...]
    is_used: bool = True


class _FirstUse(TorchFunctionMode):
    """Notes when a pass first hands each parameter to a function."""

    def __init__(self, parameters: dict[int, str]) -> None:
        super().__init__()
        self._wanted = dict(parameters)
        self.order: dict[str, int] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Look at what the call is given."""
        for value in tensors_in((*args, *(kwargs or {}).values())):
            name = self._wanted.pop(id(value), None)
            if name is not None:
                self.order[name] = len(self.order)
        return func(*args, **(kwargs or {}))


def tensors_in(values: Any) -> Iterator[Tensor]:
    """The tensors among the arguments of a call, lists and tuples looked into."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)


def find_stages(classifier: Classifier) -> tuple[Stage, ...]:
    """The stages of a classifier, from the logits down to the input.

    Args:
        classifier: A copy of it without values is run, once while it lives; it is not touched itself unless that
            fails.

    Returns:
        A partition of the parameters; what no pass uses comes last, as one stage of its own.
    """
    if classifier not in _known:
        _known[classifier] = _found(classifier)
    return _known[classifier]


_known: WeakKeyDictionary[Classifier, tuple[Stage, ...]] = WeakKeyDictionary()


def _found(classifier: Classifier) -> tuple[Stage, ...]:
    # A copy without values costs nothing to run, and nobody needs to wait for work on the net itself to end.
    try:
        module = _without_values(classifier.module)
        order = _order(module, classifier)
    except (RuntimeError, NotImplementedError):
        # Some nets look at values on their way.
        module = classifier.module
        with classifier.lock:
            order = _order(module, classifier)
    names = [name for name, _ in module.named_parameters()]
    used: list[tuple[str, tuple[str, ...]]] = []
    unused: list[tuple[str, tuple[str, ...]]] = []
    known = set(names)
    for name, given in _units(module, ""):
        # A parameter that is shared goes by one name, with the module that was registered first.
        members = tuple(member for member in given if member in known)
        if not members:
            continue
        (used if any(member in order for member in members) else unused).append((name, members))
    used.sort(key=lambda unit: min(order.get(member, len(names)) for member in unit[1]))
    found = [Stage(name, members) for name, members in _joined(used, dict(module.named_modules()))][::-1]
    if unused:
        found.append(Stage("not used", tuple(member for _, members in unused for member in members), is_used=False))
    if sorted(member for stage in found for member in stage.parameters) != sorted(names):
        raise AssertionError(f"the stages of {classifier.title} are no partition of its parameters")
    return tuple(found)


def _without_values(module: nn.Module) -> nn.Module:
    """A copy on the meta device, made without copying a number; what is shared stays shared."""
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
        for parameter in module.parameters()
    }
    memo |= {id(buffer): buffer.to("meta") for buffer in module.buffers()}
    return copy.deepcopy(module, memo)


def _order(module: nn.Module, classifier: Classifier) -> dict[str, int]:
    """When a forward pass first uses each parameter; what it does not use is missing."""
    first_use = _FirstUse({id(parameter): name for name, parameter in module.named_parameters()})
    height, width = classifier.preprocessing.input_size
    grey = torch.zeros(1, 3, height, width, device=next(module.parameters()).device)
    if classifier.channels_last:
        grey = grey.contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), first_use:
        module(grey)
    return first_use.order


def _units(module: nn.Module, prefix: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Blocks and layers, with the names of their parameters."""
    own = tuple(prefix + name for name, _ in module.named_parameters(recurse=False))
    if own:
        # Tokens and tables of the net itself are a stage together.
        yield ", ".join(own), own
    for name, child in module.named_children():
        path = prefix + name
        members = tuple(f"{path}.{inner}" for inner, _ in child.named_parameters())
        if not members:
            continue
        if _is_made_of_blocks(child):
            yield from _units(child, path + ".")
        else:
            yield path, members


def _is_made_of_blocks(module: nn.Module) -> bool:
    """Whether a module is a row of blocks, or layers, rather than one of them."""
    if isinstance(module, _CONTAINERS):
        # A convolution with its norm and activation is one layer.
        layers = [part for part in module.modules() if any(p.ndim > 1 for p in part.parameters(recurse=False))]
        return len(layers) > 1
    # A module with a row of blocks inside, such as a stage with its downsampling or an encoder with its norm. Blocks
    # have rows inside too, but of layers.
    return any(
        isinstance(child, _CONTAINERS)
        and len(child) > 0
        and len({type(part) for part in child.children()}) == 1
        and all(not isinstance(part, _CONTAINERS) and any(True for _ in part.children()) for part in child.children())
        for child in module.children()
    )


def _joined(
    units: list[tuple[str, tuple[str, ...]]], modules: dict[str, nn.Module]
) -> list[tuple[str, tuple[str, ...]]]:
    """Units in order of use, with each norm that follows a single layer made one with it."""
    found: list[tuple[str, tuple[str, ...]]] = []
    for name, members in units:
        is_norm = isinstance(modules.get(name), _NORMS)
        if is_norm and found and _is_layer(modules.get(found[-1][0])):
            found[-1] = (found[-1][0], found[-1][1] + members)
        else:
            found.append((name, members))
    return found


def _is_layer(module: nn.Module | None) -> bool:
    return module is not None and not any(True for _ in module.children()) and not isinstance(module, _NORMS)
