"""What measures have in common: the pictures they see, the rows they return, and the registry they stand in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from torch import Tensor

from salviz.classifiers.classifier import Classifier
from salviz.datasets import PictureSet
from salviz.errors import ImageError, RequestError
from salviz.images import Picture
from salviz.runs.table import NONE, Row
from salviz.work import Progress, helper, silent

Settings = Mapping[str, Any]
Rows = dict[str, list[Row]]
"""Rows by method id."""


Keep = Callable[[str, int, Tensor, Sequence[str]], None]
"""Called with method, place in the sample, maps, and the rows' settings."""


class Unreadable(ImageError):  # noqa: N818 - a property of the picture
    """A picture of the set that cannot be opened any more, or never could.

    Attributes:
        place: Of the image in the run's sample.
    """

    def __init__(self, place: int, reason: str) -> None:
        super().__init__(reason)
        self.place = place


@dataclass(frozen=True)
class Item:
    """A picture of a run's sample, not opened.

    Attributes:
        place: In the sample.
        name: In the set.
        label: Class number of the classifier at hand, or None where it has no such class.
        fingerprint: Of the picture's content when the run began.
        source: The set it belongs to, and its place there; None where it is no longer in it.
    """

    place: int
    name: str
    label: int | None
    fingerprint: str
    source: tuple[PictureSet, int] | None

    def open(self) -> Picture:
        """Open the picture.

        Raises:
            Unreadable: It cannot be read, or is not what it was when the run began.
        """
        if self.source is None:
            raise Unreadable(self.place, f"'{self.name}' is no longer in the set.")
        pictures, place = self.source
        try:
            if pictures.fingerprint(place) != self.fingerprint:
                raise ImageError(f"'{self.name}' is not what it was when the run began.")
            return pictures.open(place)
        except ImageError as error:
            raise Unreadable(self.place, str(error)) from error

    def row(self, **values: Any) -> Row:
        """A row about this picture."""
        return Row(self.place, self.name, NONE if self.label is None else self.label, **values)


@dataclass(frozen=True)
class Work:
    """How a measure computes, which changes no result.

    Attributes:
        seed: The run's seed; this one does change results.
        batch_size: Images in one model pass at the most; None for what suits the device.
        progress: Called between passes; raises `Cancelled` to stop.
        keep: Given a method's raw maps of a picture, `(rows, h, w)`, and what the rows stand for, the clean map first.
    """

    seed: int = 0
    batch_size: int | None = None
    progress: Progress = silent
    keep: Keep = lambda method, place, maps, rows: None


Compute = Callable[[Classifier, Sequence[Item], Mapping[str, Settings], Settings, Work], Iterator[Rows]]


@dataclass(frozen=True)
class Measure:
    """Something a run can measure, described.

    Attributes:
        id: Stable snake_case name.
        title: For people.
        description: What it says, in a sentence.
        defaults: All settings with their defaults; a value given must be of the default's kind.
        check: Raises `RequestError` for settings that mean nothing.
        compute: Yields the rows of all methods, of the first picture or pictures first.
        maps: How many maps of each method one picture takes, with a classifier under these settings.
        depends: What else the numbers depend on under these settings, such as another net's weights; plain types.
    """

    id: str
    title: str
    description: str
    defaults: Settings
    check: Callable[[Settings], object]
    compute: Compute
    maps: Callable[[Classifier, Settings], int]
    depends: Callable[[Settings], object] = lambda settings: None

    def settings(self, given: Settings) -> dict[str, Any]:
        """All settings, those given checked.

        Raises:
            RequestError: An unknown setting, or a value of the wrong kind.
        """
        for name, value in given.items():
            if name not in self.defaults:
                raise RequestError(f"{self.title} has no setting {name!r}; it has {', '.join(sorted(self.defaults))}.")
            if type(value) is not type(self.defaults[name]):
                raise RequestError(f"{self.title}: {value!r} is no value of {name}.")
        merged = {**self.defaults, **given}
        self.check(merged)
        return merged


MEASURES: dict[str, Measure] = {}


def get(id: str) -> Measure:
    """A registered measure.

    Raises:
        RequestError: There is none of this id.
    """
    if id not in MEASURES:
        raise RequestError(f"There is no metric {id!r}; there are {', '.join(MEASURES)}.")
    return MEASURES[id]


def register(**described: Any) -> Callable[[Compute], Compute]:
    """Decorator that puts a measure into the registry.

    Args:
        described: The fields of `Measure` but `compute`.
    """

    def add(compute: Compute) -> Compute:
        MEASURES[described["id"]] = Measure(compute=compute, **described)
        return compute

    return add


Asked = TypeVar("Asked")
Made = TypeVar("Made")


def ahead(make: Callable[[Asked], Made], asked: Iterable[Asked], *, depth: int = 2) -> Iterator[Made]:
    """What `make` makes of each thing asked for, in order, made in a thread while the one before is in use.

    Args:
        make: Runs outside the model's thread.
        asked: Taken as needed.
        depth: Made ahead at the most.
    """
    waiting = iter(asked)
    with helper("salviz-ahead") as pool:
        made: list[Future[Made]] = [pool.submit(make, one) for one in islice(waiting, depth)]
        try:
            while made:
                yield made.pop(0).result()
                made += [pool.submit(make, one) for one in islice(waiting, 1)]
        finally:
            for future in made:
                future.cancel()
