"""Which channels of a layer a method runs, and how they are put together."""

from __future__ import annotations

import torch
from torch import Tensor

from salviz.methods.card import Parameter

CHANNELS = Parameter(
    "channels",
    0,
    "Number of channels that are run, those with the most activation; the others get no weight. 0 runs all.",
    low=0,
    high=8192,
    step=1,
    unset="all",
)
"""An approximation that costs what one is ready to pay; all channels are the method itself."""

TYPICAL_CHANNELS = 1280
"""EfficientNet's and MobileNetV2's: for an estimate where no classifier is at hand (see `MethodCard.settled`)."""


def strongest(activation: Tensor, count: int) -> Tensor:
    """Channels with the largest sums of squares: `(N, C, h, w)` -> `(N, count)`, in ascending order.

    Args:
        activation: Of the target layer.
        count: How many an image; all where 0 or more than there are.
    """
    images, channels = activation.shape[:2]
    if count == 0 or count >= channels:
        return torch.arange(channels, device=activation.device).expand(images, channels)
    energy = activation.square().sum(dim=(2, 3))
    return energy.topk(count, dim=1).indices.sort(dim=1).values


def weighted_sum(activation: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    """Sum of the chosen channels: `(N, C, h, w)`, `(N, k)`, `(N, k)` -> `(N, h, w)`."""
    everywhere = torch.zeros(activation.shape[:2], device=activation.device, dtype=activation.dtype)
    return torch.einsum("nchw,nc->nhw", activation, everywhere.scatter(1, chosen, weights))
