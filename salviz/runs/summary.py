"""What a run's rows say together, asked of the files: memory does not grow with the rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from salviz.metrics.cose import Split, from_sums
from salviz.runs import table
from salviz.runs.folder import RunFolder

_UNITS = """
with of_cose as (
    select model, method, place, value, isnan(value) as is_undefined,
        prediction = case when label = -1 then prediction else label end as is_right,
        outcome = case when label = -1 then prediction else label end as stays_right,
        kind in ('model', 'untrained', 'checkpoint') as is_by_model
    from rows where metric = 'cose' and quantity = 'ssim' and error is null
), chosen as (
    select *, is_right and stays_right and not is_by_model as stays, is_right and not stays_right as turns
    from of_cose
)
select model, method, place,
    coalesce(sum(value) filter (stays and not is_undefined), 0), count(*) filter (stays and not is_undefined),
    coalesce(sum(value) filter (turns and not is_undefined), 0), count(*) filter (turns and not is_undefined),
    count(*) filter (stays and is_undefined), count(*) filter (turns and is_undefined)
from chosen group by model, method, place order by model, method, place
"""

_MEANS = """
select model, method, metric, quantity, kind,
    coalesce(avg(value) filter (not isnan(value)), 'nan'), count(*) filter (not isnan(value)),
    count(*) filter (isnan(value)), count(distinct place)
from rows where error is null group by all order by all
"""

_FAILURES = """
select model, method, metric, error, count(*) from rows where error is not null group by all order by all
"""


@dataclass(frozen=True)
class Mean:
    """A mean over images and settings of one kind.

    Attributes:
        model: Id.
        method: Id.
        metric: Id.
        quantity: What was measured.
        kind: Of the settings.
        value: NaN where nothing is defined.
        count: Defined values.
        undefined: Values more that are undefined.
        images: Distinct images.
    """

    model: str
    method: str
    metric: str
    quantity: str
    kind: str
    value: float
    count: int
    undefined: int
    images: int


@dataclass(frozen=True)
class Failure:
    """Rows of one model, method and metric that have no value for one reason.

    Attributes:
        model: Id.
        method: Id.
        metric: Id.
        reason: In a sentence.
        count: Images.
    """

    model: str
    method: str
    metric: str
    reason: str
    count: int


def cose_scores(folder: RunFolder, *, draws: int = 1000) -> dict[tuple[str, str], Split]:
    """Consistency, sensitivity and COSE with bootstrap intervals over images, by model and method.

    Args:
        folder: Of the run.
        draws: Bootstrap draws.
    """
    found: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    with table.scan(folder.files()) as connection:
        rows = connection.execute(_UNITS)
        while batch := rows.fetchmany(10_000):
            for model, method, _, *sums in batch:
                found.setdefault((model, method), []).append(tuple(sums))
    scores = {}
    for key, sums in found.items():
        columns = np.array(sums, dtype=np.float64)
        missing = columns[:, 4:].sum(axis=0).astype(int)
        undefined = (int(missing[0]), int(missing[1]))
        scores[key] = from_sums(columns[:, :4], undefined=undefined, seed=folder.spec.seed, draws=draws)
    return scores


def means(folder: RunFolder) -> list[Mean]:
    """Means over images and settings, by model, method, metric, quantity and kind of setting."""
    return [Mean(*row) for row in _rows(folder, _MEANS)]


def failures(folder: RunFolder) -> list[Failure]:
    """What failed, counted by reason."""
    return [Failure(*row) for row in _rows(folder, _FAILURES)]


def _rows(folder: RunFolder, query: str) -> list[tuple[Any, ...]]:
    with table.scan(folder.files()) as connection:
        found: list[tuple[Any, ...]] = connection.execute(query).fetchall()
    return found


def lines(folder: RunFolder) -> Iterator[str]:
    """The run's results as lines of text."""
    status = folder.status()
    yield f"{len(folder.sample)} pictures, {status.done} of {status.shards} shards"
    scores = cose_scores(folder)
    if scores:
        yield ""
        yield f"{'COSE':44} {'consistency':>22} {'sensitivity':>22} {'COSE':>22}"
    for (model, method), split in scores.items():
        cells = (
            f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"
            for score in (split.consistency, split.sensitivity, split.cose)
        )
        yield f"{f'{model}, {method}':44} " + " ".join(f"{cell:>22}" for cell in cells)
    others = [mean for mean in means(folder) if mean.metric != "cose"]
    for mean in others:
        name = f"{mean.model}, {mean.method}: {mean.metric}, {mean.quantity}, {mean.kind}"
        undefined = f", {mean.undefined} undefined" if mean.undefined else ""
        yield f"{name:80} {mean.value:.3f} ({mean.images} pictures{undefined})"
    for failure in failures(folder):
        yield f"{failure.model}, {failure.method}, {failure.metric}: {failure.count} failed: {failure.reason}"
