"""Making the shards of a run: what is missing, group after group; what fails becomes rows that say why."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa

from salviz import __version__, datasets, load, methods
from salviz.classifiers.classifier import Classifier
from salviz.datasets import PictureSet
from salviz.errors import Cancelled, ImageError, RequestError, SalvizError
from salviz.plain import write_files
from salviz.runs import measures, table
from salviz.runs.folder import MAPS, RunFolder, Sampled
from salviz.runs.keeping import MapFile
from salviz.runs.measures import Item, Measure, Rows, Settings, Unreadable, Work
from salviz.runs.plan import Shard, code_digest, label_of, shards
from salviz.runs.spec import Spec
from salviz.runs.store import Store

Load = Callable[[str], Classifier]
Told = Callable[[int, int, str], None]
"""Called between passes with (explanations done, explanations of the plan, what is made): one explanation a picture,
method, model and metric. It may raise `Cancelled`."""


def _quiet(done: int, total: int, what: str) -> None:
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


def begin(
    spec: Spec,
    folder: RunFolder,
    options: Options = Options(),
    *,
    told: Told = _quiet,
    accepts_changes: bool = False,
) -> None:
    """Sample, fingerprint and plan a run; shards of an earlier run in the folder are used where they belong to it.

    Args:
        spec: What is asked.
        folder: Where the run lives.
        options: How it is computed.
        told: Called as the pictures are looked at.
        accepts_changes: Whether code or weights may differ from those of the run that is there: what depends on them
            is then made anew.

    Raises:
        SalvizError: One plain sentence.
    """
    pictures = datasets.open_set(spec.data)
    chosen = datasets.sample(
        pictures.entries, spec.images, seed=spec.seed, classes=spec.classes, is_stratified=spec.is_stratified
    )
    sample = []
    for count, place in enumerate(chosen):
        told(count, len(chosen), "looking at the pictures")
        sample.append(_sampled(pictures, place))
    plan: list[Shard] = []
    weights: dict[str, str] = {}
    for model in spec.models:
        classifier = load(model, device=options.device)
        weights[model] = classifier.digest
        plan += shards(spec, classifier, _items(sample, pictures, classifier))
    digests = {"version": __version__, "code": code_digest(), "weights": weights, "data": pictures.id}
    if folder.exists and not accepts_changes:
        refuse_changes(folder.path, folder.about, digests)
    folder.begin(spec, sample, plan, digests)


def _sampled(pictures: PictureSet, place: int) -> Sampled:
    entry = pictures.entries[place]
    try:
        fingerprint = pictures.fingerprint(place)
    except ImageError:
        # It will be a failure of the run, with its reason, and not the end of it.
        fingerprint = ""
    label = None if entry.label is None else str(entry.label)
    return Sampled(entry.name, label, isinstance(entry.label, int), fingerprint)


def refuse_changes(where: Path | str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse code or weights that are not those a run was begun with.

    Args:
        where: The run, for the message.
        before: What its `run.json` holds.
        now: The digests at hand: `code`, and `weights` by model; a model that the run did not have is no change.

    Raises:
        RequestError: Something differs.
    """
    if before["code"] != now["code"]:
        raise RequestError(
            f"The run in '{where}' was made with other code (version {before['version']}). Begin another one "
            "elsewhere, or accept the change: what depends on it is then made anew."
        )
    for model, digest in now["weights"].items():
        if before["weights"].get(model, digest) != digest:
            raise RequestError(
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

    def __init__(self, done: int = 0, total: int = 0, told: Told = _quiet) -> None:
        self.done, self.total, self.told = done, total, told
        self.what = ""

    def begin(self, what: str) -> None:
        """What comes next."""
        self.what = what
        self.told(self.done, self.total, what)

    def step(self, done: int, total: int) -> None:
        """A pass of it more."""
        self.told(self.done, self.total, f"{self.what}, step {done} of {total}")

    def add(self, count: int) -> None:
        """So many explanations more."""
        self.done += count
        self.told(self.done, self.total, self.what)


Engine = Callable[[RunFolder, Sequence[Group], Options, Counts], Generator[Made, None, None]]
"""Computes the groups it is given, in any order, and counts and yields them as they are made; the caller writes them.
It raises `Cancelled` once the folder says so."""


def here(folder: RunFolder, groups: Sequence[Group], options: Options, counts: Counts) -> Generator[Made, None, None]:
    """The engine of this process: one group after the other.

    Args:
        folder: Of the run.
        groups: To be made.
        options: How.
        counts: Told between passes.

    Raises:
        Cancelled: Somebody asked the run to stop.
        SalvizError: One plain sentence.
    """
    bench = Bench(folder.about, folder.data, folder.sample, options, where=folder.path)
    for group in groups:
        yield bench.make(group, counts, is_cancelled=lambda: folder.is_cancelled)


def resume(
    folder: RunFolder,
    options: Options = Options(),
    *,
    told: Told = _quiet,
    accepts_changes: bool = False,
    engine: Engine = here,
    store: Store | None = None,
) -> None:
    """Make what is missing of a run that was begun.

    Args:
        folder: Where it lives.
        options: How it is computed.
        told: Called as shards are made.
        accepts_changes: Whether code or weights may have changed since: what depends on them is then made anew.
        engine: Computes the shards.
        store: Where the run is kept too: shards that are there already are not made again.

    Raises:
        Cancelled: Somebody asked the run to stop.
        SalvizError: One plain sentence; what is written stays.
    """
    if accepts_changes:
        begin(folder.spec, folder, options, told=told, accepts_changes=True)
    refuse_changes(folder.path, folder.about, {"code": code_digest(), "weights": {}})
    folder.sweep()
    if store is not None:
        before = store.about()
        if before is not None and not accepts_changes:
            refuse_changes(store.url, before, folder.about)
        store.meet(folder)
    folder.note("started", part=list(options.part))
    there = folder.present()
    missing = [shard for shard in folder.plan if shard.key not in there]
    total = sum(shard.count for shard in folder.plan)
    counts = Counts(total - sum(shard.count for shard in missing), total, told)
    turn, parts = options.part
    groups = [tuple(group) for _, group in groupby(missing, key=lambda shard: (shard.model, shard.metric, shard.first))]
    mine = [group for group in groups if _turn(folder, group[0], parts) == turn]
    # Closed at once whatever happens: an engine may hold workers.
    with closing(engine(folder, mine, options, counts)) as found:
        for made in found:
            _keep(folder, made, store)
    folder.note("ended")


def _keep(folder: RunFolder, made: Made, store: Store | None) -> None:
    """Write the shards of a group, whoever computed them: a file a method."""
    # Maps first: where the rows of a shard are, its maps are.
    for shard, file in made.maps.items():
        write_files(folder.path / MAPS, {f"{shard.key}.safetensors": file})
    for shard, content in made.tables.items():
        table.write(folder.file(shard), content)
        if store is not None:
            store.send(folder, shard)
    first = next(iter(made.tables))
    by = {"by": made.by} if made.by else {}
    folder.note(
        "made", model=first.model, metric=first.metric, first=first.first, images=first.count,
        shards=len(made.tables), failed=made.failed, seconds=round(made.seconds, 3), **by,
    )  # fmt: skip


def _turn(folder: RunFolder, shard: Shard, parts: int) -> int:
    """Whose turn a group of images is: the same whatever is missing."""
    return (shard.first // folder.spec.group) % parts


def _items(sample: Sequence[Sampled], pictures: PictureSet, classifier: Classifier) -> list[Item]:
    """The sample with a classifier's class numbers."""
    places = {entry.name: place for place, entry in enumerate(pictures.entries)}
    labels: dict[int | str | None, int | None] = {}
    found = []
    for place, one in enumerate(sample):
        given = one.given
        if given not in labels:
            labels[given] = label_of(given, classifier.labels)
        # A picture that is gone fails when it is opened.
        source = (pictures, places[one.name]) if one.name in places else None
        found.append(Item(place, one.name, labels[given], one.fingerprint, source))
    return found


class Bench:
    """Computes groups of a run, one after the other, and keeps the last classifier loaded; it writes nothing.

    Args:
        about: What the run's `run.json` holds.
        data: Name of the image set, which is opened here.
        sample: The run's pictures.
        options: How it is computed.
        where: The run, for messages.

    Raises:
        DataError: There is no such set here.
    """

    def __init__(
        self, about: Mapping[str, Any], data: str, sample: Sequence[Sampled], options: Options, *, where: Path | str
    ) -> None:
        self.about, self.sample, self.options, self.where = about, sample, options, where
        self.spec = Spec.from_dict(about["spec"])
        self.pictures = datasets.open_set(data)
        self._loaded: tuple[str, Classifier, list[Item]] | None = None

    def make(self, group: Group, counts: Counts, *, is_cancelled: Callable[[], bool] = lambda: False) -> Made:
        """Measure a group of images with the methods that are missing.

        Args:
            group: Its shards.
            counts: Told between passes.
            is_cancelled: Asked between passes.

        Raises:
            Cancelled: Somebody asked the run to stop.
            RequestError: The weights are not those that the run was begun with.
            SalvizError: The model cannot be loaded.
        """
        first = group[0]
        classifier, items = self._load(first.model)
        part = items[first.first : first.first + first.count]
        measure, spec = measures.get(first.metric), self.spec
        counts.begin(f"{classifier.title}, {measure.title}, from picture {first.first + 1}")
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
        failed = sum(row.error is not None for more in rows.values() for row in more)
        tables = {shard: table.table(shard.model, shard.method, shard.metric, rows[shard.method]) for shard in group}
        maps = {shard: kept.content(shard.method) for shard in group if kept.has(shard.method)}
        return Made(tables, failed, time.perf_counter() - started, maps=maps)

    def _load(self, model: str) -> tuple[Classifier, list[Item]]:
        if self._loaded is None or self._loaded[0] != model:
            # Not two of them in memory.
            self._loaded = None
            classifier = load(model, device=self.options.device)
            refuse_changes(self.where, self.about, {"code": self.about["code"], "weights": {model: classifier.digest}})
            self._loaded = model, classifier, _items(self.sample, self.pictures, classifier)
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
