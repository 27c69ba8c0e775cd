"""Computing the groups of a run's shards; what fails becomes rows that say why. Nothing is written here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from salviz import datasets, load, methods
from salviz.classifiers.classifier import Classifier
from salviz.datasets import PictureSet
from salviz.errors import Cancelled, RequestError, SalvizError
from salviz.runs import measures, table
from salviz.runs.folder import Sampled
from salviz.runs.keeping import MapFile
from salviz.runs.measures import Item, Measure, Rows, Settings, Unreadable, Work
from salviz.runs.plan import Shard, label_of
from salviz.runs.spec import Spec

Told = Callable[[int, int, str], None]
"""Called between passes with (explanations done, explanations of the plan, what is made): one explanation a picture,
method, model and metric. It may raise `Cancelled`."""


def quiet(done: int, total: int, what: str) -> None:
    """Progress nobody listens to."""


@dataclass(frozen=True)
class Options:
    """How a run is computed, which changes no result.

    Attributes:
        device: As for `load`.
        batch_size: Images in one model pass at the most; None for what suits the device.
        part: `(i, n)`: this worker makes the i-th of n parts of the groups, counted from 0.
    """

    device: str = "auto"
    batch_size: int | None = None
    part: tuple[int, int] = (0, 1)


DEFAULT = Options()
"""The best device, what suits it, and the whole run."""


class Changed(RequestError):  # noqa: N818 - a property of the run
    """Code or weights are not those that a run was begun with."""


def refuse_changes(where: Path | str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse code or weights that are not those a run was begun with.

    Args:
        where: The run, for the message.
        before: What its `run.json` holds.
        now: The digests at hand: `code`, and `weights` by model; a model that the run did not have is no change.

    Raises:
        Changed: Something differs.
    """
    if before["code"] != now["code"]:
        raise Changed(
            f"The run in '{where}' was made with other code (version {before['version']}). Begin another one "
            "elsewhere, or accept the change: what depends on it is then made anew."
        )
    for model, digest in now["weights"].items():
        if before["weights"].get(model, digest) != digest:
            raise Changed(
                f"The run in '{where}' was made with other weights of {model}. Begin another one elsewhere, or "
                "accept the change: what depends on it is then made anew."
            )


Group = tuple[Shard, ...]
"""Shards of one model, metric and group of images, whose methods share passes."""


@dataclass(frozen=True)
class Made:
    """The shards of a group, computed and not written yet.

    Attributes:
        tables: Their rows.
        maps: Their maps as files, where the run keeps them.
        failed: How many rows say why there is no value.
        seconds: What it took.
        by: Which worker made them; empty where there is but this process.
    """

    tables: Mapping[Shard, pa.Table]
    failed: int
    seconds: float
    by: str = ""
    maps: Mapping[Shard, bytes] = field(default_factory=dict)


class Counts:
    """Explanations made, told as they come.

    Args:
        done: So many are there already.
        total: Of the plan.
        told: Is told.
    """

    def __init__(self, done: int = 0, total: int = 0, told: Told = quiet) -> None:
        self.done, self.total, self.told = done, total, told
        self.what = ""

    def begin(self, what: str) -> None:
        """What comes next."""
        self.what = what
        self.told(self.done, self.total, what)

    def step(self, done: int, total: int) -> None:
        """A pass of it more."""
        self.told(self.done, self.total, f"{self.what}, pass {done:,} of {total:,}")

    def add(self, count: int) -> None:
        """So many explanations more."""
        self.done += count
        self.told(self.done, self.total, self.what)


def items_of(sample: Sequence[Sampled], pictures: PictureSet, classifier: Classifier) -> list[Item]:
    """The sample with a classifier's class numbers."""
    labels: dict[int | str | None, int | None] = {}
    found = []
    for place, one in enumerate(sample):
        given = one.given
        if given not in labels:
            labels[given] = label_of(given, classifier.labels)
        # A picture that is gone fails when it is opened.
        found.append(Item(place, one.name, labels[given], one.fingerprint, pictures.source(one.name)))
    return found


class Bench:
    """Computes groups of a run, one after the other, and keeps the last classifier loaded; it writes nothing.

    Args:
        about: What the run's `run.json` holds.
        data: Name of the image set, which is opened here.
        sample: The run's pictures.
        options: How it is computed.
        where: The run, for messages.
        loaded: A classifier that is loaded already.

    Raises:
        DataError: There is no such set here.
    """

    def __init__(
        self,
        about: Mapping[str, Any],
        data: str,
        sample: Sequence[Sampled],
        options: Options,
        *,
        where: Path | str,
        loaded: Classifier | None = None,
    ) -> None:
        self.about, self.sample, self.options, self.where = about, sample, options, where
        self.spec = Spec.from_dict(about["spec"])
        self.pictures = datasets.open_set(data)
        self._loaded: tuple[str, Classifier, list[Item]] | None = None
        self._at_hand = loaded

    def make(self, group: Group, counts: Counts, *, is_cancelled: Callable[[], bool] = lambda: False) -> Made:
        """Measure a group of images with the methods that are missing.

        Args:
            group: Its shards.
            counts: Told between passes.
            is_cancelled: Asked between passes.

        Raises:
            Cancelled: Somebody asked the run to stop.
            Changed: The weights are not those that the run was begun with.
            SalvizError: The model cannot be loaded.
        """
        first = group[0]
        classifier, items = self._load(first.model)
        part = items[first.first : first.first + first.count]
        measure, spec = measures.get(first.metric), self.spec
        where = f"{classifier.title}, {measure.title}, picture"
        counts.begin(f"{where} {first.first + 1}")
        how = measure.settings(spec.metrics[first.metric])
        started = time.perf_counter()

        def progress(done: int, total: int) -> None:
            if is_cancelled():
                raise Cancelled
            counts.step(done, total)

        kept = MapFile(spec.maps)
        work = Work(spec.seed, self.options.batch_size, progress, kept.keep)
        rows: Rows = {shard.method: [] for shard in group}
        able: dict[str, Settings] = {}
        for shard in group:
            refusal = methods.get(shard.method).refusal(classifier)
            if refusal is None:
                able[shard.method] = spec.methods[shard.method]
            else:
                rows[shard.method] = [item.row(error=refusal) for item in part]
                counts.add(len(part))
        if able:
            for found in _measured(measure, classifier, part, able, how, work):
                for method, more in found.items():
                    rows[method] += more
                    counts.add(len({row.place for row in more}))
                there = {row.place for more in rows.values() for row in more}
                counts.what = f"{where} {min(first.first + len(there) + 1, first.first + first.count)}"
        failed = sum(row.error is not None for more in rows.values() for row in more)
        tables = {shard: table.table(shard.model, shard.method, shard.metric, rows[shard.method]) for shard in group}
        maps = {shard: kept.content(shard.method) for shard in group if kept.has(shard.method)}
        return Made(tables, failed, time.perf_counter() - started, maps=maps)

    def _load(self, model: str) -> tuple[Classifier, list[Item]]:
        if self._loaded is None or self._loaded[0] != model:
            # Not two of them in memory.
            self._loaded = None
            at_hand, self._at_hand = self._at_hand, None
            if at_hand is not None and at_hand.id == model:
                classifier = at_hand
            else:
                del at_hand
                classifier = load(model, device=self.options.device)
            refuse_changes(self.where, self.about, {"code": self.about["code"], "weights": {model: classifier.digest}})
            self._loaded = model, classifier, items_of(self.sample, self.pictures, classifier)
        return self._loaded[1:]


def _measured(
    measure: Measure,
    classifier: Classifier,
    items: Sequence[Item],
    chosen: Mapping[str, Settings],
    how: Settings,
    work: Work,
) -> Iterator[Rows]:
    """Rows of all pictures and methods; what fails is narrowed down to one picture and one method, and told.

    A picture that cannot be opened is left out and the others go on. Anything else that goes wrong has each picture
    tried alone, and then each method.
    """
    left = list(items)
    while left:
        done: set[int] = set()
        try:
            for rows in measure.compute(classifier, left, chosen, how, work):
                done |= {row.place for more in rows.values() for row in more}
                yield rows
            return
        except Cancelled:
            raise
        except Unreadable as error:
            left = [item for item in left if item.place not in done]
            (bad,) = [item for item in left if item.place == error.place]
            left.remove(bad)
            yield {name: [bad.row(error=str(error))] for name in chosen}
        except Exception as error:  # noqa: BLE001 - whatever a method does must not end a run of days
            left = [item for item in left if item.place not in done]
            if len(left) > 1:
                for item in left:
                    yield from _measured(measure, classifier, [item], chosen, how, work)
            elif len(chosen) > 1:
                for name, settings in chosen.items():
                    yield from _measured(measure, classifier, left, {name: settings}, how, work)
            else:
                yield {name: [item.row(error=_reason(error)) for item in left] for name in chosen}
            return


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, SalvizError) else f"{type(error).__name__}: {error}"
