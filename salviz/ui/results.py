"""What a run found: table, charts, groups, strengths of change, and files to take along."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import streamlit as st

from salviz.errors import SalvizError
from salviz.ui import batch, cases, fields, follow, panels

if TYPE_CHECKING:
    from salviz.runs.results import Overview
    from salviz.ui.batch import View

SLOT = "batch.results"

_CHART = {"displaylogo": False, "modeBarButtons": [["toImage"]]}


def show(view: View) -> None:
    """Everything below the status line."""
    standing = view.standing
    assert standing is not None  # noqa: S101 - the page asked
    if not view.run.exists or not standing.done or not view.run.present():
        if standing.is_open:
            st.skeleton(320)
        return
    found = _overview(view)
    if found is None:
        return
    _failures(found)
    if not found.scores:
        st.caption("There is no score yet.")
        return
    part = panels.choice("Show", fields.PARTS, "part")
    parts: Mapping[str, Callable[[View, Overview], None]] = {
        "scores": _scores, "spread": _spread, "groups": _groups, "strength": _strength, "pictures": cases.browser,
    }  # fmt: skip
    try:
        parts[part](view, found)
    except SalvizError as error:
        st.warning(str(error), icon=":material/info:")
    if part != "pictures":
        _take_along(view, found)


def _overview(view: View) -> Overview | None:
    """Scores of what is there: at once where they are known, else in the background."""
    from salviz.runs import results, rollup

    folder = view.run
    remembered = results.known(folder)
    if remembered is not None:
        # Reading needs no turn: somebody else's long computation may be before it.
        return remembered
    key = rollup.key(folder.plan, folder.present())
    task = follow.Task(f"results|{folder.path}|{key}", 1.0, False, lambda job: results.overview(folder))
    followed = follow.follow(SLOT, task)
    if followed.state == "running":
        follow.progress(SLOT, followed, "Adding up", unit="tables")
        st.skeleton(320)
    elif followed.error:
        st.warning(followed.error, icon=":material/info:")
    found: Overview | None = followed.result
    return found


def _failures(found: Overview) -> None:
    """What failed, counted by reason."""
    from salviz.runs import words

    if not found.failures:
        return
    count = sum(failure.count for failure in found.failures)
    titles = words.methods([failure.method for failure in found.failures])
    names = words.models([failure.model for failure in found.failures])
    with st.expander(f":material/error: {panels.counted(count, 'explanation', 'explanations')} failed, with reasons"):
        st.dataframe(
            {
                "Model": [names[one.model] for one in found.failures],
                "Method": [titles[one.method] for one in found.failures],
                "Metric": [words.metric(one.metric) for one in found.failures],
                "Pictures": [one.count for one in found.failures],
                "Reason": [one.reason for one in found.failures],
            },
            hide_index=True,
        )


def _scores(view: View, found: Overview) -> None:
    """Method x model, every score with its interval."""
    from salviz.runs import plots, results, summary, words
    from salviz.runs.results import methods_of

    methods, models = list(methods_of(found)), list(view.asked.models)
    titles, names = words.methods(methods), words.models(models)
    known = {(one.metric, one.quantity, one.model, one.method): one.score for one in found.scores}
    pairs = list(dict.fromkeys((one.metric, one.quantity) for one in found.scores))
    lines = [(model, method) for method in methods for model in models]
    columns: dict[str, list[str]] = {"Method": [titles[method] for _, method in lines]}
    if len(models) > 1:
        columns["Model"] = [names[model] for model, _ in lines]
    for metric, quantity in pairs:
        images = results.resting(view.run, metric, quantity)
        columns[words.score(metric, quantity)] = [
            "" if (score := known.get((metric, quantity, *line))) is None else words.cell(score, images.get(line))
            for line in lines
        ]
    st.dataframe(columns, hide_index=True)
    if any(metric == "cose" for metric, _ in pairs):
        st.caption(panels.plain(words.counts(summary.counted(view.run))))
    st.caption(
        "Mean over pictures and settings, with the 95 % bootstrap interval over pictures. Methods whose intervals "
        "overlap widely are not told apart by these pictures."
    )
    if any(metric == "cose" for metric, _ in pairs):
        st.subheader("Who is consistent, and who is sensitive?", anchor=False)
        figure = plots.consistency_against_sensitivity(
            found.scores, words.colours(methods), titles, names, theme=panels.theme()
        )
        _chart(figure, "against", "Consistency against sensitivity of each method, with curves of equal COSE")
        st.caption(
            "Up: the map stays while the prediction stays. Right: the map changes when the prediction does. Thin "
            "curves join points of equal COSE; bars are 95 % intervals."
        )


def _chart(figure: Any, key: str, alt: str) -> None:
    options = {**_CHART, "toImageButtonOptions": {"format": st.session_state["figures"], "filename": f"salviz-{key}"}}
    st.plotly_chart(figure, theme=None, key=f"chart_{key}", config=options, alt=alt)


def choose_score(found: Overview) -> tuple[str, str]:
    """Which score is looked at."""
    from salviz.runs import words
    from salviz.runs.results import quantities

    pairs = {f"{metric}.{quantity}": (metric, quantity) for metric, quantity in quantities(found)}
    if st.session_state["score"] not in pairs:
        st.session_state["score"] = next(iter(pairs))
    return pairs[panels.pick("Score", {key: words.score(*pair) for key, pair in pairs.items()}, "score")]


def choose_model(view: View) -> str:
    """Which model is looked at; nothing to choose where there is one."""
    from salviz.runs import words

    models = list(view.asked.models)
    if st.session_state["of"] not in models:
        st.session_state["of"] = models[0]
    if len(models) == 1:
        return models[0]
    return panels.pick("Model", words.models(models), "of")


def _spread(view: View, found: Overview) -> None:
    """How a score is spread over pictures."""
    from salviz.runs import plots, results, words

    with st.container(horizontal=True, vertical_alignment="top"):
        metric, quantity = choose_score(found)
    spreads = results.spreads(view.run, metric, quantity)
    methods = [one.method for one in spreads]
    names = words.models(view.asked.models)
    figure = plots.spread(
        spreads, words.colours(methods), words.methods(methods), names, axis=words.score(metric, quantity),
        theme=panels.theme(),
    )  # fmt: skip
    _chart(figure, "spread", f"{words.score(metric, quantity)} by method")
    st.caption(
        "One value a picture: the box holds the middle half of the pictures, the line in it is their median, the "
        "whiskers reach from 5 to 95 %."
    )


_GROUPINGS = {"correct": "Right and wrong", "confidence": "Confidence", "class": "Class"}


def _groups(view: View, found: Overview) -> None:
    """A score by group of pictures."""
    from salviz.runs import plots, results, words

    with st.container(horizontal=True, vertical_alignment="top"):
        by = panels.choice("Group pictures by", _GROUPINGS, "by")
        metric, quantity = choose_score(found)
        model = choose_model(view)
    groups = results.groups(view.run, model, metric, quantity, by)  # type: ignore[arg-type]
    if not groups:
        reasons = {
            "correct": "The pictures have no labels that this model knows, so nobody can say what is right.",
            "class": "The pictures have no labels that this model knows.",
            "confidence": "This metric does not record how sure the model was.",
        }
        st.info(reasons[by], icon=":material/info:")
        return
    methods = list(dict.fromkeys(one.method for one in groups))
    order = words.groups(by, {one.group for one in groups}, partial(view.run.class_name, model))
    figure = plots.grouped(
        groups, order, words.colours(methods),
        words.methods(methods), axis=words.score(metric, quantity), theme=panels.theme(),
    )  # fmt: skip
    _chart(figure, "groups", f"{words.score(metric, quantity)} by {_GROUPINGS[by].lower()}")
    caption = "Means with 95 % bootstrap intervals over the pictures of a group; their number stands beside its name."
    if metric == "cose" and quantity != "similarity":
        caption += " Only pictures that are predicted right have this score; all have a similarity."
    st.caption(caption)


def class_names(model: str) -> Callable[[int], str]:
    """Short names of a model's classes, where it is at hand; their numbers where not."""
    from salviz.classifiers.store import devices

    try:
        labels = batch.loaded(model, devices()[0]).classifier.labels
    except SalvizError:
        return lambda index: f"class {index}"

    def name(index: int) -> str:
        return str(labels.short(index)) if 0 <= index < len(labels) else "no label"

    return name


def _strength(view: View, found: Overview) -> None:
    """Similarity of maps by augmentation and magnitude, or by changed net."""
    from salviz.runs import plots, results, words
    from salviz.transforms import AUGMENTATIONS

    pairs = dict.fromkeys((one.metric, "ssim" if one.metric == "cose" else one.quantity) for one in found.scores)
    options = {f"{metric}.{quantity}": (metric, quantity) for metric, quantity in pairs}
    if st.session_state["score"] not in options:
        st.session_state["score"] = next(iter(options))
    with st.container(horizontal=True, vertical_alignment="top"):
        names = {key: "COSE: SSIM" if pair[0] == "cose" else words.score(*pair) for key, pair in options.items()}
        metric, quantity = options[panels.pick("Similarity", names, "score")]
        model = choose_model(view)
        rows = results.strengths(view.run, model, metric, quantity)
        counts: dict[str, set[float]] = {}
        for row in rows:
            counts.setdefault(row.name, set()).add(row.level)
        scaled = [name for name, levels in counts.items() if len(levels) > 1 and name in AUGMENTATIONS]
        shown = {"": "All changes", **{name: AUGMENTATIONS[name].title for name in scaled}}
        if st.session_state["change"] not in shown:
            st.session_state["change"] = ""
        change = panels.pick("Change", shown, "change") if scaled else ""
    methods = list(dict.fromkeys(row.method for row in rows))
    common: dict[str, Any] = {
        "colours": words.colours(methods), "titles": words.methods(methods), "axis": names[f"{metric}.{quantity}"],
        "theme": panels.theme(),
    }  # fmt: skip
    figure = plots.strength(rows, change, **common) if change else plots.settings(rows, **common)
    _chart(figure, "strength", f"{common['axis']} of maps by change")
    st.caption(
        "Mean similarity of the clean map and the map under the change, laid back on it, over all pictures."
        if metric == "cose"
        else "Mean similarity of the trained net's map and the map of the net that stands in its place."
    )


def _take_along(view: View, found: Overview) -> None:
    """Everything as files, made when somebody asks."""
    from salviz.runs import exports

    folder, name = view.run, view.run.path.name
    with st.expander("Download", icon=":material/download:"):
        with st.container(horizontal=True):
            files: dict[str, tuple[str, Callable[[], bytes]]] = {
                "report.html": ("Report (HTML)", partial(exports.report, folder, found)),
                "scores.csv": ("Scores (CSV)", partial(exports.scores_csv, found)),
                "images.parquet": ("By picture (Parquet)", partial(exports.images, folder)),
                "rows.parquet": ("All rows (Parquet)", partial(exports.rows, folder, "parquet")),
                "rows.csv": ("All rows (CSV)", partial(exports.rows, folder, "csv")),
            }
            for file, (title, content) in files.items():
                st.download_button(
                    title, content, f"{name}-{file}", on_click="ignore", type="tertiary", key=f"download.{file}"
                )
        panels.choice("Charts as", {"svg": "SVG", "png": "PNG"}, "figures")
        st.caption("The camera at a chart's corner saves it; the report holds all charts and opens offline.")
