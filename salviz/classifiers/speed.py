"""How long image passes through a classifier take on this machine: probed once, corrected by real work."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from salviz.classifiers.classifier import Classifier

FULL = 16
"""Image passes that fill a batch: of fewer, what begins and ends every layer is most of their time."""
_SHARE = 0.5
"""What the latest piece of work counts for, so that one that was held up does not rule all estimates."""

_FORWARDS, _GRADIENTS = 4, 2
"""Images in a probe; the graph's passes count twice."""
_FEWEST, _MOST, _ENOUGH_SECONDS = 2, 3, 0.15


@dataclass
class Speed:
    """Seconds an image pass takes, by its kind and, where a method was seen at work, by method.

    A forward that nobody differentiates may run in a faster layout than half of a forward and backward, and some
    methods add work of their own to every pass.

    Attributes:
        forward: Seconds of a forward alone.
        gradient: Seconds of half a forward and backward with respect to the image.
    """

    forward: float
    gradient: float
    _own: dict[str, float] = field(default_factory=dict)

    def of(self, method: str, *, differentiates: bool) -> float:
        """Seconds of one of a method's passes: as learned from its own work, else those of their kind.

        Args:
            method: Id of the method.
            differentiates: Which kind they are (see `MethodCard.differentiates`).
        """
        return self._own.get(method, self.gradient if differentiates else self.forward)

    def learn(
        self, method: str, *, differentiates: bool, passes: float, seconds: float, images: int, usual: float
    ) -> None:
        """Correct what is known by a piece of real work.

        It counts the less, the fewer passes it had: cold, in small batches or cut to few samples a method is slower.
        The kind learns from methods of many passes an image only, which are little but passes.

        Args:
            method: Id of the method.
            differentiates: Which kind its passes are.
            passes: Image passes made.
            seconds: Wall seconds they took.
            images: Maps made.
            usual: Passes a map with the usual settings.
        """
        if passes <= 0:
            return
        each, found = passes / images, seconds / passes
        kind = "gradient" if differentiates else "forward"
        own = self.of(method, differentiates=differentiates)
        share = _SHARE * min(1.0, passes / FULL, each / max(usual, 1.0))
        self._own[method] = own + share * (found - own)
        if each >= FULL:
            before: float = getattr(self, kind)
            setattr(self, kind, before + _SHARE * (found - before))


def probe(classifier: Classifier) -> Speed:
    """Time a few passes of either kind on blank images.

    Args:
        classifier: What is timed; locked while this runs.
    """
    height, width = classifier.preprocessing.input_size
    blank = torch.zeros(max(_FORWARDS, _GRADIENTS), 3, height, width, device=classifier.device)

    def forward() -> None:
        # Reading one number waits for devices that work asynchronously.
        float(classifier.predict(blank[:_FORWARDS])[0, 0])

    def gradient() -> None:
        with torch.inference_mode(mode=False), torch.enable_grad():
            leaf = blank[:_GRADIENTS].clone().requires_grad_(True)
            logits = classifier.forward(leaf)
            (found,) = torch.autograd.grad(logits[:, 0].sum(), leaf)
        float(found[0, 0, 0, 0])

    with classifier.lock:
        alone = _quickest(forward, _FEWEST) / _FORWARDS
        return Speed(alone, _quickest(gradient, 1) / (2 * _GRADIENTS))


def _quickest(run: Callable[[], None], fewest: int) -> float:
    """Seconds of the quickest of some runs: the first is cold, and others do much beside. Few where they are long."""
    taken: list[float] = []
    while len(taken) < fewest or (len(taken) < _MOST and sum(taken) < _ENOUGH_SECONDS):
        started = time.perf_counter()
        run()
        taken.append(time.perf_counter() - started)
    return min(taken)
