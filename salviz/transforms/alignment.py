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


class Realignment:
    """How maps of some variants' frames are laid back on the original one: worked out once for the maps of all methods.

    Translations and flips are undone exactly; rotations by bilinear sampling, `M'(y, x) = e(sy, sx)` with
    `sx = cos t (x - cx) - sin t (y - cy) + cx` and `sy = sin t (x - cx) + cos t (y - cy) + cy`, where `t` is
    minus the angle, `cx = (W - 1) / 2`, `cy = (H - 1) / 2` and taps outside the frame are 0 (scikit-image's
    `rotate`, as in the released code). Photometric variants move nothing.

    Translations and rotations have a mask: where the pixels that the augmented frame shows of the original
    come back with any weight.

    Attributes:
        validity: Which pixels of the realigned maps carry data.
    """

    def __init__(self, variants: Sequence[Variant], size: tuple[int, int], device: torch.device) -> None:
        """Work out the geometry.

        Args:
            variants: One a map.
            size: `(height, width)` of the maps.
            device: Of the maps.
        """
        self._variants = tuple(variants)
        pixels = torch.ones((len(variants), *size), dtype=torch.bool, device=device)
        has_mask = [variant.augmentation in _WITH_MASK for variant in variants]
        masked = torch.tensor(has_mask, dtype=torch.bool, device=device)
        for place, variant in enumerate(variants):
            if shift := _shift(variant):
                pixels[place] = _shift_back(pixels[place], *shift)
        turned = [place for place, variant in enumerate(variants) if variant.augmentation == "rotate"]
        self._turned, self._back = torch.tensor(turned, dtype=torch.long, device=device), None
        if turned:
            angles = [variants[place].magnitude or 0.0 for place in turned]
            self._back = _Taps.at([-angle for angle in angles], *size, device)
            pixels[self._turned] = self._back.reach(_covered(angles, *size, device))
        self.validity = Validity(pixels, masked)

    def __call__(self, maps: Tensor) -> Tensor:
        """Maps on the original frame, 0 where no data is.

        Args:
            maps: `(N, H, W)` floating point, one a variant.

        Returns:
            `(N, H, W)` in the same dtype.

        Raises:
            ValueError: If the maps are not that.
        """
        if maps.shape != self.validity.pixels.shape or not maps.is_floating_point():
            wanted = tuple(self.validity.pixels.shape)
            raise ValueError(f"maps must be {wanted} floating point, not {tuple(maps.shape)} {maps.dtype}")
        aligned = maps.clone()
        for place, variant in enumerate(self._variants):
            if shift := _shift(variant):
                aligned[place] = _shift_back(maps[place], *shift)
            elif variant.augmentation in ("flip_lr", "flip_ud"):
                aligned[place] = maps[place].flip(-1 if variant.augmentation == "flip_lr" else -2)
        if self._back is not None:
            aligned[self._turned] = self._back.sample(maps[self._turned])
        return aligned


def realign(maps: Tensor, variants: Sequence[Variant]) -> tuple[Tensor, Validity]:
    """Undo each variant's motion on the map of its frame, as `Realignment` says.

    Args:
        maps: `(N, H, W)` floating point, one a variant.
        variants: One a map.

    Returns:
        The maps on the original frame, `(N, H, W)` in the same dtype, 0 where no data is; and their validity.

    Raises:
        ValueError: If the maps are not `(N, H, W)` floating point, one a variant.
    """
    if maps.ndim != 3 or len(maps) != len(variants) or not maps.is_floating_point():
        raise ValueError(f"maps must be ({len(variants)}, H, W) floating point, not {tuple(maps.shape)} {maps.dtype}")
    back = Realignment(variants, (int(maps.shape[1]), int(maps.shape[2])), maps.device)
    return back(maps), back.validity


def _shift(variant: Variant) -> tuple[int, int] | None:
    """Pixels by which a translation moves the content to the right and down."""
    amount = int(variant.magnitude or 0)
    return {"translate_x": (amount, 0), "translate_y": (0, amount)}.get(variant.augmentation)


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
