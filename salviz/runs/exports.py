"""A run as files to take along: tables, and one HTML page with all charts that opens with no network."""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment
from plotly.offline import get_plotlyjs

from salviz.errors import DataError
from salviz.plain import digits
from salviz.runs import plots, results, rollup, summary, table, words
from salviz.runs.folder import RunFolder
from salviz.runs.results import Overview

MOST_ROWS = 5_000_000
"""Rows that are put into one file; the run's folder holds all of them as Parquet files."""

_CHART = {"displaylogo": False, "modeBarButtons": [["toImage"]], "toImageButtonOptions": {"format": "svg"}}

_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; max-width: 72rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto; }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid #e3e6ea; white-space: nowrap; }
td.reason { white-space: normal; } p.caption { color: #5b6470; font-size: .9rem; margin-top: .25rem; }
pre { background: #f3f4f6; padding: .75rem; overflow-x: auto; font-size: .85rem; }
</style><script>{{ plotly|safe }}</script></head><body>
<h1>{{ title }}</h1>
<p class="caption">{{ subtitle }}</p>
<h2>Scores</h2>
<table><thead><tr>{% for name in heads %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>{% for line in lines %}<tr>{% for cell in line %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table>
{% if counts %}<p class="caption">{{ counts }}</p>
{% endif %}<p class="caption">Mean over pictures and settings, with the 95 % bootstrap interval over pictures.</p>
{% for name, chart, caption in charts %}<h2>{{ name }}</h2>{{ chart|safe }}<p class="caption">{{ caption }}</p>
{% endfor %}
{% if failures %}<h2>What failed</h2>
<table><thead><tr><th>Model</th><th>Method</th><th>Metric</th><th>Pictures</th><th>Reason</th>
</tr></thead><tbody>{% for one in failures %}<tr><td>{{ one[0] }}</td><td>{{ one[1] }}</td><td>{{ one[2] }}</td>
<td>{{ one[3] }}</td><td class="reason">{{ one[4] }}</td></tr>
{% endfor %}</tbody></table>{% endif %}
<h2>How it was made</h2><pre>{{ about }}</pre>
</body></html>
"""


def scores_csv(found: Overview) -> bytes:
    """A line a model, method and score."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "method", "metric", "score", "value", "low", "high", "count", "undefined"])
    for one in found.scores:
        numbers = [digits(value) for value in (one.score.value, one.score.low, one.score.high)]
        writer.writerow(
            [one.model, one.method, one.metric, one.quantity, *numbers, one.score.count, one.score.undefined]
        )
    return text.getvalue().encode()


def images(folder: RunFolder) -> bytes:
    """A row an image, model, method, metric and quantity, as Parquet."""
    rollup.roll(folder)
    return (folder.path / rollup.FOLDER / rollup.IMAGES).read_bytes()


def rows(folder: RunFolder, kind: Literal["csv", "parquet"]) -> bytes:
    """All rows as one file.

    Raises:
        DataError: There are more than `MOST_ROWS`.
    """
    with table.scan(folder.files()) as connection, tempfile.TemporaryDirectory() as place:
        (count,) = connection.execute("select count(*) from rows").fetchone() or (0,)
        if count > MOST_ROWS:
            raise DataError(f"The run has {count:,} rows, too many for one file: read the Parquet files in its folder.")
        path = Path(place) / f"rows.{kind}"
        order = "model, method, metric, place, quantity, setting"
        connection.execute(f"copy (select * from rows order by {order}) to '{path}' (format {kind})")  # noqa: S608
        return path.read_bytes()


def report(folder: RunFolder, found: Overview | None = None) -> bytes:
    """One HTML page with scores, charts, failures and provenance.

    Args:
        folder: Of the run.
        found: Its overview, where it is at hand.
    """
    from salviz.plain import json_text

    found = results.overview(folder) if found is None else found
    spec = folder.spec
    names, titles = words.models(spec.models), words.methods(results.methods_of(found))
    pairs = list(dict.fromkeys((one.metric, one.quantity) for one in found.scores))
    known = {(one.metric, one.quantity, one.model, one.method): one.score for one in found.scores}
    images = {pair: results.resting(folder, *pair) for pair in pairs}
    lines = [
        [titles[method], names[model]]
        + [
            words.cell(known[key], images[pair].get((model, method)))
            if (key := (*pair, model, method)) in known
            else ""
            for pair in pairs
        ]
        for method in titles
        for model in spec.models
        if any((*pair, model, method) in known for pair in pairs)
    ]
    status = folder.status()
    complete = "complete" if status.is_complete else f"{status.done} of {status.shards} parts are there"
    if failed := summary.failed(folder):
        complete += f"; something failed for {failed} of the pictures"
    content = Environment(autoescape=True).from_string(_TEMPLATE).render(
        title=words.run(spec),
        subtitle=f"{len(folder.sample)} pictures, seed {spec.seed}, begun {folder.about['created']}; {complete}",
        plotly=get_plotlyjs(),
        heads=["Method", "Model", *(words.score(*pair) for pair in pairs)],
        lines=lines,
        counts=words.counts(summary.counted(folder)) if any(metric == "cose" for metric, _ in pairs) else "",
        charts=[(name, _html(figure), caption) for name, figure, caption in _charts(folder, found)],
        failures=[
            (
                names.get(one.model, one.model), words.methods([one.method])[one.method], words.metric(one.metric),
                one.count, one.reason,
            )
            for one in found.failures
        ],
        about=json_text(folder.about, indent=2),
    )  # fmt: skip
    return content.encode()


def _html(figure: Any) -> str:
    return str(figure.to_html(full_html=False, include_plotlyjs=False, config=_CHART))


def _charts(folder: RunFolder, found: Overview) -> Sequence[tuple[str, Any, str]]:
    """Name, figure and how to read it."""
    spec = folder.spec
    ids = results.methods_of(found)
    names, titles, colours = words.models(spec.models), words.methods(ids), words.colours(ids)
    charts: list[tuple[str, Any, str]] = []
    if any(one.metric == "cose" for one in found.scores):
        figure = plots.consistency_against_sensitivity(found.scores, colours, titles, names, theme="light")
        charts.append(("Consistency against sensitivity", figure, "Thin curves join points of equal COSE."))
    for metric, quantity in results.quantities(found):
        title = words.score(metric, quantity)
        spreads = results.spreads(folder, metric, quantity)
        figure = plots.spread(spreads, colours, titles, names, axis=title, theme="light")
        charts.append((f"{title} by picture", figure, "Quartiles; whiskers from 5 to 95 % of the pictures."))
    for model in spec.models:
        for metric, quantity in results.quantities(found):
            title = words.score(metric, quantity)
            for by, what in (("correct", "right and wrong"), ("confidence", "confidence"), ("class", "class")):
                groups = results.groups(folder, model, metric, quantity, by)  # type: ignore[arg-type]
                if len({one.group for one in groups}) > 1:
                    order = words.groups(by, {one.group for one in groups}, partial(folder.class_name, model))
                    figure = plots.grouped(groups, order, colours, titles, axis=title, theme="light")
                    caption = "Means with 95 % intervals over the pictures of a group; their number in brackets."
                    charts.append((f"{title} by {what}, {names[model]}", figure, caption))
        for metric, quantity in dict.fromkeys(
            (one.metric, "ssim" if one.metric == "cose" else one.quantity) for one in found.scores
        ):
            strengths = results.strengths(folder, model, metric, quantity)
            if strengths:
                title = "SSIM" if metric == "cose" else words.score(metric, quantity)
                figure = plots.settings(strengths, colours, titles, axis=title, theme="light")
                charts.append((f"{title} by change, {names[model]}", figure, "Means over all pictures."))
    return charts
