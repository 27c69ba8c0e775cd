"""What people see of an exploration: the photograph, its map, overlays and the cards of its variants.

Display choices only: everything here re-blends stored maps in a few milliseconds and recomputes none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from salviz import maps, methods
from salviz.colormaps import DEFAULT_DIVERGING, DEFAULT_SEQUENTIAL, colormap
from salviz.exploration import Exploration
from salviz.images import Picture
from salviz.overlay import DisplayRange, colorize, limits, overlay, side_by_side

Pixels = NDArray[np.uint8]
Scale = Literal["map", "shared"]

PHOTO_WIDTH = 560
"""Width at which photographs are drawn, in pixels: sharp in a third of a wide window, light to send."""


@dataclass(frozen=True)
class Display:
    """Display choices.

    Attributes:
        colormap: Id, or `auto`: inferno for unsigned maps, RdBu_r for signed ones.
        opacity: Of the map over the photograph, 0 to 1.
        is_signed: Whether the map's sign is shown.
        range_mode: A `DisplayRange` value, or `auto`: up to the 99th percentile for maps of single pixels,
            which a few outliers would turn flat, and the full range for others.
        scale: Each map its own range, or all maps of the page one: the clean map's, or the rows' common range.
        is_smooth: Interpolated, or the method's own cells.
        follows_value: Whether the overlay's opacity grows with the value, so that the photograph stays visible where
            the map says nothing; else it is even.
    """

    colormap: str = "auto"
    opacity: float = 0.7
    is_signed: bool = False
    range_mode: str = "auto"
    scale: Scale = "map"
    is_smooth: bool = True
    follows_value: bool = True

    @property
    def colormap_id(self) -> str:
        """The colormap with `auto` resolved."""
        if self.colormap != "auto":
            return self.colormap
        return DEFAULT_DIVERGING if self.is_signed else DEFAULT_SEQUENTIAL

    @property
    def is_diverging(self) -> bool:
        """Whether zero stands in the middle of the colormap."""
        return colormap(self.colormap_id).is_diverging


def photograph(picture: Picture, width: int = PHOTO_WIDTH) -> Pixels:
    """The photograph at display size: `(h, width, 3)` uint8; never enlarged beyond twice its size."""
    image = picture.image
    chosen = min(width, 2 * image.width)
    height = max(1, round(image.height * chosen / image.width))
    return np.asarray(image.resize((chosen, height)), dtype=np.uint8)


def on_photograph(
    exploration: Exploration, size: tuple[int, int], *, is_signed: bool, is_smooth: bool = True
) -> NDArray[np.float32]:
    """The clean map on the whole photograph, in the method's own values.

    Args:
        exploration: The result.
        size: `(width, height)` of the photograph as it is to be drawn.
        is_signed: The map with its sign; else the method's unsigned form.
        is_smooth: Interpolated; else in the method's own cells.

    Returns:
        `(height, width)` float32, NaN where the model saw nothing.
    """
    found = exploration.native_map(is_signed=is_signed)[None]
    frame = (int(exploration.frames.shape[2]), int(exploration.frames.shape[3]))
    found = maps.resize(found, frame) if is_smooth else maps.repeat_cells(found, frame)
    return np.asarray(exploration.placement.scaled(size).lay(found)[0].numpy(), dtype=np.float32)


def clean_limits(exploration: Exploration, display: Display) -> tuple[float, float]:
    """Display range of the clean map, from its own resolution: what the scale bar says."""
    return _limits(exploration, 0, display)


def _limits(exploration: Exploration, row: int, display: Display) -> tuple[float, float]:
    values = exploration.native_map(row, is_signed=display.is_signed).numpy()
    return value_limits(exploration.request.method, values, display)


def common_limits(explorations: Sequence[Exploration], display: Display) -> tuple[float, float]:
    """Display range that holds the clean map's range of each: under it no map is clipped more than under its own.

    Args:
        explorations: At least one; maps in the same units.
        display: Display choices.
    """
    lows, highs = zip(*(clean_limits(exploration, display) for exploration in explorations), strict=True)
    return min(lows), max(highs)


def value_limits(method: str, values: NDArray[np.float32], display: Display) -> tuple[float, float]:
    """Display range of a method's values."""
    mode = display.range_mode
    if mode == "auto":
        is_fine = methods.get(method).card.scaling == "percentile"
        mode = DisplayRange.PERCENTILE if is_fine else DisplayRange.FULL
    return limits(values, mode, diverging=display.is_diverging, percentiles=(0.0, 99.0))


@dataclass(frozen=True)
class Pictures:
    """The three pictures of equal size: `(h, w, 3)` uint8 each, and the range of the scale bar."""

    photo: Pixels
    map: Pixels
    overlay: Pixels
    low: float
    high: float


def pictures(exploration: Exploration, picture: Picture, display: Display, *, width: int = PHOTO_WIDTH) -> Pictures:
    """Photograph, map and overlay, all on the whole photograph."""
    photo = photograph(picture, width)
    size = (photo.shape[1], photo.shape[0])
    found = on_photograph(exploration, size, is_signed=display.is_signed, is_smooth=display.is_smooth)
    low, high = clean_limits(exploration, display)
    return Pictures(
        photo=photo,
        map=colorize(found, display.colormap_id, low, high),
        overlay=overlay(
            photo, found, display.colormap_id, low, high, display.opacity, follow_value=display.follows_value
        ),
        low=low,
        high=high,
    )


def compared(
    exploration: Exploration,
    picture: Picture,
    display: Display,
    *,
    part: Literal["map", "overlay"],
    width: int,
    limits: tuple[float, float] | None = None,
) -> Pixels:
    """A row of a comparison on the whole photograph: `(h, width, 3)` uint8.

    Args:
        exploration: The row.
        picture: The photograph.
        display: Display choices; the map always shows the method's own cells.
        part: `map`, or `overlay` over the photograph.
        width: In pixels.
        limits: Display range that rows have in common; the row's own where None.
    """
    photo = photograph(picture, width)
    size = (photo.shape[1], photo.shape[0])
    is_smooth = part == "overlay" and display.is_smooth
    found = on_photograph(exploration, size, is_signed=display.is_signed, is_smooth=is_smooth)
    low, high = clean_limits(exploration, display) if limits is None else limits
    if part == "map":
        return colorize(found, display.colormap_id, low, high)
    return overlay(photo, found, display.colormap_id, low, high, display.opacity, follow_value=display.follows_value)


def _frame_pixels(frame: torch.Tensor) -> Pixels:
    return np.ascontiguousarray(frame.permute(1, 2, 0).numpy())


def row_overlay(exploration: Exploration, row: int, display: Display, *, is_aligned: bool) -> Pixels:
    """A row's map over a frame: `(H, W, 3)` uint8.

    Args:
        exploration: The result.
        row: Which row.
        display: Display choices.
        is_aligned: The map laid back on the clean frame; else in the row's own frame, over that frame.
    """
    found, valid = exploration.display_map(
        row, is_signed=display.is_signed, is_aligned=is_aligned, is_smooth=display.is_smooth
    )
    values = found.numpy()
    # Of the method's own values: a map that was turned back has mixtures with nothing along its edges.
    low, high = _limits(exploration, 0 if display.scale == "shared" else row, display)
    shown = np.where(valid.numpy(), values, np.nan).astype(np.float32)
    under = _frame_pixels(exploration.frame(0 if is_aligned else row))
    return overlay(under, shown, display.colormap_id, low, high, display.opacity, follow_value=display.follows_value)


def frame_overlay(method: str, raw: torch.Tensor, frame: torch.Tensor, display: Display) -> Pixels:
    """A map over what the model saw, on a scale of its own: `(H, W, 3)` uint8.

    Args:
        method: Id of its method.
        raw: `(h, w)` or `(C, h, w)` float32 as the method returned it.
        frame: `(3, H, W)` uint8.
        display: Display choices.
    """
    one = raw.unsqueeze(0)
    found = maps.signed(one) if display.is_signed else maps.unsigned(one, methods.get(method).card.evidence)
    low, high = value_limits(method, found[0].numpy(), display)
    size = (int(frame.shape[1]), int(frame.shape[2]))
    laid = maps.resize(found, size) if display.is_smooth else maps.repeat_cells(found, size)
    return overlay(
        _frame_pixels(frame), laid[0].numpy(), display.colormap_id, low, high, display.opacity,
        follow_value=display.follows_value,
    )  # fmt: skip


def row_card(exploration: Exploration, row: int, display: Display, *, background: int = 255) -> Pixels:
    """What the model saw in a row beside its map laid back on the clean frame: `(H, 2 W + gap, 3)` uint8."""
    seen = _frame_pixels(exploration.frame(row))
    return side_by_side([seen, row_overlay(exploration, row, display, is_aligned=True)], 4, background=background)
