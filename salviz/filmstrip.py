"""What people see of a randomisation test's maps: rows of small pictures, and one stage at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from salviz import maps
from salviz.overlay import colorize, overlay, resize_for_display, side_by_side
from salviz.render import Display, value_limits
from salviz.sanity.strip import Strip

Pixels = NDArray[np.uint8]
_GAP = 6
"""Pixels between maps."""
_UNDEFINED = 128
"""Grey of a map without a finite value."""


def values(strip: Strip, method: str, place: int, *, is_signed: bool, is_smooth: bool) -> NDArray[np.float32]:
    """A map at the input's resolution, `(H, W)` float32."""
    found = torch.from_numpy(strip.map(method, place, is_signed=is_signed))[None]
    size = (int(strip.frame.shape[1]), int(strip.frame.shape[2]))
    laid = maps.resize(found, size) if is_smooth else maps.repeat_cells(found, size)
    return np.asarray(laid[0].numpy(), dtype=np.float32)


def stage(strip: Strip, method: str, place: int, display: Display, *, is_overlay: bool) -> Pixels:
    """One net's map, alone or over what the model sees: `(H, W, 3)` uint8. Each map has its own scale.

    Args:
        strip: The film strips.
        method: Id of a row.
        place: 0 for the trained net.
        display: Display choices.
        is_overlay: Over the picture.
    """
    found = values(strip, method, place, is_signed=display.is_signed, is_smooth=display.is_smooth)
    if not np.isfinite(found).any():
        return np.full((*found.shape, 3), _UNDEFINED, dtype=np.uint8)
    low, high = value_limits(method, strip.map(method, place, is_signed=display.is_signed), display)
    if not is_overlay:
        return colorize(found, display.colormap_id, low, high)
    under = np.ascontiguousarray(strip.frame.permute(1, 2, 0).numpy())
    return overlay(under, found, display.colormap_id, low, high, display.opacity, follow_value=display.follows_value)


def row(strip: Strip, method: str, places: Sequence[int], display: Display, *, width: int, background: int) -> Pixels:
    """A method's maps side by side: `(h, w, 3)` uint8.

    Args:
        strip: The film strips.
        method: Id of a row.
        places: Which nets.
        display: Display choices.
        width: Of each map, in pixels.
        background: Grey between them.
    """
    shown = [
        resize_for_display(stage(strip, method, place, display, is_overlay=False), width)
        for place in places
        if place < len(strip.top)
    ]
    missing = len(places) - len(shown)
    blank = np.full((*shown[0].shape[:2], 3), background, dtype=np.uint8)
    return side_by_side([*shown, *[blank] * missing], _GAP, background=background)


def sheet(strip: Strip, titles: Mapping[str, str], names: Sequence[str], choices: Mapping[str, Display]) -> Pixels:
    """The film strips of several methods under each other, with their names and those of the nets.

    Args:
        strip: The film strips.
        titles: Names of the methods, in the order of their rows.
        names: Of the nets that are shown, from the trained one on (see `report.net_names`).
        choices: Display choices, by method.

    Returns:
        `(h, w, 3)` uint8 on white.
    """
    width, line = 112, 16
    rows = [row(strip, method, range(len(names)), choices[method], width=width, background=255) for method in titles]
    # Pillow's own font has no multiplication sign.
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), 12)
    left = 12 + max(round(font.getlength(title)) for title in titles.values())
    headings = [wrapped(name, width, font.getlength) for name in names]
    top = _GAP + line * max(len(heading) for heading in headings)
    canvas = Image.new("RGB", (left + rows[0].shape[1], top + sum(part.shape[0] + _GAP for part in rows)), "white")
    draw = ImageDraw.Draw(canvas)
    for column, heading in enumerate(headings):
        # The last lines stand on the maps.
        start = top - _GAP - line * len(heading)
        for number, text in enumerate(heading):
            draw.text((left + column * (width + _GAP), start + number * line), text, fill="black", font=font)
    for title, part in zip(titles.values(), rows, strict=True):
        draw.text((2, top + part.shape[0] // 2 - 8), title, fill="black", font=font)
        canvas.paste(Image.fromarray(part), (left, top))
        top += part.shape[0] + _GAP
    return np.asarray(canvas, dtype=np.uint8)


def wrapped(name: str, width: float, length: Callable[[str], float]) -> list[str]:
    """A name in lines that are no longer than a map is wide.

    Args:
        name: Of a net. A word too long for a line keeps its end, which tells nets apart: blocks share their beginning.
        width: Of a line.
        length: Of a text, in the same unit.
    """
    lines: list[str] = []
    for word in name.split():
        while length(word) > width and len(word) > 1:
            word = "…" + word.lstrip("…")[1:]
        if lines and length(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
