"""The part of a classifier that comes after a layer, run on its own from stored activations."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from salviz.classifiers.classifier import Classifier
from salviz.classifiers.layers import TargetLayer
from salviz.work import is_out_of_memory

_TOLERANCE = 1e-3
"""Largest difference of logits that still counts as the same, as a share of their range."""


@dataclass(frozen=True)
class _Recipe:
    """How the head of a model is run alone.

    Attributes:
        skipped: Modules that need not run, because all they do comes before the layer.
        is_wide: Whether everything needs a row a version; else one row of what comes before the layer broadcasts.
        changed: Skipped modules whose output is changed in place afterwards, so that a copy must be handed out.
    """

    skipped: frozenset[str]
    is_wide: bool
    changed: frozenset[str] = frozenset()


_recipes: weakref.WeakKeyDictionary[nn.Module, dict[str, _Recipe]] = weakref.WeakKeyDictionary()


class Head:
    """Runs what comes after a layer for one image and many versions of its activation.

    Models cannot be entered in the middle. But a module whose work is done before the layer may hand out what it gave
    for this image instead of running again, and the layer itself whatever is put in its place; then only the head
    computes. One image's stored outputs have one row and broadcast over the versions, so residual connections around
    the layer stay right; where rows are joined or counted, they are spread over the versions without a copy. Where
    neither gives the image's own logits (found out once a model), everything runs: slower, never wrong.

    Attributes:
        activation: `(N, ...)` of the layer, in its own layout.
        logits: `(N, K)` of the images.
    """

    activation: Tensor
    logits: Tensor

    def __init__(self, classifier: Classifier, where: TargetLayer, x: Tensor) -> None:
        """Nothing runs yet: what is needed is stored by `recording` while the images pass, and used after `begin`.

        Args:
            classifier: The model; its lock is held by the caller as long as the head is used.
            where: The layer.
            x: `(N, 3, H, W)` float32 in model space.
        """
        self._classifier, self._where, self._x = classifier, where, x
        self._module = classifier.module if where.is_published else classifier.runtime
        self._recipe = _recipes.get(classifier.module, {}).get(where.name)
        self._stored: dict[str, Tensor] = {}
        self._has_run = False

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Store what modules give before the layer, during a pass of all images: those wanted, or all candidates."""
        calls: dict[str, int] = {}

        def hook(name: str) -> Callable[[nn.Module, object, object], None]:
            def note(module: nn.Module, inputs: object, output: object) -> None:
                calls[name] = calls.get(name, 0) + 1
                is_before = self._where.name not in calls
                if is_before and isinstance(output, Tensor) and len(output) == len(self._x):
                    # A copy, because what comes next may change it in place.
                    self._stored[name] = output.detach().clone()

            return note

        names = {name for name, _ in self._module.named_modules() if name}
        if self._recipe is not None:
            names = {*self._recipe.skipped, self._where.name}
        handles = [self._module.get_submodule(name).register_forward_hook(hook(name)) for name in names]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        self._has_run = True
        self._stored = {name: value for name, value in self._stored.items() if calls[name] == 1}
        # A layer that is used more than once cannot be replaced by one tensor: then nothing may be skipped.
        if calls[self._where.name] > 1:
            self._stored = {}

    def begin(self, activation: Tensor, logits: Tensor) -> None:
        """Take what the recorded pass gave; how the head runs alone is tried out once a model and layer.

        Args:
            activation: `(N, ...)` of the layer, in its own layout.
            logits: `(N, K)`.
        """
        assert self._has_run  # noqa: S101 - what was not recorded would be taken for what cannot be skipped
        self.activation, self.logits = activation.detach(), logits.detach().float()
        if self._recipe is None:
            with torch.no_grad():
                self._recipe = self._learn()
            _recipes.setdefault(self._classifier.module, {})[self._where.name] = self._recipe
        self._stored = {name: self._stored[name] for name in self._recipe.skipped}

    def run(self, image: int, versions: Tensor) -> Tensor:
        """Logits of one image with other activations: `(V, ...)` in the layer's layout -> `(V, K)`, without a graph.

        Args:
            image: Row of the batch.
            versions: May be changed by the head.
        """
        assert self._recipe is not None  # noqa: S101 - it has begun
        with torch.no_grad():
            return self._run(image, versions, self._recipe)

    def _run(self, image: int, versions: Tensor, recipe: _Recipe, handed: dict[str, Tensor] | None = None) -> Tensor:
        def spread(row: Tensor) -> Tensor:
            return row.expand(len(versions), *row.shape[1:]) if recipe.is_wide else row

        outputs = {name: spread(self._stored[name][image : image + 1]) for name in recipe.skipped}
        outputs |= {name: outputs[name].clone() for name in recipe.changed}
        if handed is not None:
            handed |= outputs
        with _replaced(self._module, {**outputs, self._where.name: versions}):
            x = spread(self._x[image : image + 1])
            return self._classifier.forward(x, is_published=self._where.is_published).float()

    def _learn(self) -> _Recipe:
        """How the head can run alone, tried out on the first image with two versions that are its own activation."""
        own = self._where.name
        names = {name for name in self._stored if not own.startswith(f"{name}.") and not name.startswith(f"{own}.")}
        outer = frozenset(name for name in names if not any(name.startswith(f"{other}.") for other in names))
        for is_wide in (False, True):
            handed: dict[str, Tensor] = {}
            versions = self.activation[:1].repeat(2, *(1,) * (self.activation.ndim - 1))
            try:
                found = self._run(0, versions, _Recipe(outer, is_wide, outer), handed)
            except RuntimeError as error:
                # It says nothing of the net, for which the recipe is kept.
                if is_out_of_memory(error):
                    raise
                continue
            if self._is_own(found):
                return _Recipe(outer, is_wide, frozenset(name for name in outer if handed[name]._version > 0))
        return _Recipe(frozenset(), is_wide=True)

    def _is_own(self, found: Tensor) -> bool:
        """Whether two rows of logits are those of the first image."""
        expected = self.logits[:1].expand(2, -1)
        if found.shape != expected.shape:
            return False
        if found.is_meta:
            return True
        span = expected.amax() - expected.amin()
        return bool((found - expected).abs().amax() <= _TOLERANCE * span)


@contextmanager
def _replaced(module: nn.Module, outputs: dict[str, Tensor]) -> Iterator[None]:
    """Let modules give these outputs instead of running."""

    def giving(output: Tensor) -> Callable[..., Tensor]:
        def forward(*args: Any, **kwargs: Any) -> Tensor:
            return output

        return forward

    before = []
    try:
        for name, output in outputs.items():
            part = module.get_submodule(name)
            before.append((part, part.__dict__.get("forward")))
            part.__dict__["forward"] = giving(output)
        yield
    finally:
        for part, forward in before:
            if forward is None:
                del part.__dict__["forward"]
            else:
                part.__dict__["forward"] = forward
