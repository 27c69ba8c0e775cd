"""Data sets of torchvision, by the name of their class: `torchvision:CIFAR10@/data?train=false`."""

from __future__ import annotations

import hashlib
import inspect
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from salviz.datasets.foreign import as_file, class_name, has_names, named, with_options
from salviz.datasets.pictures import MOST, Entry, PictureSet
from salviz.errors import DataError, ImageError
from salviz.images import Picture, decode
from salviz.images.decoding import MAX_BYTES, check_file_size

# What an option may not set: code, and what makes an item something else than a picture and its class.
_CLOSED = frozenset(
    {"self", "root", "transform", "target_transform", "transforms", "loader", "extensions", "is_valid_file",
     "target_type", "target_types"}
)  # fmt: skip

# Where the classes keep a label a picture, and pairs of a file and a label.
_LABELS = ("targets", "_labels", "labels", "y")
_PAIRS = ("samples", "_samples", "imgs", "index", "_flat_character_images")
# Where they keep a file a picture; LFW calls it `data`, where others have pixels.
_FILES = ("_image_files", "_images", "data")


class LateEntry(Entry):
    """A picture whose label is only known when it is read.

    Args:
        name: See the base.
        read: Says the label; called once, when it is asked for.
    """

    def __init__(self, name: str, read: Callable[[], int | str | None]) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "_read", read)

    @property
    def label(self) -> int | str | None:
        """See the base; reads the picture the first time."""
        if "_label" not in self.__dict__:
            object.__setattr__(self, "_label", self.__dict__["_read"]())
        found: int | str | None = self.__dict__["_label"]
        return found

    __hash__ = Entry.__hash__


class TorchvisionSet(PictureSet):
    """An image classification set of `torchvision.datasets`.

    Nothing is downloaded unless `download=true` is among the options. Pictures are listed without being opened, from
    what the class knows of their labels; a class that keeps none (PCAM) has its labels read when a sample asks for
    them. A picture's name is its path under the root where there is one, else `<class>/<place>`. A label is the name
    that the class gives it (a WordNet id for ImageNet and Imagenette; digits alone are a number), or its number.

    Args:
        rest: `CLASS@ROOT?option=value&...`; options are arguments of the class such as `train=false` or `split=test`,
            and `labels=numbers`, for a classifier that has the numbers of the set and not its names.

    Raises:
        DataError: There is no such class, its data are not there, or its items are no pictures with a class.
    """

    def __init__(self, rest: str) -> None:
        rest, options = with_options(rest)
        kind, at, root = rest.partition("@")
        if not (kind and at and root):
            raise DataError(
                "Name a torchvision set as torchvision:CLASS@FOLDER, such as torchvision:CIFAR10@/data?train=false."
            )
        self.root = Path(root).expanduser().resolve()
        made, is_named = _class(kind), has_names(options)
        self._data = _opened(made, self.root, {name: value for name, value in options.items() if name != "labels"})
        kept = {name: value for name, value in options.items() if name != "download"}
        self.id = f"torchvision:{named(f'{kind}@{self.root}', kept)}"
        self.title = " ".join([kind, *(f"{name} {value}" for name, value in sorted(kept.items()))])
        self._kind = kind
        # torchvision does not say which of its classes may be read from several threads.
        self._lock = threading.Lock()
        if not 0 < len(self._data) <= MOST:
            raise DataError(f"There is no picture in {self.root}, or there are too many.")
        self._classes = _classes(self._data) if is_named else []
        self.entries = self._listed()

    def _listed(self) -> Sequence[Entry]:
        count = len(self._data)
        names, labels = _names(self._data, self.root, count), _labels(self._data, count)
        names = names or [f"{self._kind}/{place}" for place in range(count)]
        self._check(0, labels)
        if labels is None:
            return [LateEntry(name, lambda place=place: self._late(place)) for place, name in enumerate(names)]  # type: ignore[misc]
        return [Entry(name, self._called(label)) for name, label in zip(names, labels, strict=True)]

    def _check(self, place: int, labels: Sequence[int | None] | None) -> None:
        """One picture is looked at: nothing else tells a classification set from others."""
        try:
            item = self._data[place]
        except Exception as error:
            raise DataError(f"The first picture of {self._kind} in {self.root} cannot be read.") from error
        if not (isinstance(item, tuple) and len(item) == 2 and _is_picture(item[0]) and _is_class(item[1])):
            raise DataError(f"{self._kind} is no set of pictures with one class each, so no run can be made over it.")
        if labels is not None and _number(item[1]) != labels[place]:
            raise DataError(f"Salviz cannot tell how {self._kind} keeps its classes.")

    def _late(self, place: int) -> int | str | None:
        try:
            return self._called(_number(self._item(place)[1]))
        except ImageError:
            # It will be a failure of the run, with its reason.
            return None

    def _called(self, label: int | None) -> int | str | None:
        if label is None or label < 0:
            return None
        return self._classes[label] if label < len(self._classes) else label

    def open(self, place: int) -> Picture:
        """See the base."""
        picture = self._item(place)[0]
        name = self.entries[place].name
        if isinstance(picture, bytes):
            return decode(picture, name=name)
        data = as_file(_image(picture))
        return decode(data, max_bytes=len(data), name=name)

    def fingerprint(self, place: int) -> str:
        """Of the file's bytes where the class reads files, else of the values that it gives."""
        picture = self._item(place)[0]
        if isinstance(picture, bytes):
            return hashlib.blake2b(picture, digest_size=16).hexdigest()
        image = _image(picture)
        state = hashlib.blake2b(f"{image.mode} {image.width}x{image.height}:".encode(), digest_size=16)
        state.update(image.tobytes())
        return state.hexdigest()

    def _item(self, place: int) -> tuple[Any, Any]:
        try:
            with self._lock:
                found: tuple[Any, Any] = self._data[place]
                # A Pillow image that is not loaded holds on to its file.
                if isinstance(found[0], Image.Image):
                    found[0].load()
        except ImageError:
            raise
        except Exception as error:  # damaged data raise nearly every built-in exception
            raise ImageError(f"Picture {place} of {self._kind} cannot be read.") from error
        return found


def _class(name: str) -> type[Any]:
    from torchvision import datasets

    found = getattr(datasets, name, None) if name in datasets.__all__ else None
    if not (isinstance(found, type) and issubclass(found, datasets.VisionDataset) and "root" in _arguments(found)):
        raise DataError(f"torchvision has no image set {name!r}; it has, for example, CIFAR10, ImageFolder and MNIST.")
    return found


def _arguments(made: type[Any]) -> dict[str, inspect.Parameter]:
    """What may be passed to a class, with what it passes on to its parents."""
    found: dict[str, inspect.Parameter] = {}
    for one in made.__mro__:
        if "__init__" not in vars(one):
            continue
        own = inspect.signature(vars(one)["__init__"]).parameters
        found = {**own, **found}
        if not any(argument.kind is argument.VAR_KEYWORD for argument in own.values()):
            break
    return {name: argument for name, argument in found.items() if argument.kind is argument.POSITIONAL_OR_KEYWORD}


def _opened(made: type[Any], root: Path, options: dict[str, str]) -> Any:
    takes = _arguments(made)
    given: dict[str, Any] = {}
    offered = sorted(set(takes) - _CLOSED)
    for name, value in options.items():
        if name not in offered:
            has = f"it has {', '.join(offered)}" if offered else "it has none"
            raise DataError(f"{made.__name__} has no option {name!r}; {has}.")
        given[name] = _value(name, value, takes[name].default)
    missing = [name for name in offered if takes[name].default is inspect.Parameter.empty and name not in given]
    if missing:
        raise DataError(f"{made.__name__} needs the option {missing[0]}, such as ?{missing[0]}=...")
    if "download" in takes:
        # Some download unless told not to.
        given.setdefault("download", False)
    if "loader" in takes:
        # So that files are decoded as everywhere in Salviz: upright, on white, within bounds.
        given["loader"] = _file
    try:
        return made(str(root), **given)
    except (RuntimeError, OSError) as error:
        if isinstance(error.__context__, ImportError):
            raise DataError(f"{made.__name__} needs the package {error.__context__.name}; install it.") from error
        if "download" not in takes:
            reason = str(error).strip().partition("\n")[0]
            raise DataError(f"torchvision does not find {made.__name__} whole in {root}: {reason}") from error
        hint = "" if given["download"] else ", or add download=true"
        raise DataError(f"torchvision does not find {made.__name__} whole in {root}; put its files there{hint}.") from (
            error
        )
    except ImportError as error:
        raise DataError(f"{made.__name__} needs the package {error.name}; install it.") from error
    except ValueError as error:
        raise DataError(f"{made.__name__} does not take these options, or its files are damaged: {error}") from error
    except Exception as error:  # damaged files raise nearly every built-in exception
        raise DataError(f"The files of {made.__name__} in {root} are damaged; get them again.") from error


def _value(name: str, text: str, default: Any) -> Any:
    """An option in the kind of the class's default; where there is none, digits are a number."""
    if isinstance(default, bool):
        if text not in ("true", "false"):
            raise DataError(f"The option {name} is true or false, not {text!r}.")
        return text == "true"
    is_number = text.isascii() and text.isdecimal()
    if isinstance(default, int) and not is_number:
        raise DataError(f"The option {name} is a number, not {text!r}.")
    return int(text) if is_number and not isinstance(default, str) else text


def _file(path: Any) -> bytes:
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ImageError(f"'{Path(path).name}' cannot be read: check its permissions.") from error
    check_file_size(len(data), MAX_BYTES)
    return data


def _is_picture(value: Any) -> bool:
    return isinstance(value, bytes | Image.Image) or (
        hasattr(value, "__array__") and np.asarray(value).ndim in (2, 3) and np.asarray(value).dtype == np.uint8
    )


def _is_class(value: Any) -> bool:
    if hasattr(value, "__array__"):
        return np.asarray(value).ndim == 0 and np.asarray(value).dtype.kind in "iu"
    return value is None or (isinstance(value, int) and not isinstance(value, bool))


def _number(value: Any) -> int | None:
    return None if value is None else int(value)


def _image(value: Any) -> Image.Image:
    """A Pillow image of an item's picture; tensors have their colours first, arrays last, as is usual."""
    if isinstance(value, Image.Image):
        return value
    pixels = np.asarray(value)
    if pixels.ndim == 3 and not isinstance(value, np.ndarray):
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    try:
        return Image.fromarray(np.ascontiguousarray(pixels))
    except (TypeError, ValueError) as error:
        raise ImageError(f"An array of {pixels.shape} values is no picture.") from error


def _pairs(data: Any, count: int) -> list[tuple[Any, Any]] | None:
    for name in _PAIRS:
        found = getattr(data, name, None)
        if isinstance(found, list) and len(found) == count:
            # INaturalist has the class before the file.
            return [(file, label) if name != "index" else (label, file) for file, label in found] if all(
                isinstance(pair, tuple) and len(pair) == 2 for pair in found
            ) else None  # fmt: skip
    return None


def _labels(data: Any, count: int) -> list[int | None] | None:
    """A label a picture as the class keeps them, or None where it keeps none."""
    for name in _LABELS:
        found = getattr(data, name, None)
        if found is None or len(found) != count:
            continue
        # QMNIST has more than the class of each, and the class comes first.
        if hasattr(found, "__array__"):
            array = np.asarray(found)
            found = (array[:, 0] if array.ndim == 2 else array).tolist()
        if all(_is_class(label) for label in found):
            return [_number(label) for label in found]
    pairs = _pairs(data, count)
    if pairs is not None and all(_is_class(label) for _, label in pairs):
        return [_number(label) for _, label in pairs]
    return None


def _names(data: Any, root: Path, count: int) -> list[str] | None:
    """Paths under the root, or None where the class reads no files there."""
    pairs = _pairs(data, count)
    files = [file for file, _ in pairs] if pairs is not None else None
    for name in _FILES:
        found = getattr(data, name, None)
        if files is None and isinstance(found, list) and len(found) == count:
            files = found
    if files is None or not all(isinstance(file, str | Path) and Path(file).is_relative_to(root) for file in files):
        return None
    names = [Path(file).relative_to(root).as_posix() for file in files]
    return names if len(set(names)) == count else None


def _classes(data: Any) -> list[int | str]:
    """What the classes are called, by number; empty where nobody says."""
    found = getattr(data, "wnids", None) or getattr(data, "classes", None) or getattr(data, "categories", None)
    if not isinstance(found, list | tuple):
        numbers = getattr(data, "class_to_idx", None)
        if not (isinstance(numbers, dict) and sorted(numbers.values()) == list(range(len(numbers)))):
            return []
        found = sorted(numbers, key=numbers.__getitem__)
    # Some list the synonyms of each.
    names = [one[0] if isinstance(one, tuple) else one for one in found]
    if not all(isinstance(name, str) for name in names):
        return []
    # MNIST calls a seven `7 - seven`, which no classifier does.
    if all(name.startswith(f"{number} - ") for number, name in enumerate(names)):
        return list(range(len(names)))
    return [class_name(name) for name in names]
