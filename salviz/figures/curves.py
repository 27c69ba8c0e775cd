"""What becomes of maps as a net is randomised: along the stages, or where there is only one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from salviz.figures import PALETTES, SYMBOLS, dashes, layout, legend, whiskers
from salviz.metrics.randomisation import CALIBRATION
from salviz.overlay import decimals

if TYPE_CHECKING:
    from salviz.metrics import Score
    from salviz.metrics.randomisation import Curve

_DASHES = {"random": "dot", "edge": "dash"}
"""Of the calibration lines."""
_ROW = 46
"""Pixels of a row: a method's name, and under it its point."""


def randomisation(
    stages: Sequence[str],
    curves: Mapping[str, Curve],
    colours: Mapping[str, str],
    titles: Mapping[str, str],
    *,
    current: int | None,
    measure: str,
    theme: str,
) -> go.Figure:
    """Similarity with the trained net's map along the stages, with intervals and the calibration lines.

    Args:
        stages: Names of the randomised nets, in their order; see `intervals` where there is one.
        curves: By method; `random` and `edge` are drawn as calibration lines.
        colours: CSS colour of each method.
        titles: Name of each method.
        current: Index of the stage that the slider stands on; None for the trained net.
        measure: Title of the similarity.
        theme: `light` or `dark`.
    """
    palette = PALETTES[theme]
    figure = go.Figure()
    patterns = {**dashes(colours), **_DASHES}
    places = list(range(len(stages)))
    for number, (method, curve) in enumerate(curves.items()):
        values = [None if math.isnan(score.value) else score.value for score in curve.stages]
        is_line = method in CALIBRATION
        known = [i for i in places if not is_line and not math.isnan(curve.stages[i].low)]
        if len(known) > 1:
            figure.add_trace(
                go.Scatter(
                    x=[*known, *known[::-1]],
                    y=[*(curve.stages[i].high for i in known), *(curve.stages[i].low for i in known[::-1])],
                    fill="toself", mode="none", hoverinfo="skip", showlegend=False, opacity=0.18,
                    fillcolor=colours[method], legendgroup=method,
                )
            )  # fmt: skip
        figure.add_trace(
            go.Scatter(
                x=places, y=values, name=titles[method],
                mode="lines" if is_line else "lines+markers",
                legendgroup=method, connectgaps=False,
                line={"color": palette.muted if is_line else colours[method], "width": 1.5 if is_line else 2,
                      "dash": patterns[method]},
                marker={"size": 7, "symbol": SYMBOLS[number % len(SYMBOLS)]},
                customdata=[
                    [stages[i], f"{score.undefined} undefined" if score.undefined else ""]
                    for i, score in enumerate(curve.stages)
                ],
                hovertemplate=titles[method] + ", %{customdata[0]}: %{y:.2f} %{customdata[1]}<extra></extra>",
            )
        )  # fmt: skip
    if current is not None:
        figure.add_vline(x=current, line={"color": palette.muted, "width": 1, "dash": "dot"})
    figure.update_layout(**layout(palette, 460))
    legend(figure, bottom=96)
    figure.update_xaxes(
        tickvals=places, ticktext=[_shortened(name) for name in stages], tickangle=-60,
        showgrid=False, fixedrange=True, zeroline=False,
    )  # fmt: skip
    figure.update_yaxes(
        title=measure, gridcolor=palette.grid, zerolinecolor=palette.muted, fixedrange=True, range=_range(curves)
    )
    return figure


def intervals(
    curves: Mapping[str, Curve],
    colours: Mapping[str, str],
    titles: Mapping[str, str],
    *,
    measure: str,
    theme: str,
) -> go.Figure:
    """Similarity with the trained net's map where one net, or one question, takes its place: a row a method.

    Names stand above their points and values at the right, so that the longest leaves a phone room for the scale.

    Args:
        curves: By method, of one stage; lines run down through `random` and `edge`.
        colours: CSS colour of each method.
        titles: Name of each method.
        measure: Title of the similarity.
        theme: `light` or `dark`.
    """
    palette = PALETTES[theme]
    figure = go.Figure()
    for place, (method, curve) in enumerate(curves.items()):
        (score,) = curve.stages
        is_line = method in CALIBRATION
        colour = palette.muted if is_line else colours[method]
        is_known = not math.isnan(score.value)
        figure.add_trace(
            go.Scatter(
                x=[score.value if is_known else None], y=[place], name=titles[method], mode="markers",
                marker={"size": 9, "color": colour, "symbol": SYMBOLS[place % len(SYMBOLS)]},
                error_x={**whiskers(score), "color": colour} if is_known else None,
                hovertemplate=f"{titles[method]}: {_in_digits(score)}<extra></extra>",
            )
        )  # fmt: skip
        if is_line and is_known:
            figure.add_vline(
                x=score.value, layer="below", line={"color": palette.muted, "width": 1.5, "dash": _DASHES[method]}
            )
        for text, x, anchor in ((titles[method], 0, "left"), (_in_digits(score), 1, "right")):
            figure.add_annotation(
                text=text, x=x, xref="paper", xanchor=anchor, y=place, yshift=16, showarrow=False,
                font={"color": palette.muted if is_line else palette.text}, bgcolor=palette.ground,
            )  # fmt: skip
    figure.update_layout(**layout(palette, _ROW * len(curves) + 64))
    figure.update_layout(margin={"l": 12, "r": 12, "t": 4, "b": 44})
    figure.update_xaxes(
        title=measure, gridcolor=palette.grid, zerolinecolor=palette.grid, fixedrange=True, range=_range(curves)
    )
    figure.update_yaxes(
        range=[len(curves) - 0.5, -0.7], tickvals=list(range(len(curves))), showticklabels=False,
        gridcolor=palette.grid, zeroline=False, fixedrange=True,
    )  # fmt: skip
    return figure


def _in_digits(score: Score) -> str:
    """`0.71 [0.66, 0.75]`, and how many pictures have no value."""
    if math.isnan(score.value):
        return "undefined"
    text = decimals(score.value)
    if not math.isnan(score.low):
        text += f" [{decimals(score.low)}, {decimals(score.high)}]"
    return text + (f", {score.undefined} undefined" if score.undefined else "")


def _range(curves: Mapping[str, Curve]) -> list[float]:
    """From below the smallest value, or 0, to a little above 1."""
    low = [score.value for curve in curves.values() for score in curve.stages if not math.isnan(score.value)]
    return [min([0.0, *low]) - 0.05, 1.05]


def _shortened(name: str, most: int = 16) -> str:
    """The end of a module's name, which tells more than its beginning."""
    return name if len(name) <= most else "…" + name[1 - most :]
