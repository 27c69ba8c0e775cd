"""Lay a computed map over its photograph: display only, numpy only, a few milliseconds.

Maps come in as they were computed and are never changed. A display is a range of values, a colour table and
an opacity; changing any of them blends again and computes nothing.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from salviz.colormaps import colormap as colormap_card
from salviz.colormaps import lookup
from salviz.errors import RequestError
from salviz.flatness import is_flat

Pixels = NDArray[np.uint8]
Map = NDArray[np.floating[Any]]

UNSEEN_COLOUR = (128, 128, 128)
"""RGB of places without a value in a coloured map."""

UNSEEN_OPACITY = 0.6
"""Opacity of the veil of `UNSEEN_COLOUR` over the photograph where the map has no value.

Mere darkening would look like the low end of a colormap that begins with black.
"""


class DisplayRange(StrEnum):
    """Which values the two ends of a colormap stand for.

    With a diverging colormap zero always stays in the middle: `FULL`, `POSITIVE` and `NEGATIVE` then mean
    `SYMMETRIC`, and `PERCENTILE` and `CUSTOM` are widened to be symmetric.
    """

    FULL = "full"
    """From the lowest to the highest value."""
    SYMMETRIC = "symmetric"
    """From minus to plus the largest absolute value."""
    POSITIVE = "positive"
    """From zero to the highest value; what is negative looks like zero."""
    NEGATIVE = "negative"
    """From zero to the lowest value, which gets the last colour; what is positive looks like zero."""
    PERCENTILE = "percentile"
    """Between two percentiles, so that a few extreme values do not darken everything else."""
    CUSTOM = "custom"
    """Between two given values."""


def limits(
    maps: Map | Sequence[Map],
    mode: DisplayRange | str = DisplayRange.FULL,
    *,
    diverging: bool = False,
    percentiles: tuple[float, float] = (1.0, 99.0),
    custom: tuple[float, float] | None = None,
) -> tuple[float, float]:
    """The values that the first and the last colour stand for.

    Args:
        maps: One map, or several that share a scale; any shapes. NaN and infinite values are ignored.
        mode: How to choose.
        diverging: The colormap is diverging, see `DisplayRange`.
        percentiles: Lower and upper percentile, 0 to 100, for `DisplayRange.PERCENTILE`. With a diverging
            colormap the upper one of the absolute values is used.
        custom: The two values for `DisplayRange.CUSTOM`.

    Returns:
        ``(low, high)``: the value of the first colour and of the last. `low` is above `high` for
        `DisplayRange.NEGATIVE`, whose table runs downwards. Both are 0 when no value is finite.

    Raises:
        RequestError: The mode is unknown, `custom` is missing or not finite, or the percentiles are out of
            order.
    """
    try:
        mode = DisplayRange(mode)
    except ValueError:
        known = ", ".join(DisplayRange)
        raise RequestError(f"There is no display range called '{mode}': choose one of {known}.") from None
    if mode is DisplayRange.CUSTOM:
        if custom is None or not np.isfinite(custom).all():
            raise RequestError("A custom display range needs two finite numbers: give both ends.")
        bound = max(abs(custom[0]), abs(custom[1]))
        return (-bound, bound) if diverging else (float(custom[0]), float(custom[1]))
    lower, upper = percentiles
    if not 0 <= lower < upper <= 100:
        raise RequestError("The percentiles must be between 0 and 100, the lower one first.")

    values = _finite(maps)
    if values.size == 0:
        return 0.0, 0.0
    if mode is DisplayRange.PERCENTILE:
        if diverging:
            high = float(np.percentile(np.abs(values), upper))
            low = -high
        else:
            low, high = map(float, np.percentile(values, (lower, upper)))
        if low < high:
            return low, high
        # A map that is the same nearly everywhere would lose the few places that differ.
    low, high = float(values.min()), float(values.max())
    if diverging or mode is DisplayRange.SYMMETRIC:
        bound = max(abs(low), abs(high))
        return -bound, bound
    if mode is DisplayRange.POSITIVE:
        return 0.0, max(high, 0.0)
    if mode is DisplayRange.NEGATIVE:
        return 0.0, min(low, 0.0)
    return low, high


def colorize(saliency_map: Map, colormap: str, low: float, high: float) -> Pixels:
    """Turn values into colours.

    Args:
        saliency_map: ``(H, W)`` map of any float or integer type.
        colormap: Id of a colormap.
        low: Value of the first colour; what is beyond it looks the same.
        high: Value of the last colour; below `low` the table runs downwards. Where the two differ by no more
            than float32 rounding the map is flat and gets one colour: the first, or the middle of a diverging
            colormap.

    Returns:
        ``(H, W, 3)`` uint8 RGB. NaN becomes `UNSEEN_COLOUR`.

    Raises:
        ValueError: The map is not two-dimensional or an end is not finite.
        RequestError: The colormap is unknown.
    """
    table = lookup(colormap)
    if saliency_map.ndim != 2:
        raise ValueError(f"A map to colour has two dimensions, not {saliency_map.ndim}.")
    position = _position(saliency_map, low, high, flat=0.5 if colormap_card(colormap).is_diverging else 0.0)
    unseen = np.isnan(position)
    has_unseen = bool(unseen.any())
    if has_unseen:
        position[unseen] = 0.0
    # 256 equal bins, the last one closed, as matplotlib does.
    index = np.minimum(position * 256, 255).astype(np.uint8)
    coloured: Pixels = table[index]
    if has_unseen:
        coloured[unseen] = UNSEEN_COLOUR
    return coloured


def value_weight(saliency_map: Map, low: float, high: float, *, diverging: bool = False) -> NDArray[np.float32]:
    """How strongly each place is marked, for an overlay whose opacity follows the value.

    Args:
        saliency_map: ``(H, W)`` map.
        low: Value of the first colour.
        high: Value of the last colour.
        diverging: Measure from the middle of the range to either end instead of from `low` to `high`.

    Returns:
        ``(H, W)`` float32, 0 to 1; 0 everywhere for a flat map and where the map is NaN.

    Raises:
        ValueError: An end is not finite.
    """
    position = _position(saliency_map, low, high, flat=0.5 if diverging else 0.0)
    if diverging:
        position = np.abs(position * 2 - 1)
    return np.nan_to_num(position, copy=False, nan=0.0).astype(np.float32)


def blend(
    photo: Pixels,
    coloured: Pixels,
    opacity: float,
    *,
    weight: NDArray[np.floating[Any]] | None = None,
    seen: NDArray[np.bool_] | None = None,
) -> Pixels:
    """Lay colours over a photograph: ``(1 - a) * photo + a * coloured`` with ``a = opacity * weight``.

    Args:
        photo: ``(H, W, 3)`` uint8 RGB.
        coloured: ``(H, W, 3)`` uint8 RGB, such as `colorize` returns.
        opacity: 0 shows the photograph alone, 1 the colours alone.
        weight: ``(H, W)``, 0 to 1, such as `value_weight` returns; 1 everywhere by default.
        seen: ``(H, W)``; False where the model saw nothing, such as outside a centre crop. There the
            photograph stays visible under a grey veil, see `UNSEEN_OPACITY`.

    Returns:
        ``(H, W, 3)`` uint8 RGB, rounded to nearest.

    Raises:
        ValueError: The shapes do not fit or the opacity is not between 0 and 1.
    """
    if photo.ndim != 3 or photo.shape[2] != 3 or photo.shape != coloured.shape:
        raise ValueError(f"Photograph {photo.shape} and colours {coloured.shape} must both be (H, W, 3).")
    if not 0 <= opacity <= 1:
        raise ValueError(f"Opacity is between 0 and 1, not {opacity}.")
    for name, plane in (("weight", weight), ("seen", seen)):
        if plane is not None and plane.shape != photo.shape[:2]:
            raise ValueError(f"{name} {plane.shape} must have the photograph's {photo.shape[:2]} pixels.")
    base = photo.astype(np.float32)
    mixed = coloured.astype(np.float32)
    mixed -= base
    mixed *= np.float32(opacity) if weight is None else (weight * opacity).astype(np.float32)[..., None]
    mixed += base
    if seen is not None and not seen.all():
        veil = np.array(UNSEEN_COLOUR, dtype=np.float32) * np.float32(UNSEEN_OPACITY)
        mixed[~seen] = base[~seen] * np.float32(1 - UNSEEN_OPACITY) + veil
    mixed += 0.5  # the conversion cuts off
    return mixed.astype(np.uint8)


def overlay(
    photo: Pixels,
    saliency_map: Map,
    colormap: str,
    low: float,
    high: float,
    opacity: float,
    *,
    follow_value: bool = False,
) -> Pixels:
    """Colour a map and lay it over its photograph; places without a value are veiled in grey.

    Args:
        photo: ``(H, W, 3)`` uint8 RGB.
        saliency_map: ``(H, W)`` map on the photograph's pixels, NaN where the model saw nothing.
        colormap: Id of a colormap.
        low: Value of the first colour.
        high: Value of the last colour.
        opacity: 0 to 1, see `blend`.
        follow_value: Scale the opacity with `value_weight`, so that unmarked places stay as photographed.

    Returns:
        ``(H, W, 3)`` uint8 RGB.

    Raises:
        ValueError: The shapes do not fit, the opacity is not between 0 and 1, or an end is not finite.
        RequestError: The colormap is unknown.
    """
    coloured = colorize(saliency_map, colormap, low, high)
    weight = None
    if follow_value:
        weight = value_weight(saliency_map, low, high, diverging=colormap_card(colormap).is_diverging)
    return blend(photo, coloured, opacity, weight=weight, seen=~np.isnan(saliency_map))


def scale_bar(colormap: str, low: float, high: float, height: int = 12, *, length: int = 256) -> Pixels:
    """The colours from `low` on the left to `high` on the right.

    Args:
        colormap: Id of a colormap.
        low: Value of the first colour.
        high: Value of the last colour.
        height: Thickness in pixels.
        length: Length in pixels.

    Returns:
        ``(height, length, 3)`` uint8 RGB; of one colour where a map with these limits is flat.

    Raises:
        RequestError: The colormap is unknown.
    """
    row = colorize(np.linspace(low, high, length)[None], colormap, low, high)
    return np.repeat(row, height, axis=0)


def decimals(value: float) -> str:
    """Two decimals with a real minus sign; what rounds to zero has no sign."""
    text = f"{value:.2f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "−")


def format_probability(value: float) -> str:
    """Two decimals; `<0.01` and `>0.99` where these would say never or always of what is neither.

    Args:
        value: 0 to 1.
    """
    text = decimals(value)
    if value > 0 and text == "0.00":
        return "<0.01"
    return ">0.99" if value < 1 and text == "1.00" else text


def format_value(value: float) -> str:
    """A label for an end of a scale bar: three significant digits, a true minus sign."""
    if not np.isfinite(value):
        return "undefined"
    text = f"{float(value) + 0.0:.3g}"  # adding zero turns -0.0 into 0.0
    return text.replace("-", "−")


def side_by_side(arrays: Sequence[Pixels], gap: int = 8, *, background: int = 255) -> Pixels:
    """Put pictures into one row, aligned at the top.

    Args:
        arrays: At least one ``(H, W, 3)`` uint8 picture; heights and widths may differ.
        gap: Pixels between neighbours.
        background: Grey level, 0 to 255, of gaps and of what lower pictures leave empty.

    Returns:
        ``(max H, sum W + gaps, 3)`` uint8 RGB.

    Raises:
        ValueError: There is no picture.
    """
    if not arrays:
        raise ValueError("There is no picture to put side by side.")
    width = sum(array.shape[1] for array in arrays) + gap * (len(arrays) - 1)
    row = np.full((max(array.shape[0] for array in arrays), width, 3), background, dtype=np.uint8)
    left = 0
    for array in arrays:
        height, width = array.shape[:2]
        row[:height, left : left + width] = array
        left += width + gap
    return row


def resize_for_display(array: Pixels, width: int, *, smooth: bool = True) -> Pixels:
    """Scale a picture to a width, keeping its proportions.

    Args:
        array: ``(H, W, 3)`` or ``(H, W)`` uint8.
        width: Width of the result in pixels, at least 1.
        smooth: Interpolate linearly, which invents no colours; False repeats pixels, so that the grid a map
            was computed on stays visible.

    Returns:
        uint8 with `width` columns and the same number of dimensions.

    Raises:
        ValueError: `width` is below 1.
    """
    if width < 1:
        raise ValueError(f"A picture has at least one column, not {width}.")
    height = max(1, round(array.shape[0] * width / array.shape[1]))
    how = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    return np.array(Image.fromarray(array).resize((width, height), how))


def png(array: Pixels) -> bytes:
    """Pack a picture as PNG, lossless and quickly rather than small.

    Args:
        array: ``(H, W, 3)`` or ``(H, W)`` uint8.

    Returns:
        The file's bytes.
    """
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def jpeg(array: Pixels) -> bytes:
    """Pack a picture that holds a photograph as JPEG, for looking at: full colour resolution, high quality.

    Args:
        array: ``(H, W, 3)`` uint8.

    Returns:
        The file's bytes.
    """
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", quality=92, subsampling=0)
    return buffer.getvalue()


def _finite(maps: Map | Sequence[Map]) -> NDArray[np.float64]:
    """Every finite value of one map or several, in one row."""
    arrays = [maps] if isinstance(maps, np.ndarray) else maps
    rows = [np.asarray(array, dtype=np.float64).ravel() for array in arrays]
    values: NDArray[np.float64] = np.concatenate([np.empty(0), *rows])
    kept: NDArray[np.float64] = values[np.isfinite(values)]
    return kept


def _position(saliency_map: Map, low: float, high: float, *, flat: float) -> NDArray[np.float64]:
    """Where each value lies between the ends, 0 to 1; `flat` everywhere for ends that coincide. NaN stays."""
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"The ends of a display range are finite, not {low} and {high}.")
    if is_flat(low, high):
        return np.where(np.isnan(saliency_map), np.nan, flat)
    # In float64: the difference of two large close values would lose what is to be seen.
    position = np.asarray(saliency_map, dtype=np.float64) - low
    position /= high - low
    return np.clip(position, 0.0, 1.0, out=position)
