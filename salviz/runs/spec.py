"""What a run is asked to do: the same text from the command line, the Batch page and a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

from salviz.errors import RequestError

Settings = Mapping[str, Any]

MAPS = ("none", "clean", "all")
"""Which maps a run may keep."""


def _frozen(chosen: Mapping[str, Settings | None]) -> Mapping[str, Settings]:
    return MappingProxyType({name: MappingProxyType(dict(given or {})) for name, given in chosen.items()})


@dataclass(frozen=True)
class Spec:
    """A run over a data set; every method and every model sees the same images.

    Attributes:
        data: Name of the image set, as `datasets.open_set` takes it.
        models: Ids of classifiers.
        methods: Settings that differ from the defaults, by method id.
        metrics: Settings that differ from the defaults, by the id of an entry of `runs.measures.MEASURES`.
        images: How many pictures; all where None.
        classes: Labels to choose from, as the set has them; all where None.
        is_stratified: As many pictures of each class as there are.
        seed: Of everything random: the sample too.
        group: Pictures in a shard: what is lost at the most when a run is killed.
        maps: Which of COSE's maps are kept: `none`, `clean` (of the pictures as they are) or `all`.
    """

    data: str
    models: tuple[str, ...]
    methods: Mapping[str, Settings]
    metrics: Mapping[str, Settings] = field(default_factory=lambda: {"cose": {}})
    images: int | None = None
    classes: tuple[int | str, ...] | None = None
    is_stratified: bool = False
    seed: int = 0
    group: int = 16
    maps: str = "none"

    def __post_init__(self) -> None:
        """Freeze, and check what can be checked without loading anything.

        Raises:
            RequestError: Nothing to do, or something twice.
        """
        object.__setattr__(self, "models", tuple(self.models))
        object.__setattr__(self, "methods", _frozen(self.methods))
        object.__setattr__(self, "metrics", _frozen(self.metrics))
        if self.classes is not None:
            object.__setattr__(self, "classes", tuple(self.classes))
        for what, chosen in (("model", self.models), ("method", self.methods), ("metric", self.metrics)):
            if not chosen:
                raise RequestError(f"No {what} was chosen. Choose at least one.")
        if self.maps not in MAPS:
            raise RequestError(f"The maps that are kept are {', '.join(MAPS)}, not {self.maps!r}.")
        if self.maps != "none" and "cose" not in self.metrics:
            raise RequestError("Maps are kept where COSE is measured; add it to the metrics.")
        if len(set(self.models)) < len(self.models):
            raise RequestError("A model is named twice; name each once.")
        if self.group < 1 or (self.images is not None and self.images < 1):
            raise RequestError("A run takes at least one picture, in groups of at least one.")

    def as_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        plain = {one.name: getattr(self, one.name) for one in fields(self)}
        for name in ("methods", "metrics"):
            plain[name] = {id: dict(given) for id, given in plain[name].items()}
        plain["models"] = list(self.models)
        plain["classes"] = None if self.classes is None else list(self.classes)
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Spec:
        """The spec of a JSON file's content.

        Args:
            plain: As `as_dict` returns it; methods and metrics may be lists of ids.

        Raises:
            RequestError: A field is missing, unknown, or of another kind.
        """
        if not isinstance(plain, Mapping):
            raise RequestError("A spec is a JSON object with data, models and methods.")
        known = {one.name for one in fields(cls)}
        unknown = sorted(set(plain) - known)
        if unknown:
            raise RequestError(f"A spec has no field {unknown[0]!r}; it has {', '.join(sorted(known))}.")
        missing = [name for name in ("data", "models", "methods") if name not in plain]
        if missing:
            raise RequestError(f"The spec does not say which {missing[0]}.")
        given = dict(plain)
        for name in ("methods", "metrics"):
            if isinstance(given.get(name), Sequence) and not isinstance(given[name], str):
                given[name] = {id: {} for id in given[name]}
        checks = {
            "data": str, "models": Sequence, "methods": Mapping, "metrics": Mapping, "images": int | None,
            "classes": Sequence | None, "is_stratified": bool, "seed": int, "group": int,
            "maps": str,
        }  # fmt: skip
        for name, value in given.items():
            if not isinstance(value, checks[name]) or (name in ("models", "classes") and isinstance(value, str)):
                raise RequestError(f"The spec's field {name!r} has a value of the wrong kind: {value!r}.")
        return cls(**given)

    @classmethod
    def from_text(cls, text: str) -> Spec:
        """The spec of a JSON text.

        Raises:
            RequestError: It is no JSON, or no spec.
        """
        try:
            plain = json.loads(text)
        except ValueError as error:
            raise RequestError("The spec is not valid JSON.") from error
        return cls.from_dict(plain)
