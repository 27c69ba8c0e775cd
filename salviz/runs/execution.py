"""Making the shards of a run: what is missing, group after group; what fails becomes rows that say why."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from itertools import groupby

from salviz import __version__, datasets, load
from salviz.classifiers.classifier import Classifier
from salviz.datasets import PictureSet
from salviz.errors import ImageError
from salviz.plain import write_files
from salviz.runs import table
from salviz.runs.bench import DEFAULT, Bench, Counts, Group, Made, Options, Told, items_of, quiet, refuse_changes
from salviz.runs.folder import MAPS, RunFolder, Sampled
from salviz.runs.plan import Shard, code_digest, shards
from salviz.runs.spec import Spec
from salviz.runs.store import Store


def begin(
    spec: Spec,
    folder: RunFolder,
    options: Options = DEFAULT,
    *,
    told: Told = quiet,
    accepts_changes: bool = False,
) -> Classifier | None:
    """Sample, fingerprint and plan a run; shards of an earlier run in the folder are used where they belong to it.

    Args:
        spec: What is asked.
        folder: Where the run lives.
        options: How it is computed.
        told: Called as the pictures are looked at.
        accepts_changes: Whether code or weights may differ from those of the run that is there: what depends on them
            is then made anew.

    Returns:
        The classifier for `here`, where the run has but one: no two are held in memory.

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
    names: dict[str, dict[int, str]] = {}
    classifier: Classifier | None = None
    for model in spec.models:
        classifier = load(model, device=options.device)
        weights[model] = classifier.digest
        items = items_of(sample, pictures, classifier)
        plan += shards(spec, classifier, items)
        labels = sorted({item.label for item in items if item.label is not None})
        names[model] = {label: classifier.labels.short(label) for label in labels}
    digests = {"version": __version__, "code": code_digest(), "weights": weights, "data": pictures.id}
    if folder.exists and not accepts_changes:
        refuse_changes(folder.path, folder.about, digests)
    folder.begin(spec, sample, plan, digests, names)
    return classifier if len(spec.models) == 1 else None


def _sampled(pictures: PictureSet, place: int) -> Sampled:
    entry = pictures.entries[place]
    try:
        fingerprint = pictures.fingerprint(place)
    except ImageError:
        # It will be a failure of the run, with its reason, and not the end of it.
        fingerprint = ""
    label = None if entry.label is None else str(entry.label)
    return Sampled(entry.name, label, isinstance(entry.label, int), fingerprint)


Engine = Callable[[RunFolder, Sequence[Group], Options, Counts], Generator[Made, None, None]]
"""Computes the groups it is given, in any order, and counts and yields them as they are made; the caller writes them.
It raises `Cancelled` once the folder says so."""


def here(
    folder: RunFolder,
    groups: Sequence[Group],
    options: Options,
    counts: Counts,
    *,
    loaded: Classifier | None = None,
) -> Generator[Made, None, None]:
    """The engine of this process: one group after the other.

    Args:
        folder: Of the run.
        groups: To be made.
        options: How.
        counts: Told between passes.
        loaded: What `begin` returned, so that it is not loaded twice.

    Raises:
        Cancelled: Somebody asked the run to stop.
        SalvizError: One plain sentence.
    """
    bench = Bench(folder.about, folder.data, folder.sample, options, where=folder.path, loaded=loaded)
    for group in groups:
        yield bench.make(group, counts, is_cancelled=lambda: folder.is_cancelled)


def resume(
    folder: RunFolder,
    options: Options = DEFAULT,
    *,
    told: Told = quiet,
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
