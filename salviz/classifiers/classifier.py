"""What is explained: an image classifier with everything a saliency map needs to know about it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from salviz.classifiers.blocked import takes
from salviz.classifiers.folding import Folding, fold
from salviz.classifiers.labels import Labels
from salviz.classifiers.preprocessing import Preprocessing

if TYPE_CHECKING:
    # threading.RLock is a factory function at run time; the type has another name.
    from _thread import RLock


@dataclass(frozen=True)
class Checkpoint:
    """Weights of the same architecture saved during training (COSE's changed models)."""

    label: str
    path: Path


@dataclass(frozen=True, eq=False)
class Draft:
    """A classifier as its source gives it: on the CPU, not yet frozen, placed or probed.

    Attributes:
        id: See `Classifier`.
        title: See `Classifier`.
        module: With its weights loaded.
        preprocessing: See `Classifier`.
        labels: Names of the classes, as far as the source knows them.
        architecture: See `Classifier`.
        rebuild: See `Classifier`.
        checkpoints: See `Classifier`.
    """

    id: str
    title: str
    module: nn.Module
    preprocessing: Preprocessing
    labels: Labels
    architecture: str
    rebuild: Callable[[], nn.Module]
    checkpoints: tuple[Checkpoint, ...] = ()


@dataclass(frozen=True, eq=False)
class Classifier:
    """A frozen, eval-mode image classifier.

    Attributes:
        id: Public, stable id, as accepted by `salviz.load`.
        title: Name shown to people.
        module: `(N, 3, H, W)` float32 in model space -> `(N, K)` logits. All parameters have
            `requires_grad` False. As published: what passes run through is `runtime`.
        preprocessing: From a photograph to model space, and back to places on the photograph.
        labels: Names of the K classes.
        architecture: The builder's name for it, e.g. `timm:resnet50.a1_in1k`.
        digest: Hex content digest of the weights (names, shapes, dtypes and values of the state dict).
        rebuild: Makes the same architecture with fresh random weights (the caller seeds).
        checkpoints: Weights saved on the way to these ones, earliest first.
        channels_last: Whether inputs are laid out channels-last before the forward.
        autocast: bf16/fp16 for the passes of methods whose ranks survive it, or None for float32.
        like: Another with the same layers and other weights: what is known of its layers holds for these too.
        lock: Serialises everything that hooks or differentiates the shared module.
    """

    id: str
    title: str
    module: nn.Module
    preprocessing: Preprocessing
    labels: Labels
    architecture: str
    digest: str
    rebuild: Callable[[], nn.Module]
    checkpoints: tuple[Checkpoint, ...] = ()
    channels_last: bool = False
    autocast: torch.dtype | None = None
    like: Classifier | None = field(default=None, repr=False)
    lock: RLock = field(default_factory=threading.RLock, repr=False)

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return next(self.module.parameters()).device

    @cached_property
    def _folding(self) -> Folding:
        if self.device.type == "meta":
            return Folding(self.module)
        like = None if self.like is None else self.like._folding
        # Whatever pass comes first may stand under autocast or inference mode; the copy is for all that follow.
        plain = torch.autocast(self.device.type, enabled=False)
        with self.lock, torch.inference_mode(mode=False), plain:
            return fold(self.module, self.preprocessing.input_size, like=like)

    @property
    def runtime(self) -> nn.Module:
        """The module that passes run through: `module` with its batch norms folded away, where it has any.

        Values and gradients are the same up to rounding. It is shared: hold `lock` while attaching hooks.
        """
        return self._folding.module

    @property
    def folded(self) -> frozenset[str]:
        """Names of the convolutions of `runtime` that also do the work of the batch norm after them."""
        return self._folding.convolutions

    def forward(self, x: Tensor, *, is_published: bool = False) -> Tensor:
        """Logits of a batch, differentiable with respect to `x`.

        Args:
            x: `(N, 3, H, W)` float in model space, on `device`.
            is_published: Run `module` instead of `runtime`.

        Returns:
            `(N, K)` logits.
        """
        module = self.module if is_published else self.runtime
        if self.channels_last and (is_published or not takes(module, self._folding.blocked, x)):
            x = x.contiguous(memory_format=torch.channels_last)
        logits: Tensor = module(x)
        return logits

    def predict(self, x: Tensor, *, may_halve: bool = False) -> Tensor:
        """Float32 logits of a batch without a graph.

        Args:
            x: `(N, 3, H, W)` float32 in model space, on `device`.
            may_halve: Whether the half precision that was chosen, if any, is good enough: where a map is an average
                over hundreds of passes. Elsewhere it would change the ranks of its values.

        Returns:
            `(N, K)` float32 logits.
        """
        halves = may_halve and self.autocast is not None
        cast = torch.autocast(x.device.type, dtype=self.autocast) if halves else nullcontext()
        with torch.no_grad(), cast:
            return self.forward(x).float()
