"""From raw attributions to maps that can be compared and shown."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from salviz.flatness import is_flat
from salviz.methods.card import Evidence, MethodCard
from salviz.similarity.normalising import percentile as upper_percentile


def signed(raw: Tensor) -> Tensor:
    """Sum over channels, sign kept: `(N, H, W)` or `(N, C, H, W)` -> `(N, H, W)`."""
    return _over_channels(raw)


def unsigned(raw: Tensor, evidence: Evidence) -> Tensor:
    """How much each place matters, without direction: `(N, H, W)`, never negative but for `as_is`.

    Args:
        raw: `(N, H, W)` or `(N, C, H, W)`.
        evidence: `magnitude` sums absolute channels (gradients), `positive` keeps evidence for the class
            (class activation maps, occlusion), `as_is` changes nothing.
    """
    if evidence == "magnitude":
        return _over_channels(raw.abs())
    return signed(raw).clamp(min=0) if evidence == "positive" else signed(raw)


def _over_channels(values: Tensor) -> Tensor:
    # Three channels side by side, as a net with channels last leaves them, take twice as long to add up.
    return values.contiguous().sum(dim=1) if values.ndim == 4 else values


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resampling with pixel centres at half-integers (OpenCV's and torch's `align_corners=False`).

    Args:
        maps: `(N, h, w)` float.
        size: `(height, width)` wanted.

    Returns:
        `(N, height, width)`; the same tensor where the size already fits.
    """
    if tuple(maps.shape[1:]) == tuple(size):
        return maps
    return F.interpolate(maps.unsqueeze(1), size=size, mode="bilinear", align_corners=False).squeeze(1)


def repeat_cells(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """The map's own cells as blocks of one value: `(N, h, w)` -> `(N, height, width)`."""
    return F.interpolate(maps.unsqueeze(1), size=size, mode="nearest-exact").squeeze(1)


def scale_minmax(maps: Tensor) -> Tensor:
    """`(m - min) / (1e-7 + max(m - min))`, a map at a time: the CAM libraries' scaling to [0, 1).

    A flat map becomes zero.
    """
    shifted = maps - maps.amin(dim=(1, 2), keepdim=True)
    return shifted / (1e-7 + shifted.amax(dim=(1, 2), keepdim=True))


def scale_percentile(maps: Tensor, percentile: float = 99.0) -> Tensor:
    """`clip((m - min) / (p - min), 0, 1)`, a map at a time: PAIR's `VisualizeImageGrayscale`.

    Args:
        maps: `(N, H, W)` float.
        percentile: Upper end, linearly interpolated between order statistics.

    Returns:
        `(N, H, W)` in [0, 1]; zero where the map is flat below the percentile (the original divides by zero).
    """
    flat = maps.flatten(1)
    high = upper_percentile(flat, percentile).view(-1, 1, 1)
    low = flat.amin(dim=1).view(-1, 1, 1)
    span = high - low
    scaled = ((maps - low) / span).clamp(0, 1)
    return torch.where(span > 0, scaled, torch.zeros_like(scaled))


def comparable(raw: Tensor, card: MethodCard, size: tuple[int, int]) -> Tensor:
    """Unsigned maps at input resolution, scaled as COSE's released code scales this kind of map.

    Class activation maps are scaled, resized and scaled again, as pytorch-grad-cam does; gradient-type maps
    are summed over channels and clipped at the 99th percentile, as PAIR's library does. A map that is flat but for
    rounding becomes zero: spread out, its rounding would look like content.

    Args:
        raw: `(N, h, w)` or `(N, C, h, w)` as the method returned it.
        card: The method's card.
        size: `(height, width)` of the model's input.

    Returns:
        `(N, height, width)` in [0, 1].
    """
    maps = unsigned(raw, card.evidence)
    maps = maps.masked_fill(is_flat(maps.amin(dim=(1, 2)), maps.amax(dim=(1, 2)))[:, None, None], 0.0)
    if card.scaling == "percentile":
        return scale_percentile(resize(maps, size))
    return scale_minmax(resize(scale_minmax(maps), size))
