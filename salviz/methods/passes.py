"""The model passes that methods of several families are made of."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from salviz.classifiers.classifier import Classifier
from salviz.classifiers.layers import cut_at, known_layer, target_layer
from salviz.errors import MethodError
from salviz.methods.card import Parameter
from salviz.targets import ClassTarget, Target
from salviz.work import Work

SAMPLES = Parameter(
    "samples",
    50,
    "Noisy copies averaged; 50 in SmoothGrad's paper, which sees little change beyond, and 25 in its authors' code.",
    low=1,
    high=500,
    step=1,
)
"""Setting of every method that averages over noisy copies."""

NOISE = Parameter(
    "noise",
    0.15,
    "Standard deviation of the noise, as a share of the input's range; 0.1 to 0.2 in SmoothGrad's paper, 0.15 in its "
    "authors' code.",
    low=0.0,
    high=1.0,
    step=0.05,
)
"""Setting of every method that averages over noisy copies (see `gaussian_noise`)."""

GRADIENT = "gradient"
"""What methods share that need the score's gradient at the images."""

HEAD = "head"
"""What methods share, with the layer's name, that need a layer's activation and the score's gradient at it."""

LAYER = Parameter("layer", "", "Layer to attach to; empty for the one the rule finds.")


def score_gradient(classifier: Classifier, x: Tensor, target: Target) -> tuple[Tensor, Tensor]:
    """Gradient of each image's score with respect to it, and the logits it came from.

    Args:
        classifier: The model; its lock is held by the caller.
        x: `(N, 3, H, W)` float32 in model space.
        target: One entry an image.

    Returns:
        `(N, 3, H, W)` gradient and `(N, K)` logits, both without a graph.
    """
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        logits = classifier.forward(leaf)
        score = target.resolve(logits).score(logits)
        (gradient,) = torch.autograd.grad(score.sum(), leaf)
    return gradient, logits.detach()


def plain_gradient(classifier: Classifier, x: Tensor, target: Target, work: Work) -> tuple[Tensor, Tensor]:
    """`score_gradient` of the images themselves, made once for all methods that explain them together.

    Where class activation maps are wanted too, it goes on from their forward pass.
    """

    def compute() -> tuple[Tensor, Tensor]:
        # Whatever trunk is wanted is made some time: from one of them the gradient is one backward more.
        trunks = (shared_trunk(classifier, x, layer, work) for layer in _wanted_layers(work.wanted))
        trunk = next((trunk for trunk in trunks if trunk.way is not None), None)
        if trunk is None:
            found = score_gradient(classifier, x, target)
            work.tick(2 * len(x))
            return found
        gradient = trunk.input_gradient(target)
        work.tick(len(x))
        return gradient, trunk.logits.detach()

    return work.once(GRADIENT, compute)


def _wanted_layers(wanted: Iterable[Hashable]) -> list[str]:
    """The layers, as their methods name them, whose activation is wanted."""
    return sorted(name[1] for name in wanted if isinstance(name, tuple) and name[0] == HEAD)


def is_one_way(wanted: Iterable[Hashable], classifier: Classifier | None = None) -> bool:
    """Whether the gradient at the images goes on from a trunk's forward pass: then that pass counts once for both.

    Args:
        wanted: What the methods of a set share.
        classifier: What is explained, where it is known.
    """
    wanted = set(wanted)
    if GRADIENT not in wanted:
        return False
    for name in _wanted_layers(wanted):
        layer = None if classifier is None else known_layer(classifier, name or None)
        if layer is None or not layer.is_published:
            return True
    return False


def _found_trunk(work: Work) -> Trunk | None:
    """The images' forward pass that was cut for class activation maps, where there was one."""
    layers = _wanted_layers(work.wanted)
    return next((found for layer in layers if (found := work.found(("trunk", (HEAD, layer))))), None)


@dataclass
class Trunk:
    """A forward pass that is cut at a layer.

    Attributes:
        leaf: The layer's activation in its own layout, a leaf.
        logits: `(N, K)` with the head's graph between them and the leaf: `torch.autograd.grad(..., retain_graph=True)`
            gives the gradient of anything made of them, until `input_gradient` has used the graph up. Methods of a
            single pass come before it.
        way: The images as a leaf, and the activation with the trunk's graph between them, where it was kept.
    """

    leaf: Tensor
    logits: Tensor
    way: tuple[Tensor, Tensor] | None = None
    _head: Tensor | None = None

    def head_gradient(self, target: Target) -> Tensor:
        """Gradient of each image's score with respect to the activation, in the layer's own layout."""
        if self._head is None:
            with torch.enable_grad():
                score = target.resolve(self.logits).score(self.logits)
                (self._head,) = torch.autograd.grad(score.sum(), self.leaf, retain_graph=True)
        return self._head

    def input_gradient(self, target: Target) -> Tensor:
        """Gradient of each image's score with respect to the image, `(N, 3, H, W)`; once, if `way` was kept."""
        assert self.way is not None  # noqa: S101 - asked before
        (images, output), head = self.way, self.head_gradient(target)
        with torch.enable_grad():
            score = target.resolve(self.logits).score(self.logits).sum()
            # Through the layer, and around it where something leads there: skip connections do.
            (gradient,) = torch.autograd.grad((output, score), images, (head, torch.ones_like(score)))
        self.way = None
        return gradient


def shared_trunk(
    classifier: Classifier,
    x: Tensor,
    layer: str,
    work: Work,
    watching: AbstractContextManager[object] | None = None,
) -> Trunk:
    """The images' forward pass, cut at the target layer, made once for all methods.

    Args:
        classifier: The model; its lock is held by the caller.
        x: `(N, 3, H, W)` float32 in model space.
        layer: Dotted name, or empty for the rule's.
        work: Budget, progress, and what others found.
        watching: Entered while the net runs, by a method that leads (see `MethodCard.leads`).
    """

    def compute() -> Trunk:
        where = target_layer(classifier, layer or None)
        # The gradient at the images, if a method wants it, is one backward from here instead of two passes of its own.
        is_wanted = GRADIENT in work.wanted and work.found(GRADIENT) is None
        goes_on = is_wanted and not where.is_published
        images = x.detach().requires_grad_(goes_on)
        with torch.enable_grad(), watching or nullcontext(), cut_at(classifier, where) as capture:
            logits = classifier.forward(images, is_published=where.is_published)
        assert capture.activation is not None  # noqa: S101 - the hook ran
        assert capture.output is not None  # noqa: S101
        work.tick(len(x))
        return Trunk(capture.activation, logits, (images, capture.output) if goes_on else None)

    return work.once(("trunk", (HEAD, layer)), compute)


def shared_head(
    classifier: Classifier, x: Tensor, target: Target, layer: str, work: Work
) -> tuple[Tensor, Tensor, Tensor]:
    """Activation of the target layer, the score's gradient at it, and the logits, from one forward pass.

    The trunk runs without a graph and only the head is differentiated (see `cut_at`). Made once for all methods.

    Args:
        classifier: The model; its lock is held by the caller.
        x: `(N, 3, H, W)` float32 in model space.
        target: One entry an image.
        layer: Dotted name, or empty for the rule's.
        work: Budget, progress, and what others found.

    Returns:
        `(N, C, h, w)` activation, `(N, C, h, w)` gradient, `(N, K)` logits; none has a graph.
    """

    def compute() -> tuple[Tensor, Tensor, Tensor]:
        where = target_layer(classifier, layer or None)
        trunk = shared_trunk(classifier, x, layer, work)
        gradient = trunk.head_gradient(target)
        return where.channel_maps(trunk.leaf.detach()), where.channel_maps(gradient), trunk.logits.detach()

    return work.once((HEAD, layer), compute)


def no_spatial_layer(classifier: Classifier) -> str | None:
    """Why class activation maps do not exist for a classifier, or None."""
    try:
        target_layer(classifier)
    except MethodError as error:
        return str(error)
    return None


def shared_logits(classifier: Classifier, x: Tensor, work: Work) -> Tensor:
    """Float32 logits `(N, K)` of the images themselves without a graph, made once for all methods.

    Not counted among a method's passes.
    """

    def compute() -> Tensor:
        trunk, gradient = _found_trunk(work), work.found(GRADIENT)
        if trunk is not None:
            return trunk.logits.detach().float()
        return classifier.predict(x) if gradient is None else gradient[1].float()

    return work.once("logits", compute)


def blank_like(classifier: Classifier, x: Tensor, colour: str) -> Tensor:
    """The image that stands for nothing, in model space: the training set's mean colour, or black.

    Args:
        classifier: Knows the normalisation.
        x: `(N, 3, H, W)`.
        colour: `mean` or `black`.

    Returns:
        `(N, 3, H, W)`.
    """
    if colour == "black":
        return classifier.preprocessing.normalise(torch.zeros(x.shape, dtype=torch.uint8, device=x.device))
    return torch.zeros_like(x)


def blank_logits(classifier: Classifier, blank: Tensor, work: Work) -> Tensor:
    """Float32 logits `(N, K)` of what `blank_like` made: all are alike, so one is asked.

    Counted as a pass an image, as a single image takes.
    """
    logits = classifier.predict(blank[:1]).expand(len(blank), -1)
    work.tick(len(blank))
    return logits


def gaussian_noise(x: Tensor, level: float, generators: Sequence[torch.Generator]) -> Tensor:
    """Noise for one more copy of every image, from each image's own stream.

    Args:
        x: `(N, 3, H, W)`.
        level: Standard deviation as a share of the image's range of values.
        generators: One an image.

    Returns:
        `(N, 3, H, W)`.
    """
    ranges = x.amax(dim=(1, 2, 3), keepdim=True) - x.amin(dim=(1, 2, 3), keepdim=True)
    drawn = [torch.randn(x.shape[1:], generator=g, device=g.device, dtype=x.dtype).to(x.device) for g in generators]
    return torch.stack(drawn) * (level * ranges)


def quadrature(rule: str, steps: int) -> tuple[list[float], list[float]]:
    """Points in [0, 1] and their weights.

    Args:
        rule: `gauss_legendre`, `trapezoid`, or `released`: COSE's and PAIR's equal weights with both ends.
        steps: Number of points.
    """
    if rule == "gauss_legendre":
        points, weights = np.polynomial.legendre.leggauss(steps)
        return list((points + 1) / 2), list(weights / 2)
    points = np.linspace(0.0, 1.0, steps) if steps > 1 else np.array([1.0])
    if rule == "trapezoid" and steps > 1:
        weights = np.full(steps, 1.0 / (steps - 1))
        weights[[0, -1]] /= 2
    else:
        weights = np.full(steps, 1.0 / steps)
    return list(points), list(weights)


def straight_gradient(
    classifier: Classifier, x: Tensor, blank: Tensor, target: ClassTarget, rule: str, steps: int, work: Work
) -> Tensor:
    """Mean of the score's gradient on the straight way from a blank image: `(N, 3, H, W)`.

    Args:
        classifier: The model; its lock is held by the caller.
        x: `(N, 3, H, W)` float32 in model space.
        blank: `(N, 3, H, W)`, where the way begins.
        target: One entry an image.
        rule: See `quadrature`.
        steps: Points on the way; each costs a forward and a backward.
        work: Budget and progress.
    """
    difference = x - blank
    points, weights = quadrature(rule, steps)
    total = torch.zeros_like(x)
    per_pass = work.copies(len(x))
    for start in range(0, steps, per_pass):
        part = points[start : start + per_pass]
        batch = torch.cat([blank + alpha * difference for alpha in part])
        gradients, _ = score_gradient(classifier, batch, target.repeat(len(part)))
        for gradient, weight in zip(torch.split(gradients, len(x)), weights[start:], strict=False):
            total.add_(gradient, alpha=weight)
        work.tick(2 * len(batch))
    return total
