"""What each augmentation of COSE is called, which magnitudes the paper's code gives it and what they mean."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

Kind = Literal["geometric", "photometric"]


def single(value: float) -> float:
    """`value` rounded to IEEE single precision: the precision in which the paper's code keeps magnitudes."""
    rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return rounded


def _linspace(end: float) -> tuple[float, ...]:
    """Levels 1 to 30 of `torch.linspace(0, end, 31)`, computed as torch 1.12 does: from both ends.

    In single precision. The last bits matter: Pillow's blends truncate, so a factor off by one unit in the
    last place changes pixels.
    """
    step = single(single(end) / 30)
    rising = (single(step * level) for level in range(1, 15))
    falling = (single(single(end) - step * (30 - level)) for level in range(15, 31))
    return (*rising, *falling)


_FACTORS = _linspace(0.99)
_DEGREES = tuple(4.5 * level for level in range(1, 31))
# The paper's grid is linspace(0, 32, 31) truncated to whole pixels. Level 15 is 16.0 in torch 1.12 but
# 15.9999990 in newer ones, which truncates to 15: hence the pixels themselves instead of the grid.
_PIXELS = tuple(float(pixels) for pixels in (*range(1, 15), *range(16, 31), 32))


@dataclass(frozen=True, kw_only=True)
class AugmentationCard:
    """One augmentation, described.

    Attributes:
        id: Stable snake_case name; stands in URLs and stored results.
        title: Name for people.
        kind: `geometric` moves content, so its maps are warped back; `photometric` leaves it in place.
        unit: Unit of the magnitude: `px`, `°`, `factor` (the enhancement factor minus one), or empty.
        levels: The paper's 30 positive magnitudes, ascending; empty where the augmentation has none.
        signed: Whether the negative magnitudes exist too.
        bounds: Smallest and largest magnitude accepted.
        description: What a positive magnitude does, in a few words.
    """

    id: str
    title: str
    kind: Kind
    unit: str = ""
    levels: tuple[float, ...] = ()
    signed: bool = False
    bounds: tuple[float, float] = (0.0, 0.0)
    description: str

    @property
    def has_magnitude(self) -> bool:
        """Whether a variant of this augmentation carries a magnitude."""
        return bool(self.levels)


def _shift(id: str, title: str, description: str) -> AugmentationCard:
    return AugmentationCard(
        id=id, title=title, description=description, kind="geometric", unit="px", levels=_PIXELS, signed=True,
        bounds=(-4096.0, 4096.0),
    )  # fmt: skip


def _enhancement(id: str, title: str, description: str) -> AugmentationCard:
    return AugmentationCard(
        id=id, title=title, description=description, kind="photometric", unit="factor", levels=_FACTORS,
        signed=True, bounds=(-1.0, 9.0),
    )  # fmt: skip


_CARDS = (
    _shift("translate_x", "Translate X", "Moves the content right by whole pixels; black fills in."),
    _shift("translate_y", "Translate Y", "Moves the content down by whole pixels; black fills in."),
    AugmentationCard(
        id="rotate", title="Rotate", description="Turns the content counter-clockwise; black fills in.",
        kind="geometric", unit="°", levels=_DEGREES, signed=True, bounds=(-360.0, 360.0),
    ),
    _enhancement("brightness", "Brightness", "Brighter; −1 is black."),
    _enhancement("color", "Color", "More saturated; −1 is greyscale."),
    _enhancement("contrast", "Contrast", "More contrast; −1 is the mean grey."),
    _enhancement("sharpness", "Sharpness", "Sharper; −1 is smoothed."),
    AugmentationCard(
        id="auto_contrast", title="Auto contrast", kind="photometric",
        description="Stretches each channel to the full range.",
    ),
    AugmentationCard(
        id="equalize", title="Equalize", kind="photometric",
        description="Flattens each channel's histogram.",
    ),
    AugmentationCard(
        id="flip_lr", title="Flip left-right", kind="geometric", description="Mirrors left and right.",
    ),
    AugmentationCard(
        id="flip_ud", title="Flip up-down", kind="geometric", description="Mirrors top and bottom.",
    ),
    AugmentationCard(
        id="blur", title="Blur", kind="photometric", description="Mean of the 5x5 ring around each pixel.",
    ),
    AugmentationCard(
        id="smooth", title="Smooth", kind="photometric",
        description="3x3 mean in which the centre counts five times.",
    ),
)  # fmt: skip

AUGMENTATIONS: dict[str, AugmentationCard] = {card.id: card for card in _CARDS}
"""The thirteen augmentations in the paper's order, by id."""
