"""Every plotly figure: one template, so that charts look alike on every page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go


@dataclass(frozen=True)
class Palette:
    """Colours of a theme; kept and changed differ in lightness as well as hue."""

    text: str
    muted: str
    grid: str
    accent: str
    kept: str
    changed: str
    bar: str


PALETTES: dict[str, Palette] = {
    "light": Palette("#1b1f24", "#5b6470", "#e3e6ea", "#1d5fa8", "#1d5fa8", "#c2570c", "#c9dcf1"),
    "dark": Palette("#e8eaed", "#a4acb7", "#333940", "#7db4ec", "#7db4ec", "#f2a65a", "#2c4866"),
}

# A method has one colour everywhere; its family gives the hue, its place in the family the lightness.
FAMILY_HUES = {
    "gradients": 210,
    "paths": 265,
    "class activation maps": 20,
    "perturbation": 150,
    "controls": 0,
}


def method_colour(family: str, place: int) -> str:
    """CSS colour of the method at `place` (0-based) in its family; controls are grey."""
    lightness = 36 + 9 * (place % 5)
    saturation = 0 if family == "controls" else 58
    return f"hsl({FAMILY_HUES[family]},{saturation}%,{lightness}%)"


def _layout(palette: Palette, height: int) -> dict[str, object]:
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


def top_classes(names: Sequence[str], probabilities: Sequence[float], *, target: str, theme: str) -> go.Figure:
    """Bars of the most probable classes, names above their bars so that long ones stay whole.

    Args:
        names: Most probable first.
        probabilities: In [0, 1].
        target: Name of the explained class; drawn in the accent colour.
        theme: `light` or `dark`.
    """
    palette = PALETTES[theme]
    rows = list(range(len(names)))[::-1]
    figure = go.Figure(
        go.Bar(
            x=list(probabilities),
            y=rows,
            orientation="h",
            width=0.34,
            marker={
                "color": [palette.accent if name == target else palette.bar for name in names],
                "line": {"width": 0},
            },
            hovertemplate="%{customdata}: %{x:.3f}<extra></extra>",
            customdata=list(names),
        )
    )
    for row, name, probability in zip(rows, names, probabilities, strict=True):
        text = f"<b>{name}</b>" if name == target else name
        figure.add_annotation(x=0, y=row + 0.36, text=text, showarrow=False, xanchor="left", xref="paper", align="left")
        figure.add_annotation(
            x=1, y=row + 0.36, text=f"{probability:.2f}", showarrow=False, xanchor="right", xref="paper"
        )
    figure.update_layout(**_layout(palette, 46 * len(rows) + 16))
    figure.update_xaxes(range=[0, 1], visible=False, fixedrange=True)
    figure.update_yaxes(range=[-0.4, len(rows) - 0.35], visible=False, fixedrange=True)
    return figure


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
                customdata=[predictions[i] for i in chosen],
                hovertemplate="%{x:g} " + unit + ": SSIM %{y:.2f}<br>%{customdata}<extra></extra>",
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
    figure.update_layout(**_layout(palette, 300))
    figure.update_layout(
        showlegend=True,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        margin={"l": 56, "r": 8, "t": 28, "b": 48},
    )
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
