"""The charts of a run's results; page and report draw the same."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from salviz.figures import PALETTES, SYMBOLS, layout, legend, whiskers
from salviz.overlay import decimals
from salviz.runs.results import Grouped, Spread, Strength
from salviz.runs.summary import Scored
from salviz.transforms import AUGMENTATIONS

_LEVELS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
Names = Mapping[str, str]


def consistency_against_sensitivity(
    scores: Sequence[Scored], colours: Names, titles: Names, models: Names, *, theme: str
) -> go.Figure:
    """Both halves of COSE with their intervals, and curves of equal COSE.

    Args:
        scores: Of a run.
        colours: CSS colour of each method.
        titles: Name of each method.
        models: Name of each model; each has a symbol.
        theme: `light` or `dark`.
    """
    palette, figure = PALETTES[theme], go.Figure()
    points: dict[tuple[str, str], dict[str, Scored]] = {}
    for one in scores:
        if one.metric == "cose":
            points.setdefault((one.model, one.method), {})[one.quantity] = one
    known = [p for p in points.values() if not math.isnan(p["cose"].score.value)]
    ends = [1.0, *(end for p in known for end in (p["sensitivity"].score.value, p["sensitivity"].score.high))]
    # An interval that is not known is no end.
    end = 1.02 * float(np.nanmax(ends))
    along = np.linspace(0.01, end, 200)
    for level in _LEVELS:
        across = level**2 / along
        keep = across <= 1.02
        if not keep.any():
            continue
        figure.add_trace(
            go.Scatter(
                x=along[keep], y=across[keep], mode="lines", hoverinfo="skip", showlegend=False,
                line={"color": palette.grid, "width": 1},
            )
        )  # fmt: skip
        figure.add_annotation(
            x=along[keep][-1], y=across[keep][-1], text=f"COSE {level:.1f}", showarrow=False, xanchor="left",
            font={"size": 11, "color": palette.muted},
        )  # fmt: skip
    symbols = {model: SYMBOLS[place % len(SYMBOLS)] for place, model in enumerate(models)}
    named: set[str] = set()
    for (model, method), parts in points.items():
        consistency, sensitivity, cose = (parts[name].score for name in ("consistency", "sensitivity", "cose"))
        if math.isnan(cose.value):
            continue
        figure.add_trace(
            go.Scatter(
                x=[sensitivity.value], y=[consistency.value], mode="markers", name=titles[method],
                legendgroup=method, showlegend=method not in named,
                marker={"color": colours[method], "symbol": symbols[model], "size": 10},
                error_x=whiskers(sensitivity) | {"color": colours[method]},
                error_y=whiskers(consistency) | {"color": colours[method]},
                hovertemplate=f"{titles[method]}, {models[model]}<br>consistency %{{y:.2f}}, sensitivity %{{x:.2f}}, "
                f"COSE {decimals(cose.value)}<extra></extra>",
            )
        )  # fmt: skip
        named.add(method)
    if len(models) > 1:
        for model, symbol in symbols.items():
            figure.add_trace(
                go.Scatter(
                    x=[None], y=[None], mode="markers", name=models[model], hoverinfo="skip",
                    marker={"color": palette.muted, "symbol": symbol, "size": 10},
                )
            )  # fmt: skip
    figure.update_layout(**layout(palette, 440))
    legend(figure)
    figure.update_xaxes(
        # With room for what the curves are called, where no point can lie on it.
        title="Sensitivity",
        gridcolor=palette.grid,
        zeroline=False,
        fixedrange=True,
        range=[0, 1.22 * end],
        ticklabelstandoff=4,
    )
    figure.update_yaxes(
        title="Consistency", gridcolor=palette.grid, zeroline=False, fixedrange=True, rangemode="tozero"
    )
    return figure


def spread(
    found: Sequence[Spread], colours: Names, titles: Names, models: Names, *, axis: str, theme: str
) -> go.Figure:
    """A box a model and method: quartiles, and whiskers from 5 to 95 % of the pictures.

    Args:
        found: What is drawn.
        colours: CSS colour of each method.
        titles: Name of each method.
        models: Name of each model.
        axis: Name of the score.
        theme: `light` or `dark`.
    """
    palette, figure = PALETTES[theme], go.Figure()
    for one in reversed(found):
        name = titles[one.method] + (f", {models[one.model]}" if len(models) > 1 else "")
        _, low, first, median, third, high, _ = one.quantiles
        figure.add_trace(
            go.Box(
                y=[name], q1=[first], median=[median], q3=[third], lowerfence=[low], upperfence=[high],
                orientation="h", line={"color": colours[one.method], "width": 1.5}, showlegend=False,
                hoverinfo="x", name=name,
            )
        )  # fmt: skip
    figure.update_layout(**layout(palette, 90 + 34 * max(1, len(found))))
    figure.update_layout(margin={"l": 8, "r": 8, "t": 8, "b": 48})
    figure.update_xaxes(title=f"{axis} of a picture", gridcolor=palette.grid, zeroline=False, fixedrange=True)
    figure.update_yaxes(automargin=True, fixedrange=True, showgrid=False)
    return figure


def grouped(
    found: Sequence[Grouped], order: Mapping[str, str], colours: Names, titles: Names, *, axis: str, theme: str
) -> go.Figure:
    """A score by group of pictures, a symbol a method.

    Args:
        found: What is drawn, of one model.
        order: Name of each group, in the order in which they stand.
        colours: CSS colour of each method.
        titles: Name of each method.
        axis: Name of the score.
        theme: `light` or `dark`.
    """
    palette, figure = PALETTES[theme], go.Figure()
    names = list(dict.fromkeys(one.method for one in found))
    places = {group: place for place, group in enumerate(order)}
    sizes = {group: max((one.images for one in found if one.group == group), default=0) for group in order}
    for number, method in enumerate(names):
        mine = [one for one in found if one.method == method and one.group in places]
        shift = 0.5 * (number - (len(names) - 1) / 2) / max(1, len(names))
        figure.add_trace(
            go.Scatter(
                x=[one.score.value for one in mine], y=[places[one.group] + shift for one in mine], mode="markers",
                name=titles[method],
                marker={"color": colours[method], "symbol": SYMBOLS[number % len(SYMBOLS)], "size": 8},
                error_x=whiskers(*(one.score for one in mine)) | {"color": colours[method]},
                customdata=[[order[one.group], one.images] for one in mine],
                hovertemplate=titles[method]
                + ", %{customdata[0]}: %{x:.2f} (%{customdata[1]} pictures)<extra></extra>",
            )
        )  # fmt: skip
    figure.update_layout(**layout(palette, 120 + max(22 * len(names), 26) * max(1, len(order))))
    legend(figure, left=8)
    figure.update_xaxes(title=axis, gridcolor=palette.grid, zeroline=False, fixedrange=True)
    figure.update_yaxes(
        tickvals=list(places.values()), automargin=True,
        ticktext=[f"{_short(name)} ({sizes[group]:,})" for group, name in order.items()],
        autorange="reversed", fixedrange=True, showgrid=False, zeroline=False,
    )  # fmt: skip
    return figure


def strength(
    found: Sequence[Strength], name: str, colours: Names, titles: Names, *, axis: str, theme: str
) -> go.Figure:
    """Similarity of maps over an augmentation's magnitude, a line a method.

    Args:
        found: Of one model.
        name: Of the augmentation.
        colours: CSS colour of each method.
        titles: Name of each method.
        axis: Name of the similarity.
        theme: `light` or `dark`.
    """
    palette, figure, card = PALETTES[theme], go.Figure(), AUGMENTATIONS[name]
    for number, method in enumerate(dict.fromkeys(one.method for one in found)):
        mine = sorted((one for one in found if (one.method, one.name) == (method, name)), key=lambda one: one.level)
        figure.add_trace(
            go.Scatter(
                x=[one.level for one in mine], y=[one.value for one in mine], mode="lines+markers",
                name=titles[method], line={"color": colours[method], "width": 2},
                marker={"size": 7, "symbol": SYMBOLS[number % len(SYMBOLS)]},
                customdata=[[f"{one.kept:.0%}", one.count] for one in mine],
                hovertemplate=titles[method] + ": %{y:.2f} at %{x:.3g}, prediction kept for %{customdata[0]} of "
                "%{customdata[1]}<extra></extra>",
            )
        )  # fmt: skip
    figure.update_layout(**layout(palette, 340))
    legend(figure)
    unit = "factor − 1" if card.unit == "factor" else card.unit
    figure.update_xaxes(
        title=f"{card.title} ({unit})", gridcolor=palette.grid, zerolinecolor=palette.grid, fixedrange=True
    )
    figure.update_yaxes(title=axis, gridcolor=palette.grid, zerolinecolor=palette.grid, fixedrange=True)
    return figure


def settings(found: Sequence[Strength], colours: Names, titles: Names, *, axis: str, theme: str) -> go.Figure:
    """Similarity under every setting that has no magnitude, and the mean of those that have one.

    Args:
        found: Of one model.
        colours: CSS colour of each method.
        titles: Name of each method.
        axis: Name of the similarity.
        theme: `light` or `dark`.
    """
    palette, figure = PALETTES[theme], go.Figure()
    names = list(dict.fromkeys(one.name for one in found))
    methods = list(dict.fromkeys(one.method for one in found))
    many = len(methods)
    for number, method in enumerate(methods):
        xs, ys, shown = [], [], []
        for place, name in enumerate(names):
            mine = [one for one in found if (one.method, one.name) == (method, name)]
            weight = sum(one.count for one in mine)
            if weight:
                xs.append(sum(one.value * one.count for one in mine) / weight)
                # Beside each other: points that coincide hide each other.
                ys.append(place + 0.5 * (number - (many - 1) / 2) / many)
                shown.append(_setting(name))
        figure.add_trace(
            go.Scatter(
                x=xs, y=ys, mode="markers", name=titles[method],
                marker={"color": colours[method], "symbol": SYMBOLS[number % len(SYMBOLS)], "size": 9},
                customdata=shown,
                hovertemplate=titles[method] + ", %{customdata}: %{x:.2f}<extra></extra>",
            )
        )  # fmt: skip
    figure.update_layout(**layout(palette, 110 + 26 * max(1, len(names))))
    legend(figure, left=8)
    figure.update_xaxes(title=axis, gridcolor=palette.grid, zerolinecolor=palette.grid, fixedrange=True)
    figure.update_yaxes(
        tickvals=list(range(len(names))), ticktext=[_short(_setting(name)) for name in names], automargin=True,
        autorange="reversed", fixedrange=True, showgrid=False, zeroline=False,
    )  # fmt: skip
    return figure


def _setting(name: str) -> str:
    """A setting's name for people."""
    if name in AUGMENTATIONS:
        return AUGMENTATIONS[name].title
    return "Untrained twin" if name == "untrained" else name


def _short(text: str, most: int = 26) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
