"""Maps of augmented frames, warped back onto the original frame, and where that is possible."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from salviz.transforms.variants import Variant

_WITH_MASK = frozenset({"translate_x", "translate_y", "rotate"})


class Validity(NamedTuple):
    """Which pixels of realigned maps carry data, for a batch in which some maps have a mask and others none.

    A mask that happens to be full is not the same as none: COSE's SSIM averages over the whole frame under a
    mask and leaves out a border of 2 pixels without one.

    Attributes:
        pixels: `(N, H, W)` bool; all True where there is no mask.
        masked: `(N,)` bool: which items have a mask.
    """

    pixels: Tensor
    masked: Tensor


def realign(maps: Tensor, variants: Sequence[Variant]) -> tuple[Tensor, Validity]:
    """Undo each variant's motion on the map of its frame.

    Translations and flips are undone exactly; rotations by bilinear sampling, `M'(y, x) = e(sy, sx)` with
    `sx = cos t (x - cx) - sin t (y - cy) + cx` and `sy = sin t (x - cx) + cos t (y - cy) + cy`, where `t` is
    minus the angle, `cx = (W - 1) / 2`, `cy = (H - 1) / 2` and taps outside the frame are 0 (scikit-image's
    `rotate`, as in the released code). Photometric variants move nothing.

    Translations and rotations have a mask: where the pixels that the augmented frame shows of the original
    come back with any weight.

    Args:
        maps: `(N, H, W)` floating point, one a variant.
        variants: One a map.

    Returns:
        The maps on the original frame, `(N, H, W)` in the same dtype, 0 where no data is; and their validity.

    Raises:
        ValueError: If the maps are not `(N, H, W)` floating point, one a variant.
    """
    if maps.ndim != 3 or not maps.is_floating_point() or maps.shape[0] != len(variants):
        raise ValueError(f"maps must be ({len(variants)}, H, W) floating point, not {tuple(maps.shape)} {maps.dtype}")
    height, width = maps.shape[1:]
    aligned = maps.clone()
    pixels = torch.ones(maps.shape, dtype=torch.bool, device=maps.device)
    masked = torch.tensor([variant.augmentation in _WITH_MASK for variant in variants], device=maps.device)
    turned: list[int] = []
    for place, variant in enumerate(variants):
        amount = variant.magnitude or 0.0
        match variant.augmentation:
            case "translate_x" | "translate_y":
                dx, dy = (int(amount), 0) if variant.augmentation == "translate_x" else (0, int(amount))
                aligned[place] = _shift_back(maps[place], dx, dy)
                pixels[place] = _shift_back(pixels[place], dx, dy)
            case "rotate":
                turned.append(place)
            case "flip_lr":
                aligned[place] = maps[place].flip(-1)
            case "flip_ud":
                aligned[place] = maps[place].flip(-2)
    if turned:
        index = torch.tensor(turned, device=maps.device)
        angles = [variants[place].magnitude or 0.0 for place in turned]
        back = _Taps.at([-angle for angle in angles], height, width, maps.device)
        aligned[index] = back.sample(maps[index])
        covered = _covered(angles, height, width, maps.device)
        pixels[index] = back.reach(covered)
    return aligned, Validity(pixels, masked)


def _shift_back(plane: Tensor, dx: int, dy: int) -> Tensor:
    """`out(y, x) = plane(y + dy, x + dx)`, 0 or False outside."""
    height, width = plane.shape
    rows, columns = max(height - abs(dy), 0), max(width - abs(dx), 0)
    out = torch.zeros_like(plane)
    source = plane[max(dy, 0) :, max(dx, 0) :][:rows, :columns]
    out[max(-dy, 0) :, max(-dx, 0) :][:rows, :columns] = source
    return out


def _exact(device: torch.device) -> torch.device:
    """Where to compute sampling positions in double precision: `device`, or the host for MPS, which has none.

    Positions decide which pixels are valid, and a mask must not depend on the maps' precision.
    """
    return torch.device("cpu") if device.type == "mps" else device


def _sources(angles: Sequence[float], height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where each pixel of a rotated frame comes from: `(x, y)`, each `(R, H, W)` float64 in pixels.

    Args:
        angles: Degrees, counter-clockwise for the content.
        height: Of the frame.
        width: Of the frame.
        device: Where to compute.
    """
    radians = [math.radians(angle) for angle in angles]
    # Rounded as in Pillow, so that right angles hit pixel centres and keep the frame's edge.
    cos, sin = (
        torch.tensor([round(f(t), 15) for t in radians], dtype=torch.float64, device=device).view(-1, 1, 1)
        for f in (math.cos, math.sin)
    )
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    u = torch.arange(width, dtype=torch.float64, device=device) - centre_x
    v = torch.arange(height, dtype=torch.float64, device=device).view(-1, 1) - centre_y
    return cos * u - sin * v + centre_x, sin * u + cos * v + centre_y


def _covered(angles: Sequence[float], height: int, width: int, device: torch.device) -> Tensor:
    """`(R, H, W)` bool: pixels of the rotated frame that show the original one, not the fill."""
    x, y = _sources(angles, height, width, _exact(device))
    inside = (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)
    return inside.to(device)


class _Taps(NamedTuple):
    """The four neighbours of every sampling position, in planes padded by one pixel on each side.

    Attributes:
        corner: `(R, H*W)` int64, the upper left neighbour in the flattened padded plane.
        weights: The four neighbours' bilinear weights, each `(R, H*W)` float64, where doubles exist; all 0
            where no neighbour is inside.
        stride: Width of the padded plane.
    """

    corner: Tensor
    weights: tuple[Tensor, Tensor, Tensor, Tensor]
    stride: int

    @classmethod
    def at(cls, angles: Sequence[float], height: int, width: int, device: torch.device) -> _Taps:
        x, y = (source.flatten(1) for source in _sources(angles, height, width, _exact(device)))
        left, top = x.floor(), y.floor()
        right, low = x - left, y - top
        near = (left >= -1) & (left < width) & (top >= -1) & (top < height)
        stride = width + 2
        index = ((top.clamp(-1, height - 1) + 1) * stride + left.clamp(-1, width - 1) + 1).long()
        weights = ((1 - low) * (1 - right), (1 - low) * right, low * (1 - right), low * right)
        a, b, c, d = (torch.where(near, weight, 0.0) for weight in weights)
        return cls(index.to(device), (a, b, c, d), stride)

    def _neighbours(self, planes: Tensor) -> list[Tensor]:
        padded = torch.nn.functional.pad(planes, (1, 1, 1, 1)).flatten(1)
        return [padded.gather(1, self.corner + offset) for offset in (0, 1, self.stride, self.stride + 1)]

    def sample(self, planes: Tensor) -> Tensor:
        """Bilinear values of `(R, H, W)` floating point planes."""
        values = self._neighbours(planes)
        # Narrowed before they move: MPS cannot even hold doubles.
        weights = [weight.to(planes.dtype).to(planes.device) for weight in self.weights]
        terms = [value * weight for value, weight in zip(values, weights, strict=True)]
        return ((terms[0] + terms[1]) + (terms[2] + terms[3])).view_as(planes)

    def reach(self, planes: Tensor) -> Tensor:
        """Whether any neighbour with weight is True, for `(R, H, W)` bool planes."""
        weighty = [(weight > 0).to(planes.device) for weight in self.weights]
        hits = [value & weight for value, weight in zip(self._neighbours(planes), weighty, strict=True)]
        return ((hits[0] | hits[1]) | (hits[2] | hits[3])).view_as(planes)
