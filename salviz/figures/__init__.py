"""Every plotly figure: one template, so that charts look alike on every page."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from salviz.methods import METHODS
from salviz.metrics import Score
from salviz.overlay import decimals

if TYPE_CHECKING:
    from salviz.agreement import Tree


@dataclass(frozen=True)
class Palette:
    """Colours of a theme; kept and changed differ in lightness as well as hue, and the ground is the page's."""

    text: str
    muted: str
    grid: str
    kept: str
    changed: str
    ground: str


PALETTES: dict[str, Palette] = {
    "light": Palette("#1b1f24", "#5b6470", "#e3e6ea", "#1d5fa8", "#c2570c", "#ffffff"),
    "dark": Palette("#e8eaed", "#a4acb7", "#333940", "#7db4ec", "#f2a65a", "#121417"),
}

METHOD_COLOURS = ("#3ca5f0", "#a5a50f", "#e178b4", "#006987", "#8769c3", "#c3693c", "#785a00", "#2d9678")
"""Blue, olive, pink, teal, violet, rust, brown, green: on white and on near-black, and for colour-blind people too, any
two of them are further apart than the closest of Okabe and Ito's eight (found by search; a test measures it)."""

# A method has one colour everywhere. Methods of a family go round the palette, so that eight of them differ: one hue in
# eight shades cannot be told apart as lines. Each family begins where its first and most used methods meet no others'.
_FAMILY_STARTS = {
    "gradients": 7,
    "paths": 6,
    "class activation maps": 5,
    "perturbation": 1,
    "optimised masks": 3,
    "relevance": 6,
    "attention": 1,
}
_GREY = "#8a8f98"


def method_colour(family: str, place: int) -> str:
    """CSS colour of a method, the same in both themes; controls are grey.

    Args:
        family: Its family.
        place: Among all methods (0-based).
    """
    if family == "controls":
        return _GREY
    first = next(i for i, method in enumerate(METHODS.values()) if method.card.family == family)
    return METHOD_COLOURS[(_FAMILY_STARTS[family] + place - first) % len(METHOD_COLOURS)]


DASHES = ("solid", "dashdot", "longdash", "longdashdot")
"""Of lines of one colour: more methods than the palette has colours, or two of different families."""


def dashes(colours: Mapping[str, str]) -> dict[str, str]:
    """A dash for each method of a chart: solid, but for those whose colour another one before it has.

    Args:
        colours: CSS colour of each method, in their order.
    """
    seen: Counter[str] = Counter()
    found = {}
    for method, colour in colours.items():
        found[method] = DASHES[seen[colour] % len(DASHES)]
        seen[colour] += 1
    return found


def layout(palette: Palette, height: int) -> dict[str, object]:
    """What all charts have in common.

    Args:
        palette: Of the theme.
        height: Pixels.
    """
    return {
        "height": height,
        "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": palette.text, "size": 13, "family": "Source Sans, sans-serif"},
        "hoverlabel": {"font": {"size": 13}},
        "showlegend": False,
        "dragmode": False,
    }


def legend(figure: go.Figure, *, left: int = 56, bottom: int = 48) -> None:
    """The legend above a chart, in a line.

    Args:
        figure: The chart.
        left: Pixels for the axis.
        bottom: Pixels for the other.
    """
    figure.update_layout(
        showlegend=True,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        margin={"l": left, "r": 8, "t": 28, "b": bottom},
    )


def magnitude(value: float, unit: str) -> str:
    """An augmentation's magnitude as people write it: `−67.5°`, `+0.40`."""
    text = f"{value:+.2f}" if unit == "factor" else f"{value:+.4g} {unit}"
    return text.strip().replace("-", "−").replace(" °", "°")


def similarity_against_magnitude(
    magnitudes: Sequence[float],
    similarities: Sequence[float],
    kept: Sequence[bool],
    *,
    current: int,
    unit: str,
    augmentation: str,
    predictions: Sequence[str],
    theme: str,
) -> go.Figure:
    """Similarity of the realigned map to the clean one over an augmentation's magnitudes.

    Args:
        magnitudes: Ascending.
        similarities: SSIM of each; NaN leaves a gap.
        kept: Whether the prediction stayed.
        current: Index of the point the slider stands on.
        unit: Unit of the magnitude.
        augmentation: Its title.
        predictions: Predicted class at each magnitude.
        theme: `light` or `dark`.
    """
    palette = PALETTES[theme]
    values = [None if math.isnan(value) else value for value in similarities]
    figure = go.Figure()
    figure.add_trace(
        go.Scatter(
            x=list(magnitudes),
            y=values,
            mode="lines",
            line={"color": palette.muted, "width": 1.5},
            hoverinfo="skip",
            showlegend=False,
        )
    )
    for stays, name, colour, symbol in (
        (True, "prediction kept", palette.kept, "circle"),
        (False, "prediction changed", palette.changed, "diamond"),
    ):
        chosen = [i for i, flag in enumerate(kept) if flag is stays]
        figure.add_trace(
            go.Scatter(
                x=[magnitudes[i] for i in chosen],
                y=[values[i] for i in chosen],
                mode="markers",
                name=name,
                marker={"color": colour, "symbol": symbol, "size": 8},
                customdata=[[magnitude(magnitudes[i], unit), predictions[i]] for i in chosen],
                hovertemplate="%{customdata[0]}: SSIM %{y:.2f}<br>%{customdata[1]}<extra></extra>",
            )
        )
    if values[current] is not None:
        figure.add_trace(
            go.Scatter(
                x=[magnitudes[current]],
                y=[values[current]],
                mode="markers",
                showlegend=False,
                hoverinfo="skip",
                marker={"size": 17, "color": "rgba(0,0,0,0)", "line": {"color": palette.text, "width": 2}},
            )
        )
    figure.add_vline(x=magnitudes[current], line={"color": palette.muted, "width": 1, "dash": "dot"})
    figure.update_layout(**layout(palette, 300))
    legend(figure)
    axis = f"{augmentation} ({unit})" if unit and unit != "factor" else f"{augmentation} (factor − 1)"
    figure.update_xaxes(title=axis, gridcolor=palette.grid, zerolinecolor=palette.grid, fixedrange=True)
    low = min([0.0, *(value for value in values if value is not None)])
    figure.update_yaxes(
        title="SSIM to the clean map",
        range=[low - 0.02, 1.03],
        gridcolor=palette.grid,
        zerolinecolor=palette.grid,
        fixedrange=True,
    )
    return figure


CELL = 34
"""Pixels of a row of the matrix: names beside it stand in lines of this height."""
MATRIX_TOP = 32
"""Pixels above its first row."""


def agreement(
    titles: Sequence[str],
    values: Sequence[Sequence[float]],
    tree: Tree | None,
    *,
    measure: str,
    theme: str,
) -> go.Figure:
    """Pairwise agreement of maps as a matrix beside its dendrogram, its rows and columns numbered.

    Numbers stand on the diagonal, where a map would be compared with itself; names stand beside the matrix or below
    it (see `matrix_order`), since beside cells that can be read a phone has no room for them.

    Args:
        titles: R names.
        values: `R x R` in [-1, 1]; NaN leaves a cell empty.
        tree: Puts the alike together; None keeps the order and draws no branches.
        measure: `spearman` or `ssim`.
        theme: `light` or `dark`.
    """
    palette = PALETTES[theme]
    order = matrix_order(len(titles), tree)
    cells = [[math.nan if i == j else values[i][j] for j in order] for i in order]
    shown = [[None if math.isnan(value) else value for value in row] for row in cells]
    names = [titles[i] for i in order]
    places = list(range(len(names)))
    figure = make_subplots(cols=2, shared_yaxes=True, column_widths=[0.12, 0.88], horizontal_spacing=0.004)
    for rows, heights in () if tree is None else tree.branches:
        figure.add_trace(
            go.Scatter(
                x=[-height for height in heights], y=rows, mode="lines", hoverinfo="skip",
                line={"color": palette.muted, "width": 1.5},
            ),
            row=1, col=1,
        )  # fmt: skip
    label = "Spearman" if measure == "spearman" else "SSIM"
    figure.add_trace(
        go.Heatmap(
            z=shown, x=places, y=places, zmin=-1, zmax=1, colorscale="RdBu_r",
            xgap=1, ygap=1, text=[["" if v is None else decimals(v) for v in row] for row in shown],
            texttemplate="%{text}", textfont={"size": 13 if len(names) <= _ROOMY else 11},
            customdata=[[f"{a} and {b}" for b in names] for a in names],
            hovertemplate="%{customdata}: " + label + " %{z:.2f}<extra></extra>", hoverongaps=False, showscale=False,
        ),
        row=1, col=2,
    )  # fmt: skip
    for place in places:
        figure.add_annotation(
            x=place, y=place, text=f"<b>{place + 1}</b>", showarrow=False, hovertext=names[place], row=1, col=2
        )
    figure.update_layout(**layout(palette, CELL * len(names) + MATRIX_TOP + 8))
    figure.update_layout(margin={"l": 0, "r": 0, "t": MATRIX_TOP, "b": 8})
    ends = len(names) - 0.5
    axis = {"tickvals": places, "showgrid": False, "fixedrange": True, "ticks": "", "zeroline": False}
    # Wider than the tree: the line of its root has a width too.
    root = max((max(heights) for _, heights in (() if tree is None else tree.branches)), default=0.0) or 1.0
    figure.update_xaxes(visible=False, fixedrange=True, range=[-1.04 * root, 0], row=1, col=1)
    figure.update_yaxes(**axis, range=[ends, -0.5], showticklabels=False)
    numbers = [str(place + 1) for place in places]
    figure.update_xaxes(**axis, range=[-0.5, ends], ticktext=numbers, tickangle=0, side="top", row=1, col=2)
    return figure


_ROOMY = 8
"""Rows up to which a phone has room for digits of the usual size."""


def matrix_order(count: int, tree: Tree | None) -> list[int]:
    """Which of so many maps each row of the matrix is."""
    return list(range(count)) if tree is None else list(tree.order)


SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "triangle-down", "cross")
"""What tells methods of one colour apart, and all of them in a print without colours."""


def whiskers(*scores: Score) -> dict[str, Any]:
    """The intervals of points; none where a score has none."""
    known = [not math.isnan(score.low) for score in scores]
    pairs = list(zip(known, scores, strict=True))
    return {
        "type": "data", "symmetric": False, "thickness": 1.5, "width": 4,
        "array": [score.high - score.value if has else 0.0 for has, score in pairs],
        "arrayminus": [score.value - score.low if has else 0.0 for has, score in pairs],
    }  # fmt: skip
