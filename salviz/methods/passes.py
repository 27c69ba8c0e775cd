"""The model passes that methods of several families are made of."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from salviz.classifiers.classifier import Classifier
from salviz.classifiers.layers import cut_at, known_layer, target_layer
from salviz.errors import MethodError
from salviz.methods.card import HEAD, Parameter, is_of_images
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

LAYER = Parameter("layer", "", "Layer to attach to; empty for the one the rule finds.", unset="chosen by rule")


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
        gradient = trunk.input_gradient(target, work)
        work.tick(len(x))
        return gradient, work.rows(trunk.logits.detach())

    return work.once(GRADIENT, compute)


def _wanted_layers(wanted: Iterable[Hashable]) -> list[str]:
    """The layers, as their methods name them, whose activation is wanted."""
    return sorted(name[1] for name in wanted if isinstance(name, tuple) and is_of_images(name))


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
    """A forward pass of I images that is cut at a layer; an image is passed once, however many classes are explained.

    Attributes:
        leaf: `(I, ...)` activation of the layer in its own layout, a leaf.
        logits: `(I, K)` with the head's graph between them and the leaf: `gradient` gives that of anything made of
            them, until `input_gradient` has used the graph up. Methods of a single pass come before it.
        layer: Dotted name, or empty for the rule's.
        way: The images as a leaf, and the activation with the trunk's graph between them, where it was kept.
    """

    leaf: Tensor
    logits: Tensor
    layer: str
    way: tuple[Tensor, Tensor] | None = None

    def gradient(self, scores: Tensor) -> Tensor:
        """Gradient with respect to the activation, in the layer's own layout.

        Args:
            scores: `(N,)`, one a row, as many rows an image, image by image.

        Returns:
            `(N, ...)`.
        """
        with torch.enable_grad():
            return _by_class(scores, len(self.leaf), self._at_leaf)

    def _at_leaf(self, place: slice, score: Tensor) -> Tensor:
        return torch.autograd.grad(score, self.leaf, retain_graph=True)[0]

    def head_gradient(self, target: Target, work: Work) -> Tensor:
        """Gradient of each row's score with respect to the activation, `(N, ...)` in the layer's own layout."""
        return work.once(("head gradient", self.layer), lambda: self.gradient(self._scores(target, work)))

    def input_gradient(self, target: Target, work: Work) -> Tensor:
        """Gradient of each row's score with respect to its image, `(N, 3, H, W)`; once, if `way` was kept."""
        assert self.way is not None  # noqa: S101 - asked before
        (images, output), head = self.way, self.head_gradient(target, work)
        is_last = work.first + work.each == work.classes

        def at_images(place: slice, score: Tensor) -> Tensor:
            # Through the layer, and around it where something leads there: skip connections do.
            return torch.autograd.grad(
                (output, score), images, (head[place], torch.ones_like(score)),
                retain_graph=not is_last or place.start < work.each - 1,
            )[0]  # fmt: skip

        with torch.enable_grad():
            gradient = _by_class(self._scores(target, work), len(images), at_images)
        if is_last:
            self.way = None
        return gradient

    def _scores(self, target: Target, work: Work) -> Tensor:
        with torch.enable_grad():
            logits = work.rows(self.logits)
            return target.resolve(logits).score(logits)


def _by_class(scores: Tensor, images: int, gradient: Callable[[slice, Tensor], Tensor]) -> Tensor:
    """Gradients of all rows, those of one class of every image at a time.

    Args:
        scores: `(N,)`, image by image.
        images: How many there are.
        gradient: Of the sum of the scores, `(images, ...)`, given which rows they are.
    """
    each = len(scores) // images
    places = [slice(start, None, each) for start in range(each)]
    found = [gradient(place, scores[place].sum()) for place in places]
    return found[0] if each == 1 else torch.stack(found, dim=1).flatten(0, 1)


def shared_trunk(
    classifier: Classifier,
    x: Tensor,
    layer: str,
    work: Work,
    watching: AbstractContextManager[object] | None = None,
) -> Trunk:
    """The images' forward pass, cut at the target layer, made once for all methods and classes.

    Args:
        classifier: The model; its lock is held by the caller.
        x: `(N, 3, H, W)` float32 in model space, one a row.
        layer: Dotted name, or empty for the rule's.
        work: Budget, progress, and what others found.
        watching: Entered while the net runs, by a method that leads (see `MethodCard.leads`).
    """

    def compute() -> Trunk:
        where = target_layer(classifier, layer or None)
        # The gradient at the images, if a method wants it, is one backward from here instead of two passes of its own.
        is_wanted = GRADIENT in work.wanted and work.found(GRADIENT) is None
        goes_on = is_wanted and not where.is_published
        images = work.images(x).detach().requires_grad_(goes_on)
        with torch.enable_grad(), watching or nullcontext(), cut_at(classifier, where) as capture:
            logits = classifier.forward(images, is_published=where.is_published)
        assert capture.activation is not None  # noqa: S101 - the hook ran
        assert capture.output is not None  # noqa: S101
        work.tick(len(images))
        return Trunk(capture.activation, logits, layer, (images, capture.output) if goes_on else None)

    return work.once(("trunk", (HEAD, layer)), compute, is_of_images=True)


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
        gradient = trunk.head_gradient(target, work)
        activation, logits = work.rows(trunk.leaf.detach()), work.rows(trunk.logits.detach())
        return where.channel_maps(activation), where.channel_maps(gradient), logits

    return work.once((HEAD, layer), compute)


def no_spatial_layer(classifier: Classifier) -> str | None:
    """Why class activation maps do not exist for a classifier, or None."""
    try:
        target_layer(classifier)
    except MethodError as error:
        return str(error)
    return None


def shared_logits(classifier: Classifier, x: Tensor, work: Work) -> Tensor:
    """Float32 logits `(N, K)` of the rows themselves without a graph, made once for all methods and classes.

    Not counted among a method's passes.
    """

    def compute() -> Tensor:
        trunk, gradient = _found_trunk(work), work.found(GRADIENT)
        if trunk is not None:
            return trunk.logits.detach().float()
        return classifier.predict(work.images(x)) if gradient is None else work.images(gradient[1]).float()

    return work.rows(work.once("logits", compute, is_of_images=True))


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
    drawn = torch.empty(x.shape, dtype=x.dtype, device=generators[0].device)
    for noise, generator in zip(drawn, generators, strict=True):
        noise.normal_(generator=generator)
    return drawn.to(x.device).mul_(level * ranges)


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
