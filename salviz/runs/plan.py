"""Which shards a run consists of, each named by everything that its numbers depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import salviz
from salviz import engine, methods
from salviz.classifiers.classifier import Classifier
from salviz.classifiers.labels import Labels
from salviz.request import precision_of
from salviz.runs import measures
from salviz.runs.measures import Item
from salviz.runs.spec import Spec
from salviz.transforms import named_variants

Settings = Mapping[str, Any]

# What shows results, or says where they are computed and kept, changes none of them.
_SHOWING = frozenset(
    {"cli", "ui", "__main__", "colormaps", "comparison", "export", "figures", "filmstrip", "jobs", "memory", "overlay",
     "render", "summary", "training", "runs/estimate", "runs/exports", "runs/plots", "runs/presence", "runs/results",
     "runs/rollup", "runs/ray_engine", "runs/shelf", "runs/store", "runs/summary", "runs/words", "runs/worker"}
)  # fmt: skip


@dataclass(frozen=True)
class Shard:
    """The rows of one model, method and metric over a group of images.

    Attributes:
        key: Name of its file: a digest of everything its numbers depend on.
        model: Id of the classifier.
        method: Id of the method.
        metric: Id of the metric.
        first: Place of its first image in the sample.
        count: Images.
    """

    key: str
    model: str
    method: str
    metric: str
    first: int
    count: int


@cache
def code_digest() -> str:
    """Digest of the source that computes results; what only shows them is left out."""
    state = hashlib.blake2b(digest_size=16)
    root = Path(salviz.__file__).parent
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if not _SHOWING & {name.parts[0].removesuffix(".py"), name.with_suffix("").as_posix()}:
            state.update(f"{name.as_posix()}\n".encode() + path.read_bytes() + b"\0")
    return state.hexdigest()


def label_of(given: int | str | None, labels: Labels) -> int | None:
    """Class number of what a set calls a class, or None where the classifier has no such class.

    Args:
        given: A number, a WordNet id, a name or all names of a class; underscores in a name stand for spaces.
        labels: Of the classifier.
    """
    if given is None or isinstance(given, int):
        return given if given is not None and given < len(labels) else None
    known = labels.index_of_wordnet(given)
    if known is not None:
        return known
    whole = " ".join(given.replace("_", " ").casefold().split())
    # Some sets give a class two names, `T-shirt/top`, or the way to it, `/a/airfield`.
    wanted = {whole, *filter(None, whole.split("/"))}
    found = [
        index
        for index, name in enumerate(labels.names)
        if not wanted.isdisjoint((name.casefold(), *name.casefold().split(", "), labels.short(index).casefold()))
    ]
    return found[0] if len(found) == 1 else None


_GROUP_PASSES = 4000.0
_NETS = 20
"""Nets of a randomisation, about: how many there are depends on the classifier."""


def fitting_group(methods_: Mapping[str, Settings], metrics: Mapping[str, Settings], most: int = 16) -> int:
    """Pictures in a group: what somebody loses who stops a run is less than a group, so dear methods get small ones.

    Args:
        methods_: Settings by method id.
        metrics: Settings by metric id.
        most: Pictures.
    """
    maps = 0
    for name, given in metrics.items():
        how = {**measures.get(name).defaults, **given}
        if name == "cose":
            maps += 1 + len(named_variants(how["augmentations"], 0, "")) + len(how["changes"])
        else:
            maps += 1 + _NETS * int(how.get("draws", 1))
    each = maps * engine.passes(methods_, (224, 224))
    return max(1, min(most, int(_GROUP_PASSES / each))) if each else most


def shards(spec: Spec, classifier: Classifier, items: Sequence[Item]) -> list[Shard]:
    """The shards of one classifier, group after group, metric after metric.

    Args:
        spec: What is asked.
        classifier: One of its models.
        items: The sample, with this classifier's class numbers.

    Raises:
        MethodError: A setting that a method does not have.
        RequestError: A setting that a metric does not have.
    """
    chosen = {name: methods.get(name).card.check_parameters(dict(given)) for name, given in spec.methods.items()}
    how = {name: measures.get(name).settings(given) for name, given in spec.metrics.items()}
    depends = {name: measures.get(name).depends(settings) for name, settings in how.items()}
    found = []
    for first in range(0, len(items), spec.group):
        part = items[first : first + spec.group]
        images = [[item.name, item.fingerprint, item.label, item.place] for item in part]
        for metric, settings in how.items():
            for method, parameters in chosen.items():
                content = {
                    "code": code_digest(), "model": classifier.id, "weights": classifier.digest,
                    "precision": precision_of(classifier), "method": method, "parameters": parameters,
                    "metric": metric, "settings": settings, "depends": depends[metric], "seed": spec.seed,
                    "images": images,
                }  # fmt: skip
                if spec.maps != "none" and metric == "cose":
                    content["maps"] = spec.maps
                text = json.dumps(content, sort_keys=True, ensure_ascii=True)
                key = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
                found.append(Shard(key, classifier.id, method, metric, first, len(part)))
    return found
