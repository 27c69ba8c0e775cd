"""Nets whose stages are randomised, one after the other or all at once (Adebayo et al., NeurIPS 2018, section 4)."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from salviz.classifiers.building import building
from salviz.classifiers.choices import INITIALISATIONS, ORDERS, STATISTICS
from salviz.classifiers.classifier import Classifier
from salviz.classifiers.digests import weights_digest
from salviz.classifiers.loading import untrained
from salviz.classifiers.stages import Stage, find_stages
from salviz.errors import ClassifierError
from salviz.seeds import seed_of

EVERYTHING = "all"
"""Name of the net whose every stage is random at once."""


@dataclass(frozen=True)
class Randomisation:
    """How a net is randomised.

    Attributes:
        order: A key of `ORDERS`.
        initialisation: A key of `INITIALISATIONS`.
        statistics: What becomes of the running statistics of randomised batch norms; a key of `STATISTICS`.
        seed: Every tensor draws from a generator of (seed, its name), so neither the order nor other stages matter.
    """

    order: str = "top_down"
    initialisation: str = "architecture"
    statistics: str = "reset"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the names.

        Raises:
            ClassifierError: One is unknown.
        """
        for what, given, known in (
            ("order", self.order, ORDERS),
            ("initialisation", self.initialisation, INITIALISATIONS),
            ("handling of statistics", self.statistics, STATISTICS),
        ):
            if given not in known:
                raise ClassifierError(f"There is no {what} {given!r}; there are {', '.join(known)}.")

    def plan(self, stages: tuple[Stage, ...]) -> list[tuple[str, tuple[Stage, ...]]]:
        """The nets to make: a name each, and the stages that are random in it.

        Args:
            stages: As `find_stages` returns them. What no pass uses is left alone.
        """
        used = [stage for stage in stages if stage.is_used]
        if self.order == "full":
            return [(EVERYTHING, tuple(used))]
        if self.order == "independent":
            return [(stage.name, (stage,)) for stage in used]
        ordered = used if self.order == "top_down" else used[::-1]
        return [(stage.name, tuple(ordered[: place + 1])) for place, stage in enumerate(ordered)]


def randomised(classifier: Classifier, how: Randomisation, *, images: Tensor | None = None) -> Iterator[Classifier]:
    """The nets of a plan, one after the other; the classifier itself is not changed.

    Args:
        classifier: With trained weights.
        how: Order, initialisation, statistics and seed.
        images: `(N, 3, H, W)` in model space, on which statistics are measured where they are to be.

    Yields:
        A classifier with its own lock for each entry of `how.plan`, on the classifier's device.

    Raises:
        ClassifierError: Statistics are to be measured and there are no images, or the classifier holds its weights in a
            way that cannot be randomised.
    """
    if how.statistics == "estimate" and images is None:
        raise ClassifierError("Statistics of batch norms are measured on images; give some.")
    source = _Source(classifier, how)
    state = {name: parameter.detach() for name, parameter in classifier.module.named_parameters()}
    before: tuple[Stage, ...] = ()
    module = classifier.module
    for name, stages in how.plan(find_stages(classifier)):
        is_next = stages[: len(before)] == before
        module = copy.deepcopy(module if is_next else classifier.module)
        new = stages[len(before) :] if is_next else stages
        parameters = dict(module.named_parameters())
        with torch.no_grad():
            for member in (member for stage in new for member in stage.parameters):
                parameters[member].copy_(source.draw(member, state[member]))
        norms = _norms(module, stages)
        if how.statistics != "keep":
            for norm in norms:
                norm.reset_running_stats()  # type: ignore[operator]
        if how.statistics == "estimate" and images is not None:
            _estimate(module, norms, images)
        yield replace(
            classifier,
            id=f"{classifier.id}#{how.order}:{name}:{how.initialisation}:{how.statistics}-{how.seed}",
            title=f"{classifier.title}, randomised: {name}",
            module=module,
            digest=weights_digest(module),
            checkpoints=(),
            like=classifier,
            lock=threading.RLock(),
        )
        before = stages


class _Source:
    """Where new values come from."""

    def __init__(self, classifier: Classifier, how: Randomisation) -> None:
        self.how = how
        self.device = classifier.device
        self._modules = dict(classifier.module.named_modules())
        self._fresh: dict[str, Tensor] = {}
        if how.initialisation in ("architecture", "module"):
            fresh = untrained(classifier, seed=seed_of(how.seed, "", "initialisation"))
            self._fresh = dict(fresh.module.named_parameters())

    def draw(self, name: str, trained: Tensor) -> Tensor:
        """New values for one parameter.

        Args:
            name: Of the parameter.
            trained: Its trained values.

        Raises:
            ClassifierError: A fresh net of the architecture has no such parameter.
        """
        how = self.how.initialisation
        if how == "architecture":
            return self._of_fresh(name, trained)
        if how == "module":
            own = self._by_module(name)
            return self._of_fresh(name, trained) if own is None else own.to(self.device)
        generator = torch.Generator().manual_seed(seed_of(self.how.seed, name, "initialisation"))
        if how == "permute":
            order = torch.randperm(trained.numel(), generator=generator)
            return trained.flatten()[order.to(self.device)].view_as(trained)
        drawn = torch.empty(trained.shape, dtype=torch.float32)
        if how == "moments":
            deviation, mean = torch.std_mean(trained.float().cpu(), correction=0)
            return (mean + deviation * drawn.normal_(generator=generator)).to(self.device)
        if trained.ndim < 2:
            return torch.zeros_like(trained) if name.endswith("bias") else torch.ones_like(trained)
        # TensorFlow-slim's initialiser, which the authors' code runs again: He by fan-in, cut at two deviations. Tokens
        # and position tables have no fan-in; they begin as ViT's authors begin them.
        is_layer = name.endswith("weight")
        deviation_of = math.sqrt(1.3 * 2 / trained[0].numel()) if is_layer else 0.02
        nn.init.trunc_normal_(drawn, std=deviation_of, a=-2 * deviation_of, b=2 * deviation_of, generator=generator)
        return drawn.to(self.device)

    def _of_fresh(self, name: str, trained: Tensor) -> Tensor:
        fresh = self._fresh.get(name)
        if fresh is None or fresh.shape != trained.shape:
            raise ClassifierError(
                f"A fresh net of this architecture has no parameter like {name}; choose another initialisation."
            )
        return fresh

    def _by_module(self, name: str) -> Tensor | None:
        """What the layer's own `reset_parameters` makes of it; None where it has none."""
        path, _, own = name.rpartition(".")
        layer = copy.deepcopy(self._modules[path]).cpu()
        reset = getattr(layer, "reset_parameters", None) or getattr(layer, "_reset_parameters", None)
        if reset is None:
            return None
        with building(seed_of(self.how.seed, path, "initialisation")):
            reset()
        found: Tensor = getattr(layer, own).detach()
        return found


def _norms(module: nn.Module, stages: Iterable[Stage]) -> list[nn.Module]:
    """The batch norms of these stages that keep running statistics; those without parameters too."""
    members = {name.rpartition(".")[0] for stage in stages for name in stage.parameters}
    names = tuple(stage.name + "." for stage in stages)
    return [
        part
        for path, part in module.named_modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm)
        and part.running_mean is not None
        and (path in members or path.startswith(names))
    ]


def _estimate(module: nn.Module, norms: list[nn.Module], images: Tensor) -> None:
    """Set running statistics to those of a batch, layer after layer within one pass."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0  # type: ignore[assignment]
    try:
        with torch.no_grad():
            module(images)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.eval()
            norm.momentum = momentum
