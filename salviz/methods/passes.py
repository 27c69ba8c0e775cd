"""The model passes that methods of several families are made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from salviz.classifiers.classifier import Classifier
from salviz.classifiers.layers import cut_at, target_layer
from salviz.errors import MethodError
from salviz.methods.card import Parameter
from salviz.targets import Target
from salviz.work import Work

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
    """`score_gradient` of the images themselves, made once for all methods that explain them together."""

    def compute() -> tuple[Tensor, Tensor]:
        found = score_gradient(classifier, x, target)
        work.tick(2 * len(x))
        return found

    return work.once("gradient", compute)


def head_gradient(classifier: Classifier, x: Tensor, target: Target, layer: str) -> tuple[Tensor, Tensor, Tensor]:
    """Activation of the target layer, the score's gradient at it, and the logits, from one forward pass.

    The trunk runs without a graph and only the head is differentiated (see `cut_at`).

    Args:
        classifier: The model; its lock is held by the caller.
        x: `(N, 3, H, W)` float32 in model space.
        target: One entry an image.
        layer: Dotted name, or empty for the rule's.

    Returns:
        `(N, C, h, w)` activation, `(N, C, h, w)` gradient, `(N, K)` logits; none has a graph.
    """
    where = target_layer(classifier, layer or None)
    with torch.enable_grad(), cut_at(classifier, where) as capture:
        logits = classifier.forward(x, is_published=where.is_published)
        assert capture.activation is not None  # noqa: S101 - the hook ran
        score = target.resolve(logits).score(logits)
        (gradient,) = torch.autograd.grad(score.sum(), capture.activation)
    activation = capture.activation.detach()
    return where.channel_maps(activation), where.channel_maps(gradient), logits.detach()


def shared_head(
    classifier: Classifier, x: Tensor, target: Target, layer: str, work: Work
) -> tuple[Tensor, Tensor, Tensor]:
    """`head_gradient` of the images themselves, made once for all methods that explain them together."""

    def compute() -> tuple[Tensor, Tensor, Tensor]:
        found = head_gradient(classifier, x, target, layer)
        work.tick(len(x))
        return found

    return work.once(("head", layer), compute)


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
    return work.once("logits", lambda: classifier.predict(x))


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
