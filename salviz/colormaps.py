"""Colormaps as data: 256-entry RGB tables, taken from matplotlib, with a card each.

Unsigned maps are shown with a perceptually uniform sequential table, signed ones with a diverging table whose
middle is zero. matplotlib is imported when the first table is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from salviz.errors import RequestError


@dataclass(frozen=True)
class Colormap:
    """The card of a colormap.

    Attributes:
        id: Stable public id, the name under which matplotlib and the literature know it.
        title: What the picker shows.
        kind: ``sequential``: from little to much. ``diverging``: from against, over nothing, to for.
        note: One sentence on when to use it.
    """

    id: str
    title: str
    kind: Literal["sequential", "diverging"]
    note: str

    @property
    def is_diverging(self) -> bool:
        """Whether the middle of the table stands for zero."""
        return self.kind == "diverging"


COLORMAPS: dict[str, Colormap] = {
    card.id: card
    for card in (
        Colormap("inferno", "Inferno", "sequential", "Perceptually uniform; the default."),
        Colormap("viridis", "Viridis", "sequential", "Perceptually uniform, without black."),
        Colormap("magma", "Magma", "sequential", "Perceptually uniform, softer than inferno."),
        Colormap("plasma", "Plasma", "sequential", "Perceptually uniform, bright throughout."),
        Colormap("cividis", "Cividis", "sequential", "The same to colour-blind readers."),
        Colormap("gray", "Grey", "sequential", "For print: black is the lowest value."),
        Colormap("hot", "Hot", "sequential", "Not perceptually uniform; for comparison with papers."),
        Colormap(
            "jet",
            "Jet",
            "sequential",
            "Not perceptually uniform: shows edges where there are none; for comparison with older papers.",
        ),
        Colormap("RdBu_r", "Red-blue", "diverging", "Red speaks for the target, blue against it."),
        Colormap("coolwarm", "Cool-warm", "diverging", "As red-blue, with a grey middle."),
        Colormap("seismic", "Seismic", "diverging", "Strong ends; for comparison with papers."),
    )
}
"""Every colormap's card by id, in the order a picker shows them."""

DEFAULT_SEQUENTIAL = "inferno"
"""Id of the colormap for unsigned maps."""

DEFAULT_DIVERGING = "RdBu_r"
"""Id of the colormap for signed maps."""


def colormap(colormap_id: str) -> Colormap:
    """Look a card up.

    Args:
        colormap_id: A `Colormap.id`.

    Returns:
        The card.

    Raises:
        RequestError: No colormap has this id.
    """
    try:
        return COLORMAPS[colormap_id]
    except KeyError:
        known = ", ".join(COLORMAPS)
        raise RequestError(f"There is no colormap called '{colormap_id}': choose one of {known}.") from None


@cache
def lookup(colormap_id: str) -> NDArray[np.uint8]:
    """The colours of a colormap.

    Args:
        colormap_id: A `Colormap.id`.

    Returns:
        Read-only ``(256, 3)`` uint8 array, RGB, from the lowest value to the highest.

    Raises:
        RequestError: No colormap has this id.
    """
    card = colormap(colormap_id)
    import matplotlib  # a third of a second that pages without a map need not spend

    table: NDArray[np.uint8] = matplotlib.colormaps[card.id](np.arange(256), bytes=True)[:, :3].copy()
    table.setflags(write=False)
    return table
