"""What a run's rows say together, asked of the files: memory does not grow with the rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from salviz.metrics import Score, with_interval
from salviz.metrics.cose import Split, from_sums, resample
from salviz.runs import rollup, table, words
from salviz.runs.folder import RunFolder

_UNITS = """
select model, method, kept_sum, kept, turned_sum, turned, kept_undefined, turned_undefined
from images where metric = 'cose' and quantity = 'ssim' order by model, method, place
"""

_VALUES = """
select model, method, metric, quantity, value_sum, values_, undefined
from images where metric != 'cose' order by model, method, metric, quantity, place
"""

_MEANS = """
select model, method, metric, quantity, kind,
    coalesce(avg(value), 'nan'), count(value), count(*) - count(value), count(distinct place)
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


@dataclass(frozen=True)
class Scored:
    """A score of a model and a method.

    Attributes:
        model: Id.
        method: Id.
        metric: Id.
        quantity: `consistency`, `sensitivity` or `cose`; else what was measured.
        score: Over all images and settings.
    """

    model: str
    method: str
    metric: str
    quantity: str
    score: Score


def cose_scores(folder: RunFolder, *, draws: int = 1000) -> dict[tuple[str, str], Split]:
    """Consistency, sensitivity and COSE with bootstrap intervals over images, by model and method.

    Args:
        folder: Of the run.
        draws: Bootstrap draws.
    """
    scores = {}
    for key, sums in _grouped(folder, _UNITS, 2).items():
        missing = sums[:, 4:].sum(axis=0).astype(int)
        undefined = (int(missing[0]), int(missing[1]))
        scores[key[0], key[1]] = from_sums(sums[:, :4], undefined=undefined, seed=folder.spec.seed, draws=draws)
    return scores


def scores(folder: RunFolder, *, draws: int = 1000) -> list[Scored]:
    """Every score of a run with its bootstrap interval over images: COSE's three, and the mean of any other quantity.

    Args:
        folder: Of the run.
        draws: Bootstrap draws.
    """
    found = [
        Scored(model, method, "cose", name, getattr(split, name))
        for (model, method), split in cose_scores(folder, draws=draws).items()
        for name in ("consistency", "sensitivity", "cose")
    ]
    for (model, method, metric, quantity), sums in _grouped(folder, _VALUES, 4).items():
        score = mean_score(sums[:, :2], seed=folder.spec.seed, draws=draws)
        score = replace(score, undefined=int(sums[:, 2].sum()))
        found.append(Scored(model, method, metric, quantity, score))
    return found


def mean_score(sums: NDArray[np.float64], *, seed: int, draws: int) -> Score:
    """A mean with its bootstrap interval over images; without one where there is one image.

    Args:
        sums: `(images, 2)`: an image's sum and number of values.
        seed: Of the draws.
        draws: How many.
    """
    total, count = sums.sum(axis=0)
    score = Score(value=float(total / count) if count else math.nan, count=int(count))
    if len(sums) < 2:
        return score
    drawn = resample(sums, draws, np.random.default_rng(seed))
    means = np.divide(drawn[:, 0], drawn[:, 1], out=np.full(draws, np.nan), where=drawn[:, 1] > 0)
    return with_interval(score, means, 0.95)


def _grouped(folder: RunFolder, query: str, keys: int) -> dict[tuple[str, ...], NDArray[np.float64]]:
    """Numbers of a query's rows by what its first columns say."""
    found: dict[tuple[str, ...], list[tuple[float, ...]]] = {}
    with rollup.connect(folder) as connection:
        rows = connection.execute(query)
        while batch := rows.fetchmany(10_000):
            for row in batch:
                found.setdefault(row[:keys], []).append(row[keys:])
    return {key: np.array(numbers, dtype=np.float64) for key, numbers in found.items()}


@dataclass(frozen=True)
class Counted:
    """Which pictures COSE counts under a model: those it predicts right, as far as that can be told.

    Attributes:
        model: Id.
        images: Pictures.
        right: Predicted as labelled.
        unlabelled: Without a label the model knows: its prediction stands for one.
    """

    model: str
    images: int
    right: int
    unlabelled: int


def counted(folder: RunFolder) -> list[Counted]:
    """The pictures of a run by model, as COSE counts them."""
    query = """
        select model, count(distinct place), count(distinct place) filter (label = prediction and label != -1),
            count(distinct place) filter (label = -1)
        from images where metric = 'cose' group by model order by model
    """
    with rollup.connect(folder) as connection:
        return [Counted(*row) for row in connection.execute(query).fetchall()]


def means(folder: RunFolder) -> list[Mean]:
    """Means over images and settings, by model, method, metric, quantity and kind of setting."""
    return [Mean(*row) for row in _rows(folder, _MEANS)]


def failures(folder: RunFolder) -> list[Failure]:
    """What failed, counted by reason."""
    return [Failure(*row) for row in _rows(folder, _FAILURES)]


def failed(folder: RunFolder) -> int:
    """Pictures for which something failed."""
    ((count,),) = _rows(folder, "select count(distinct place) from rows where error is not null")
    return int(count)


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
    if scores:
        yield words.counts(counted(folder))
    others = [mean for mean in means(folder) if mean.metric != "cose"]
    for mean in others:
        name = f"{mean.model}, {mean.method}: {mean.metric}, {mean.quantity}, {mean.kind}"
        undefined = f", {mean.undefined} undefined" if mean.undefined else ""
        yield f"{name:80} {mean.value:.3f} ({mean.images} pictures{undefined})"
    for failure in failures(folder):
        yield f"{failure.model}, {failure.method}, {failure.metric}: {failure.count} failed: {failure.reason}"
