"""Making the shards of a run: what is missing, group after group; what fails becomes rows that say why."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from salviz import __version__, datasets, load, methods
from salviz.classifiers.classifier import Classifier
from salviz.datasets import PictureSet
from salviz.errors import Cancelled, ImageError, RequestError, SalvizError
from salviz.runs import measures, table
from salviz.runs.folder import RunFolder, Sampled
from salviz.runs.measures import Item, Measure, Rows, Settings, Unreadable, Work
from salviz.runs.plan import Shard, code_digest, label_of, shards
from salviz.runs.spec import Spec

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
        _refuse_changes(folder, digests)
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


def _refuse_changes(folder: RunFolder, now: Mapping[str, Any]) -> None:
    before = folder.about
    if before["code"] != now["code"]:
        raise RequestError(
            f"The run in '{folder.path}' was made with other code (version {before['version']}). Begin another one "
            "elsewhere, or accept the change: what depends on it is then made anew."
        )
    for model, digest in now["weights"].items():
        if before["weights"].get(model, digest) != digest:
            raise RequestError(
                f"The run in '{folder.path}' was made with other weights of {model}. Begin another one elsewhere, or "
                "accept the change: what depends on it is then made anew."
            )


def resume(
    folder: RunFolder, options: Options = Options(), *, told: Told = _quiet, accepts_changes: bool = False
) -> None:
    """Make what is missing of a run that was begun.

    Args:
        folder: Where it lives.
        options: How it is computed.
        told: Called as shards are made.
        accepts_changes: Whether code or weights may have changed since: what depends on them is then made anew.

    Raises:
        Cancelled: Somebody asked the run to stop.
        SalvizError: One plain sentence; what is written stays.
    """
    if accepts_changes:
        begin(folder.spec, folder, options, told=told, accepts_changes=True)
    _refuse_changes(folder, {"code": code_digest(), "weights": {}})
    folder.sweep()
    pictures = datasets.open_set(folder.data)
    folder.note("started", part=list(options.part))
    there = folder.present()
    missing = [shard for shard in folder.plan if shard.key not in there]
    total = sum(shard.count for shard in folder.plan)
    counts = _Counts(total - sum(shard.count for shard in missing), total, told)
    turn, parts = options.part
    for model, of_model in groupby(missing, key=lambda shard: shard.model):
        groups = [list(group) for _, group in groupby(of_model, key=lambda shard: (shard.metric, shard.first))]
        mine = [group for group in groups if _turn(folder, group[0], parts) == turn]
        if not mine:
            continue
        classifier = load(model, device=options.device)
        _refuse_changes(folder, {"code": folder.about["code"], "weights": {model: classifier.digest}})
        items = _items(folder.sample, pictures, classifier)
        for group in mine:
            _make(folder, classifier, items, group, options, counts)
    folder.note("ended")


def _turn(folder: RunFolder, shard: Shard, parts: int) -> int:
    """Whose turn a group of images is: the same whatever is missing."""
    return (shard.first // folder.spec.group) % parts


class _Counts:
    """Explanations made, told as they come."""

    def __init__(self, done: int, total: int, told: Told) -> None:
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


def _make(
    folder: RunFolder,
    classifier: Classifier,
    items: Sequence[Item],
    group: Sequence[Shard],
    options: Options,
    counts: _Counts,
) -> None:
    """Measure a group of images with the methods that are missing, and write a file a method."""
    first = group[0]
    part = items[first.first : first.first + first.count]
    measure, spec = measures.get(first.metric), folder.spec
    counts.begin(f"{classifier.title}, {measure.title}, from picture {first.first + 1}")
    how = measure.settings(spec.metrics[first.metric])
    started = time.perf_counter()

    def progress(done: int, total: int) -> None:
        if folder.is_cancelled:
            raise Cancelled
        counts.step(done, total)

    work = Work(spec.seed, options.batch_size, progress)
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
    for shard in group:
        content = table.table(shard.model, shard.method, shard.metric, rows[shard.method])
        table.write(folder.file(shard), content)
    failed = sum(row.error is not None for more in rows.values() for row in more)
    folder.note(
        "made", model=first.model, metric=first.metric, first=first.first, images=first.count, shards=len(group),
        failed=failed, seconds=round(time.perf_counter() - started, 3),
    )  # fmt: skip


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
