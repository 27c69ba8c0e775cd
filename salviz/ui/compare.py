"""The panels of the Compare page, from top to bottom."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import streamlit as st

from salviz.overlay import format_probability, format_value
from salviz.ui import clickable, display, drawn, fields, follow, panels, rows, state
from salviz.ui.sidebar import Pick

if TYPE_CHECKING:
    from collections.abc import Sequence

    from salviz.comparison import Comparison
    from salviz.exploration import Exploration
    from salviz.render import Display
    from salviz.request import Request

CHEAP, ALL = "compare.cheap", "compare.all"
"""Slots: rows that follow every change by themselves, and all rows once the person wants the slow ones too."""

SUPPORT = "compare.support"

_MAP_WIDTH = 232
_BRANCHES, _CELL, _MATRIX, _NAMES = 80, 52, 640, 310
"""Widths of the matrix's branches, of a cell, of all of it at the most, and of the names, in pixels, where there is
room for them."""


_APART = {
    "methods": "Each map has its own scale: maps of different methods have different units.",
    "models": "Each map has its own scale: scores of different models have different units.",
}
"""Rows whose maps are not the same quantity, so that one scale for all would have no meaning."""


@dataclass
class View:
    """What the page shows.

    Attributes:
        chosen: What is to be compared.
        pick: The shared pick.
        cheap: Where the work for the cheap rows stands.
        every: Where the work for all rows stands, where some are slow.
        comparison: On screen.
    """

    chosen: rows.Chosen
    pick: Pick
    cheap: follow.Followed | None
    every: follow.Followed | None
    comparison: Comparison | None


def look(chosen: rows.Chosen, pick: Pick) -> View:
    """Ask for what was chosen: cheap rows at once, slow ones when the person wants them."""
    if not chosen.requests or pick.picture is None:
        return View(chosen, pick, None, None, None)
    cheap, slow = rows.split(chosen)
    first = follow.follow(CHEAP, rows.comparing(chosen, cheap, pick.picture, is_costly=False)) if cheap else None
    every = follow.follow(ALL, rows.comparing(chosen, chosen.requests, pick.picture, is_costly=True)) if slow else None
    # All rows, once there are as many of them as of the cheap ones.
    results = [followed.result for followed in (every, first) if followed is not None and followed.result is not None]
    return View(chosen, pick, first, every, max(results, key=lambda result: len(result.found), default=None))


def header(pick: Pick) -> None:
    """What is on screen, in one line, with the link."""
    picture, loaded, kind = pick.picture, pick.loaded, st.session_state["rows"]
    names = [picture.name if picture else "Compare"]
    if kind != "models" and loaded is not None:
        names.append(loaded.classifier.title)
    if kind != "methods" and pick.request is not None:
        names.append(_card(pick.request).title)
    panels.header(names, picture)


def _card(request: Request) -> Any:
    from salviz import methods

    return methods.get(request.method).card


def status(view: View) -> None:
    """One line that is always there: how far the work is, or what slow rows would cost."""
    with st.container(key="status"):
        asked = [(slot, found) for slot, found in ((ALL, view.every), (CHEAP, view.cheap)) if found is not None]
        # Cheap rows that are on their way come before the offer to compute the dear ones too.
        for slot, followed in asked:
            if followed.state == "running":
                follow.progress(slot, followed, "Comparing")
                return
        for slot, followed in asked:
            if followed.state != "done":
                _offer(view, slot, followed)
                return
        if view.comparison is not None:
            seconds = sum(row.seconds for row in view.comparison.rows)
            sentence = f"{len(view.comparison.rows)} rows in {seconds:.1f} s."
            if view.chosen.kind == "methods":
                sentence += " Methods that need the same passes share them; the first of them is charged."
            if view.chosen.kind == "classes":
                sentence += " Passes that do not depend on the class are shared, and all are charged alike."
            st.caption(sentence)
        elif view.pick.request is not None and not view.chosen.requests:
            st.caption("Nothing is chosen. Choose at least one row above.")


def _offer(view: View, slot: str, followed: follow.Followed) -> None:
    known = 0 if view.comparison is None else len(view.comparison.found)
    missing = len(view.chosen.requests) - known if not view.chosen.top else view.chosen.top
    count = panels.counted(missing, "row", "rows")
    cost = f"{f'{count} more' if known else count} will take about {follow.duration(followed.seconds)}."
    follow.offer(slot, followed, waiting=cost, name="The comparison")


def empty(view: View) -> None:
    """The layout while the first rows are on their way."""
    if not any(followed is not None and followed.state == "running" for followed in (view.cheap, view.every)):
        return
    for _ in range(3):
        for column in st.columns([1, 1, 1.4]):
            with column:
                st.skeleton(200)


@st.fragment
def grid(view: View) -> None:
    """A row an explanation: its own cells, the overlay, and how it agrees with the row above."""
    comparison = view.comparison
    assert comparison is not None  # noqa: S101 - the page asked
    if st.session_state.get("_switch"):
        # A map was clicked: the frame opens the other page.
        st.rerun()
    shown = comparison.rows
    with st.container(horizontal=True, vertical_alignment="center"):
        display.controls(
            None,
            scale="Scale of the rows",
            shared="One for all",
            apart=_APART.get(view.chosen.kind, ""),
            # The map beside the overlay is there to show them as computed.
            cells="Cells of the overlay",
        )
        limits = common_scale(view.chosen.kind, shown)
        st.caption(f"{scale_in_force(view.chosen.kind, limits)} Click a map to open it in Explore.", width="stretch")
    for place, row in enumerate(shown):
        _row(view, limits, place, row)
    for request in comparison.requests:
        if request.digest in comparison.problems:
            st.caption(f"**{_card(request).title}**: {comparison.problems[request.digest]}")
    state.write_url()


def common_scale(kind: str, shown: Sequence[Exploration]) -> tuple[float, float] | None:
    """The range all rows are drawn in, or None where each has its own.

    Args:
        kind: What the rows are.
        shown: The rows on the page.
    """
    from salviz import render

    if kind in _APART or not shown:
        return None
    choices = display.chosen(_card(shown[0].request))
    return render.common_limits(shown, choices) if choices.scale == "shared" else None


def scale_in_force(kind: str, limits: tuple[float, float] | None) -> str:
    """One short sentence: which scale the maps have.

    Args:
        kind: What the rows are.
        limits: Of all rows, or None where each has its own.
    """
    if limits is not None:
        return f"One scale for all maps: {format_value(limits[0])} to {format_value(limits[1])}."
    return _APART.get(kind, "Each map has its own scale.")


def _row(view: View, limits: tuple[float, float] | None, place: int, row: Exploration) -> None:
    card = _card(row.request)
    choices = display.chosen(card)
    title = _title(view, row)
    picture = view.pick.picture
    assert picture is not None  # noqa: S101 - something was compared
    low, high = _limits(row, limits, choices)
    bar = clickable.Scale(drawn.scale(choices.colormap_id, low, high), format_value(low), format_value(high))
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key=f"row.{place}"):
        # Side by side in the narrowest window too; the text goes below them there.
        with st.container(horizontal=True, wrap=False, gap="small", width=2 * _MAP_WIDTH):
            part: Literal["map", "overlay"]
            for part in ("map", "overlay"):
                content = drawn.compared(row.request.digest, part, choices, 2 * _MAP_WIDTH, limits, row, picture)
                with st.container(width="stretch"):
                    clickable.picture(
                        content,
                        alt=f"{title}: {part}",
                        title="Open in Explore",
                        key=f"open.{part}.{row.request.digest}",
                        on_press=partial(_open, row.request),
                        scale=bar if part == "map" else None,
                    )
        st.markdown(_text(view, place, row, (low, high), title), width=320)


def _limits(row: Exploration, limits: tuple[float, float] | None, choices: Display) -> tuple[float, float]:
    """The range a row is drawn in: that of all rows, or its own."""
    from salviz import render

    return render.clean_limits(row, choices) if limits is None else limits


def _text(view: View, place: int, row: Exploration, limits: tuple[float, float], title: str) -> str:
    comparison = view.comparison
    assert comparison is not None  # noqa: S101 - the page asked
    low, high = limits
    probability = float(row.probabilities[0, int(row.classes[0])])
    lines = [f"**{title}**"]
    if view.chosen.kind != "classes":
        name, rival = _explained(view, row)
        lines.append(f"{name} ({format_probability(probability)}){rival}")
    else:
        lines.append(f"probability {format_probability(probability)}")
    width, height = row.grid
    lines.append(f"{width} × {height} cells, scale {format_value(low)} to {format_value(high)}")
    lines.append(f"{duration(row.seconds)}, {panels.counted(row.passes, 'pass', 'passes')}")
    if row.standard_error is not None:
        lines.append(panels.standard_error(row))
    if row.completeness is not None:
        lines.append(panels.completeness(row))
    lines += panels.flatness(row)
    if place:
        found = comparison.agreement
        spearman, ssim = float(found.spearman[place, place - 1]), float(found.ssim[place, place - 1])
        lines.append(f"with the row above: Spearman {panels.number(spearman)}, SSIM {panels.number(ssim)}")
    return "  \n".join(lines)


def duration(seconds: float) -> str:
    """`under 1 ms`, `12 ms`, or from ten seconds on `75 s`."""
    if seconds < 0.0005:
        return "under 1 ms"
    return f"{1000 * seconds:.0f} ms" if seconds < 10 else f"{seconds:.0f} s"


def _explained(view: View, row: Exploration) -> tuple[str, str]:
    labels = view.chosen.loaded[row.request.weights].classifier.labels
    name, rival = panels.explained(row, labels.short)
    return panels.plain(name), panels.plain(rival)


def _title(view: View, row: Exploration) -> str:
    if view.chosen.kind == "methods":
        return str(_card(row.request).title)
    if view.chosen.kind == "models":
        return panels.plain(view.chosen.loaded[row.request.weights].classifier.title)
    return "".join(_explained(view, row))


def opened(request: Request) -> dict[str, Any]:
    """What a click on a row makes of the session: the pick becomes the row's, and Explore the page.

    Args:
        request: Of the row.
    """
    defaults = _card(request).check_parameters(None)
    settings = {name: fields.text(value) for name, value in request.parameters if value != defaults[name]}
    target = {} if request.target is None else {"target": request.target}
    return {
        "method": request.method,
        "model": request.classifier,
        **target,
        "_settings": settings,
        "_switch": "explore",
    }


def _open(request: Request) -> None:
    """Show a row in Explore."""
    st.session_state.update(opened(request))


def agreement(view: View) -> None:
    """Who agrees with whom: the matrix in the order of its tree."""
    from salviz import figures

    comparison = view.comparison
    assert comparison is not None  # noqa: S101 - the page asked
    shown = comparison.rows
    if len(shown) < 2:
        return
    st.subheader("Who agrees with whom", anchor=False)
    measure = panels.choice("Agreement", {"spearman": "Spearman", "ssim": "SSIM"}, "alike")
    found = comparison.agreement
    values = found.spearman if measure == "spearman" else found.ssim
    titles, tree = [_title(view, row) for row in shown], found.tree(measure)
    # Names stand beside the matrix, each at its row; in a narrow window they go below it.
    with st.container(horizontal=True, gap="small", key="matrix"):
        st.plotly_chart(
            figures.agreement(titles, values.tolist(), tree, measure=measure, theme=panels.theme()),
            theme=None,
            width=min(_MATRIX, _BRANCHES + _CELL * len(titles)),
            key="agreement",
            config={"displayModeBar": False},
            alt=f"{measure} of every pair of maps: "
            + "; ".join(
                f"{a} and {b} {panels.number(float(values[i, j]))}"
                for i, a in enumerate(titles)
                for j, b in enumerate(titles[:i])
            ),
        )
        with st.container(width=_NAMES, gap=None):
            st.space(figures.MATRIX_TOP)
            for number, place in enumerate(figures.matrix_order(len(titles), tree), start=1):
                with st.container(height=figures.CELL, vertical_alignment="center", border=False):
                    st.markdown(f"**{number}** {titles[place]}")
    told = (
        "Each cell compares the maps of its row and column, whose numbers stand on the diagonal; branches join the "
        "most alike first, by one minus the value in the cell."
    )
    if tree is not None and len(tree.branches) < len(titles) - 1:
        told += " A map without an agreement, such as a flat one, comes last and has no branch."
    st.caption(told)


def support(view: View) -> None:
    """What works on the model, and why the rest does not; computed when somebody opens it."""
    loaded = view.pick.loaded
    if loaded is None:
        return
    box = st.expander(f"What works on {loaded.classifier.title}", key="support", on_change="rerun")
    if not box.open:
        return
    with box:
        task = follow.Task(f"support|{loaded.classifier.digest}|{loaded.key}", 0.0, False, partial(_probe, loaded))
        followed = follow.follow(SUPPORT, task)
        if followed.state == "running":
            follow.progress(SUPPORT, followed, "Trying every method", unit="methods")
        elif followed.result is None:
            st.caption(followed.error or "The trial was stopped.")
        else:
            _support_table(followed.result)


def _probe(loaded: Any, job: Any) -> Any:
    from salviz.support import probe

    return probe(loaded.classifier, progress=job.tick)


def _support_table(table: Any) -> None:
    from salviz.methods import METHODS

    lines = ["| Method | Works | Map, or why not |", "|---|---|---|"]
    for row in table.rows:
        # Letters with an unbreakable space: a line may break beside an icon, and the mark would stand alone.
        mark = "✓\N{NO-BREAK SPACE}yes" if row.state == "works" else f"✕\N{NO-BREAK SPACE}{row.state}"
        where = f" at `{row.layer}`" if row.layer else ""
        told = row.reason if row.grid is None else f"{row.grid[1]} × {row.grid[0]} cells{where}"
        lines.append(f"| {METHODS[row.method].card.title} | {mark} | {panels.plain(told) if row.reason else told} |")
    st.markdown("\n".join(lines))
    st.caption("Every method was tried on one picture of noise with its cheapest settings.")
