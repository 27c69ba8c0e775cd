"""Sets of labelled pictures, listed at once and opened one by one.

A set is named by a text that a spec, a link or the command line can hold: `fashion`, `samples`, `folder:PATH`,
`zip:PATH`, `torchvision:CLASS@PATH?option=value`, `hf:NAME@REVISION?option=value`, or simply the path of a folder or of
a zip file.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from salviz.errors import DataError, ImageError
from salviz.images import Picture, folder_images, open_fashion, open_from_folder, open_sample, samples, wordnet_id
from salviz.images.fashion import FASHION, fashion_arrays

MOST = 10_000_000
"""Pictures a set may have."""


@dataclass(frozen=True)
class Entry:
    """A picture of a set, not opened.

    Attributes:
        name: Unique within the set and the same tomorrow: a path in it, or a sample's id.
        label: What its place says of its class: a number, a WordNet id or a name; None where nothing does.
    """

    name: str
    label: int | str | None


class PictureSet(ABC):
    """Pictures that can be opened in any order and from several threads.

    Attributes:
        id: The text that names the set; `open_set` opens it again.
        title: For people.
        entries: All of its pictures, in an order of its own.
    """

    id: str
    title: str
    entries: Sequence[Entry]

    def __len__(self) -> int:
        return len(self.entries)

    @abstractmethod
    def open(self, place: int) -> Picture:
        """Open a picture.

        Args:
            place: In `entries`.

        Raises:
            ImageError: It is damaged, too large or gone.
        """

    @cached_property
    def _places(self) -> dict[str, int]:
        return {entry.name: place for place, entry in enumerate(self.entries)}

    def source(self, name: str) -> tuple[PictureSet, int] | None:
        """This set and the place of a picture in it; None where it has none of this name."""
        return (self, self._places[name]) if name in self._places else None

    def fingerprint(self, place: int) -> str:
        """Digest of a picture's content as stored: other content, other digest.

        Args:
            place: In `entries`.

        Raises:
            ImageError: It cannot be read.
        """
        return self.open(place).digest


class FashionSample(PictureSet):
    """The thousand pictures of Fashion-MNIST that come with Salviz."""

    def __init__(self) -> None:
        self.id, self.title = "fashion", "Fashion-MNIST, 1,000 test pictures"
        _, labels = fashion_arrays()
        self.entries = [Entry(f"fashion:{place}", FASHION[int(label)]) for place, label in enumerate(labels)]

    def open(self, place: int) -> Picture:
        """See the base."""
        return open_fashion(place)


class Samples(PictureSet):
    """The sample photographs, of which few have a label."""

    def __init__(self) -> None:
        self.id, self.title = "samples", "Sample photographs"
        self._ids = [one.id for one in samples()]
        self.entries = [Entry(f"sample:{one}", None) for one in self._ids]

    def open(self, place: int) -> Picture:
        """See the base."""
        return open_sample(self._ids[place])


class FolderSet(PictureSet):
    """A folder: class folders named by number, WordNet id or name, or flat files that begin with a WordNet id.

    Args:
        path: Of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().resolve()
        self.id, self.title = f"folder:{self.path}", self.path.name
        try:
            names = folder_images(self.path, limit=MOST)
        except ImageError as error:
            raise DataError(f"There is no folder {path}; check its name.") from error
        if not names:
            raise DataError(f"There is no picture in {path}.")
        self.entries = [Entry(name, label_in(name)) for name in names]

    def open(self, place: int) -> Picture:
        """See the base."""
        return open_from_folder(self.path, self.entries[place].name)

    def fingerprint(self, place: int) -> str:
        """Of the file's bytes."""
        try:
            with (self.path / self.entries[place].name).open("rb") as file:
                return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        except OSError as error:
            raise ImageError(f"'{self.entries[place].name}' cannot be read: check its permissions.") from error


def label_in(name: str) -> int | str | None:
    """What a path says of the class: a WordNet id at the head of the file's or its folder's name, else the folder.

    Args:
        name: Relative to the set, with forward slashes.

    Returns:
        A number, a WordNet id, a name, or None for a flat file without an id.
    """
    known = wordnet_id(name)
    if known is not None:
        return known
    folder = name.rpartition("/")[0].rpartition("/")[2]
    return (int(folder) if folder.isascii() and folder.isdecimal() else folder) if folder else None


def open_set(id: str) -> PictureSet:
    """Open a set by its name.

    Args:
        id: `fashion`, `samples`, `folder:PATH`, `zip:PATH`, the path of a folder or a zip file, or a set of another
            library as `TorchvisionSet` and `HuggingFaceSet` name it after `torchvision:` and `hf:`.

    Raises:
        DataError: There is no such set, or it cannot be read.
    """
    from salviz.datasets.archives import ZipSet

    known: dict[str, Callable[[], PictureSet]] = {"fashion": FashionSample, "samples": Samples}
    if id in known:
        return known[id]()
    kind, colon, rest = id.partition(":")
    if colon and kind == "folder":
        return FolderSet(Path(rest))
    if colon and kind == "zip":
        return ZipSet(Path(rest))
    if colon and kind == "torchvision":
        from salviz.datasets.torchvisions import TorchvisionSet

        return TorchvisionSet(rest)
    if colon and kind == "hf":
        from salviz.datasets.hugging_face import HuggingFaceSet

        return HuggingFaceSet(rest)
    path = Path(id).expanduser()
    if path.is_dir():
        return FolderSet(path)
    if path.suffix.lower() == ".zip":
        return ZipSet(path)
    raise DataError(
        f"There is no image set {id!r}; name {', '.join(known)}, the path of a folder or of a zip file, or a set of "
        "another library that begins with torchvision: or hf:."
    )


def sample(
    entries: Sequence[Entry],
    count: int | None = None,
    *,
    seed: int = 0,
    classes: Sequence[int | str] | None = None,
    is_stratified: bool = False,
) -> list[int]:
    """Choose pictures; the same ones whatever their order, and a smaller sample is a part of a larger one.

    Args:
        entries: Of a set.
        count: How many; all where None.
        seed: Of the draw.
        classes: Labels to choose from, as the entries have them; all where None.
        is_stratified: As many of each class as there are, before one of them gets more.

    Returns:
        Places in `entries`, in the order of the draw.

    Raises:
        DataError: There are fewer pictures than asked for, or none of a class.
    """
    places = range(len(entries))
    if classes is not None:
        known = {entry.label for entry in entries}
        missing = [label for label in classes if label not in known]
        if missing:
            raise DataError(f"The set has no picture of class {missing[0]!r}.")
        wanted = set(classes)
        chosen = [place for place in places if entries[place].label in wanted]
    else:
        chosen = list(places)
    if count is not None and count > len(chosen):
        of = "" if classes is None else " of these classes"
        raise DataError(
            f"The set has {len(chosen)} pictures{of}, not {count}: ask for fewer, or give no number to take all."
        )

    def drawn(place: int) -> bytes:
        return hashlib.blake2b(f"{seed}|{entries[place].name}".encode(), digest_size=8).digest()

    chosen.sort(key=drawn)
    if is_stratified:
        rank: dict[int | str | None, int] = defaultdict(int)
        turns = []
        for place in chosen:
            turns.append(rank[entries[place].label])
            rank[entries[place].label] += 1
        chosen = [place for _, place in sorted(zip(turns, chosen, strict=True), key=lambda pair: pair[0])]
    return chosen[:count]
