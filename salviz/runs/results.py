"""What a person asks of a run's results: spread, groups, strengths of change, and single pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from salviz.metrics import Score
from salviz.plain import json_text, plain_number, write_files
from salviz.runs import rollup, summary
from salviz.runs.folder import RunFolder
from salviz.runs.summary import Failure, Scored

Group = Literal["correct", "confidence", "class"]

_SCORES, _DRAWS = "scores.json", 400
_BINS = 5
_MOST_CLASSES = 40

# Sum and count of what a score of one picture is the mean of.
_PARTS = {
    "consistency": ("kept_sum", "kept"),
    "sensitivity": ("turned - turned_sum", "turned"),
    "similarity": ("augmented_sum", "augmented"),
}
_GROUPS: Mapping[str, str] = {
    "correct": "case when label = -1 then null when label = prediction then 'right' else 'wrong' end",
    "confidence": f"least(floor(confidence * {_BINS}), {_BINS - 1})::int::varchar",
    "class": "case when label = -1 then null else label::varchar end",
}


@dataclass(frozen=True)
class Overview:
    """A run's scores as they stand.

    Attributes:
        key: Of the shards they are made of.
        scores: With intervals over pictures.
        failures: Counted by reason.
    """

    key: str
    scores: tuple[Scored, ...]
    failures: tuple[Failure, ...]

    @property
    def nbytes(self) -> int:
        """What it takes in memory, about."""
        return 300 * (len(self.scores) + len(self.failures))


@dataclass(frozen=True)
class Spread:
    """How a score is spread over pictures.

    Attributes:
        model: Id.
        method: Id.
        images: Pictures that have it.
        quantiles: Smallest, 5 %, quartiles, 95 %, largest.
    """

    model: str
    method: str
    images: int
    quantiles: tuple[float, ...]


@dataclass(frozen=True)
class Grouped:
    """A score over the pictures of a group.

    Attributes:
        model: Id.
        method: Id.
        group: `right` or `wrong`; number of the confidence bin; number of the class.
        score: With its interval over pictures.
        images: Pictures of the group that have it.
    """

    model: str
    method: str
    group: str
    score: Score
    images: int


@dataclass(frozen=True)
class Strength:
    """Similarity under one setting.

    Attributes:
        model: Id.
        method: Id.
        name: Of the augmentation, changed model or stage.
        level: Magnitude, or NaN where it has none.
        value: Mean similarity.
        kept: Share of the pictures whose prediction stays; NaN where that is no question.
        count: Values.
    """

    model: str
    method: str
    name: str
    level: float
    value: float
    kept: float
    count: int


@dataclass(frozen=True)
class Case:
    """One picture under one model.

    Attributes:
        place: In the sample.
        image: Its name in the set.
        label: Class number, or -1.
        prediction: Class number.
        confidence: Of the prediction; NaN where unknown.
        values: Score by method; NaN where undefined.
        spread: Standard deviation between methods; NaN where fewer than two have a score.
    """

    place: int
    image: str
    label: int
    prediction: int
    confidence: float
    values: Mapping[str, float]
    spread: float


def known(folder: RunFolder) -> Overview | None:
    """The overview of what is there, where somebody has made it: read in a moment, however large the run."""
    key = rollup.key(folder.plan, folder.present())
    try:
        made = json.loads((folder.path / rollup.FOLDER / _SCORES).read_text(encoding="utf-8"))
        if made["key"] != key or rollup.known(folder) != key:
            return None
        return Overview(
            key,
            tuple(Scored(**{**one, "score": _score(one["score"])}) for one in made["scores"]),
            tuple(Failure(**one) for one in made["failures"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def overview(folder: RunFolder) -> Overview:
    """Scores and failures of what is there, computed once and remembered in the run's folder.

    Raises:
        DataError: The folder cannot be written to.
    """
    remembered = known(folder)
    if remembered is not None:
        return remembered
    key = rollup.roll(folder)
    found = Overview(key, tuple(summary.scores(folder)), tuple(summary.failures(folder)))
    content = {
        "key": key,
        "scores": [{**vars(one), "score": _plain(one.score)} for one in found.scores],
        "failures": [asdict(one) for one in found.failures],
    }
    write_files(folder.path / rollup.FOLDER, {_SCORES: json_text(content).encode()})
    return found


def _plain(score: Score) -> dict[str, Any]:
    return {name: plain_number(value) if isinstance(value, float) else value for name, value in asdict(score).items()}


def _score(plain: Mapping[str, Any]) -> Score:
    known: dict[str, Any] = {name: math.nan if value is None else value for name, value in plain.items()}
    return Score(**known)


def quantities(found: Overview) -> list[tuple[str, str]]:
    """Metric and score that single pictures have, in the order of the overview."""
    pairs = dict.fromkeys((one.metric, one.quantity) for one in found.scores)
    # A single picture has no COSE worth the name, but a similarity, whether its prediction is right or not.
    return [("cose", "similarity") if pair == ("cose", "cose") else pair for pair in pairs]


def _parts(metric: str, quantity: str) -> tuple[str, str, str]:
    """Sum, count and the table's name of a score."""
    if metric == "cose":
        return *_PARTS[quantity], "ssim"
    return "value_sum", "values_", quantity


def spreads(folder: RunFolder, metric: str, quantity: str) -> list[Spread]:
    """How a score is spread over pictures, by model and method.

    Args:
        folder: Of the run.
        metric: Id.
        quantity: Of `quantities`.
    """
    total, count, name = _parts(metric, quantity)
    query = f"""
        select model, method, count(value), quantile_cont(value, [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1])
        from (select model, method, ({total}) / nullif({count}, 0) as value from images
              where metric = ? and quantity = ?)
        where value is not null group by model, method order by model, method
    """  # noqa: S608 - parts of this module
    with rollup.connect(folder) as connection:
        rows = connection.execute(query, [metric, name]).fetchall()
    return [Spread(model, method, images, tuple(quantiles)) for model, method, images, quantiles in rows]


def resting(folder: RunFolder, metric: str, quantity: str) -> dict[tuple[str, str], int]:
    """How many pictures a score rests on, by model and method; nothing of COSE itself, which is made of two.

    Args:
        folder: Of the run.
        metric: Id.
        quantity: Of the score.
    """
    found = [] if (metric, quantity) == ("cose", "cose") else spreads(folder, metric, quantity)
    return {(one.model, one.method): one.images for one in found}


def groups(folder: RunFolder, model: str, metric: str, quantity: str, by: Group) -> list[Grouped]:
    """A score of one model by group of pictures; the largest classes where there are very many.

    Args:
        folder: Of the run.
        model: Id.
        metric: Id.
        quantity: Of `quantities`.
        by: `correct`: whether the model is right; `confidence`: in fifths; `class`: the label.
    """
    total, count, name = _parts(metric, quantity)
    query = f"""
        select method, {_GROUPS[by]} as part, {total}, {count} from images
        where model = ? and metric = ? and quantity = ? and {count} > 0 and part is not null
        order by method, part, place
    """  # noqa: S608 - parts of this module
    sums: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with rollup.connect(folder) as connection:
        rows = connection.execute(query, [model, metric, name])
        while batch := rows.fetchmany(10_000):
            for method, part, one, many in batch:
                sums.setdefault((method, part), []).append((one, many))
    found = [
        Grouped(
            model, method, part,
            summary.mean_score(np.array(units, dtype=np.float64), seed=folder.spec.seed, draws=_DRAWS), len(units),
        )
        for (method, part), units in sums.items()
    ]  # fmt: skip
    sizes: dict[str, int] = {}
    for one in found:
        sizes[one.group] = max(sizes.get(one.group, 0), one.images)
    kept = set(sorted(sizes, key=lambda part: (-sizes[part], part))[:_MOST_CLASSES])
    return [one for one in found if one.group in kept]


def strengths(folder: RunFolder, model: str, metric: str, quantity: str) -> list[Strength]:
    """Similarity under every setting: augmentations by name and magnitude, stages in their order.

    Args:
        folder: Of the run.
        model: Id.
        metric: Id.
        quantity: What was measured: `ssim` under `cose`.
    """
    query = """
        select method, name, level, value, kept, values_ from settings
        where model = ? and metric = ? and quantity = ? and kind != 'itself' and value is not null
        order by method, coalesce(try_cast(replace(kind, 'stage ', '') as int), -1), name, level
    """
    with rollup.connect(folder) as connection:
        rows = connection.execute(query, [model, metric, quantity]).fetchall()
    nan = math.nan
    return [
        Strength(model, method, name, nan if level is None else level, value, nan if kept is None else kept, count)
        for method, name, level, value, kept, count in rows
    ]


def cases(
    folder: RunFolder,
    model: str,
    metric: str,
    quantity: str,
    *,
    by: str = "",
    is_descending: bool = False,
    is_wrong: bool | None = None,
    limit: int = 12,
    offset: int = 0,
) -> tuple[list[Case], int]:
    """Pictures in the order of a score, or of how far methods are from one another.

    Args:
        folder: Of the run.
        model: Id.
        metric: Id.
        quantity: Of `quantities`.
        by: Id of the method whose score gives the order; empty for the spread between methods.
        is_descending: The largest first.
        is_wrong: Only pictures that the model gets wrong, or right; all where None.
        limit: How many.
        offset: To be skipped.

    Returns:
        The pictures, and how many there are in all; those without a score come last.
    """
    total, count, name = _parts(metric, quantity)
    order = "spread" if not by else "mine"
    direction = "desc" if is_descending else "asc"
    which = {None: "true", True: "label != -1 and label != prediction", False: "label = prediction"}[is_wrong]
    query = f"""
        with one as (
            select place, image, label, prediction, confidence, method, ({total}) / nullif({count}, 0) as value
            from images where model = ? and metric = ? and quantity = ? and {which}
        )
        select place, any_value(image), any_value(label), any_value(prediction), any_value(confidence),
            map(list(method order by method), list(value order by method)),
            case when count(value) > 1 then stddev_pop(value) end as spread,
            any_value(value) filter (method = ?) as mine, count(*) over ()
        from one group by place order by {order} {direction} nulls last, place limit ? offset ?
    """  # noqa: S608 - parts of this module
    with rollup.connect(folder) as connection:
        rows = connection.execute(query, [model, metric, name, by, limit, offset]).fetchall()
    nan = math.nan
    found = [
        Case(
            place, image, label, prediction, nan if confidence is None else confidence,
            {method: nan if value is None else value for method, value in values.items()},
            nan if spread is None else spread,
        )
        for place, image, label, prediction, confidence, values, spread, _, _ in rows
    ]  # fmt: skip
    return found, rows[0][-1] if rows else 0


def methods_of(found: Overview) -> Sequence[str]:
    """Ids of the methods that have scores."""
    return list(dict.fromkeys(one.method for one in found.scores))
