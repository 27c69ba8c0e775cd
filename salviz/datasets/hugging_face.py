"""Data sets of the Hugging Face hub, or of a folder in one of its formats: `hf:org/name@revision?split=test`."""

from __future__ import annotations

import hashlib
import re
import tempfile
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from salviz.datasets.foreign import class_name, has_names, named, with_options
from salviz.datasets.pictures import MOST, Entry, PictureSet
from salviz.errors import DataError, ImageError
from salviz.images import Picture, decode
from salviz.images.decoding import MAX_BYTES, check_file_size

OPTIONS = ("config", "image", "label", "labels", "split", "stream")

MOST_STREAMED = 100_000
"""Examples that are kept of a stream."""

MOST_STREAMED_BYTES = 16 * 2**30
"""What the files of a stream may take on the disk."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


class HuggingFaceSet(PictureSet):
    """A split of a data set that the package `datasets` reads; none of its code is ever run.

    The column of pictures and the one of classes are found by their kind (`Image`, `ClassLabel`); where there are two
    of a kind, an option says which. A picture is named `<split>/<place>`. Its label is the name of its class (digits
    alone are a number). A revision becomes the commit it stands for, and the set's id names that.

    Args:
        rest: `NAME@REVISION?option=value&...`, or a folder in place of `NAME@REVISION`: one that `save_to_disk` wrote,
            or one of Parquet files or pictures as `load_dataset` takes them. Options are `split`, `config`, `image` and
            `label` (names of columns), and `stream`: read only the first so many examples, which are all of the set
            then, and download no more than they take; and `labels=numbers`, for a classifier that has the numbers of
            the set and not its names.

    Raises:
        DataError: There is no such set, it holds no pictures, or `datasets` is not installed.
    """

    def __init__(self, rest: str) -> None:
        name, self._options = with_options(rest)
        for option in self._options:
            if option not in OPTIONS:
                raise DataError(f"An hf set has no option {option!r}; it has {', '.join(OPTIONS)}.")
        has_names(self._options)
        library = _library()
        count = _count(self._options.get("stream"))
        folder = _folder(name)
        self._name, revision = (str(folder.resolve()), None) if folder is not None else _resolved(name)
        loaded = self._loaded(library, revision, count)
        self._split = self._options["split"]
        where = self._name if revision is None else f"{self._name}@{revision}"
        self.id = f"hf:{named(where, self._options)}"
        self.title = f"{self._name.rpartition('/')[2]}, {self._split}"
        self._image, self._label, self._called = self._columns(library, loaded.features)
        kept = loaded.select_columns([one for one in (self._image, self._label) if one is not None])
        # The files themselves are wanted: they are decoded as everywhere in Salviz.
        kept = kept.with_format(None).cast_column(self._image, library.Image(decode=False))
        # Neither a file object nor a data set says that it may be read from several threads.
        self._lock = threading.Lock()
        if count is None:
            labels = self._labels(kept)
            self._read: Callable[[int], bytes] = lambda place: _bytes(self._row(kept, place))
        else:
            labels, self._read = self._streamed(kept, count)
        if not 0 < len(labels) <= MOST:
            raise DataError(f"There is no picture in {name}, or there are too many.")
        self.entries = [Entry(f"{self._split}/{place}", label) for place, label in enumerate(labels)]

    def open(self, place: int) -> Picture:
        """See the base."""
        return decode(self._read(place), name=self.entries[place].name)

    def fingerprint(self, place: int) -> str:
        """Of the file's bytes."""
        return hashlib.blake2b(self._read(place), digest_size=16).hexdigest()

    def _loaded(self, library: Any, revision: str | None, count: int | None) -> Any:
        """The split; where none is asked for and there is one, `split` is added to the options."""
        folder, config = Path(self._name), self._options.get("config")
        if revision is None and not folder.is_dir():
            raise DataError(f"There is no folder {self._name}; check its name.")
        is_saved = revision is None and any((folder / one).is_file() for one in ("state.json", "dataset_dict.json"))
        if is_saved and count is not None:
            raise DataError("A folder written by save_to_disk is not streamed; leave out the option stream.")
        try:
            if is_saved:
                found = library.load_from_disk(self._name)
                splits = found if isinstance(found, dict) else {str(found.split or "all"): found}
                return splits[self._one_of(list(splits))]
            if revision is not None:
                # Without the hub the package takes what it has of the set, whichever commit that is.
                found = library.load_dataset_builder(self._name, config, revision=revision)
                if found.hash != revision:
                    raise DataError(
                        f"The hub cannot be reached, and the local cache has another commit of {self._name} than "
                        f"{revision}."
                    )
            if "split" not in self._options:
                # What is loaded without a split is all of them.
                self._one_of(library.get_dataset_split_names(self._name, config, revision=revision))
            split = self._options["split"]
            return library.load_dataset(self._name, config, split=split, revision=revision, streaming=count is not None)
        except DataError:
            raise
        except ConnectionError as error:
            raise DataError(f"The hub cannot be reached, and {self._name} is not whole in the local cache.") from error
        except Exception as error:  # what people put into data sets raises nearly every exception
            raise DataError(f"The package datasets cannot read {self._name}: {_first_line(error)}") from error

    def _one_of(self, splits: Sequence[str]) -> str:
        """The split that is asked for, or the only one, which becomes an option."""
        asked = self._options.get("split")
        if asked is None and len(splits) != 1:
            raise DataError(f"Which split? Add ?split= and one of {', '.join(splits)}.")
        split = self._options["split"] = splits[0] if asked is None else asked
        if split not in splits:
            raise DataError(f"{self._name} has no split {split!r}; it has {', '.join(splits)}.")
        return split

    def _columns(self, library: Any, features: Any) -> tuple[str, str | None, Callable[[Any], int | str | None]]:
        """The columns of pictures and of classes, and what a value of the latter is called."""
        if features is None:
            raise DataError(f"{self._name} does not say what its columns are before it is read; leave out stream.")
        image = self._chosen("image", [name for name, kind in features.items() if isinstance(kind, library.Image)])
        if image is None or not isinstance(features.get(image), library.Image):
            raise DataError(f"{self._name} has no column of pictures{f' {image!r}' if image else ''}.")
        label = self._chosen("label", [name for name, kind in features.items() if isinstance(kind, library.ClassLabel)])
        if label is None:
            return image, None, lambda value: None
        kind = features.get(label)
        if isinstance(kind, library.ClassLabel):
            names = [class_name(name) for name in kind.names or ()] if has_names(self._options) else []
            return image, label, lambda value: _name_of(value, names)
        if getattr(kind, "dtype", "").startswith(("int", "uint")):
            return image, label, lambda value: _name_of(value, [])
        if getattr(kind, "dtype", "") in ("string", "large_string"):
            return image, label, lambda value: None if value is None else class_name(str(value))
        raise DataError(f"{self._name} has no column {label!r} of class numbers or names.")

    def _chosen(self, option: str, found: Sequence[str]) -> str | None:
        if option in self._options:
            return self._options[option]
        if len(found) > 1:
            raise DataError(f"Which column? Add ?{option}= and one of {', '.join(found)}.")
        return found[0] if found else None

    def _labels(self, kept: Any) -> list[int | str | None]:
        if self._label is None:
            return [None] * len(kept)
        column = kept.select_columns([self._label]).with_format("arrow")[:].column(self._label)
        return [self._called(value) for value in column.to_pylist()]

    def _row(self, kept: Any, place: int) -> Any:
        try:
            with self._lock:
                return kept[place][self._image]
        except Exception as error:  # see above
            raise ImageError(f"'{self.entries[place].name}' cannot be read.") from error

    def _streamed(self, kept: Any, count: int) -> tuple[list[int | str | None], Callable[[int], bytes]]:
        """The labels of the first examples, and how to read their files, which wait in one without a name."""
        store = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the set
        weakref.finalize(self, store.close)
        labels: list[int | str | None] = []
        spans: list[tuple[int, int]] = []
        reasons: dict[int, str] = {}
        try:
            for place, row in enumerate(kept.take(count)):
                labels.append(None if self._label is None else self._called(row[self._label]))
                try:
                    data = _bytes(row[self._image])
                except ImageError as error:
                    # It will be a failure of the run, with its reason, and not the end of it.
                    data, reasons[place] = b"", str(error)
                spans.append((store.tell(), len(data)))
                if store.tell() + len(data) > MOST_STREAMED_BYTES:
                    raise DataError(f"The first {place} pictures of {self._name} fill the disk; stream fewer.")
                store.write(data)
        except DataError:
            raise
        except Exception as error:  # see above
            raise DataError(f"The stream of {self._name} broke off: {_first_line(error)}") from error

        def read(place: int) -> bytes:
            if place in reasons:
                raise ImageError(reasons[place])
            start, size = spans[place]
            with self._lock:
                store.seek(start)
                return store.read(size)

        return labels, read


def _library() -> Any:
    try:
        import datasets
        from datasets import load_dataset  # noqa: F401 - a folder of this name can be imported too
    except ImportError as error:
        raise DataError("Sets of Hugging Face need the package datasets: pip install -r requirements-hf.txt") from error
    return datasets


def _folder(name: str) -> Path | None:
    """The folder that a name means; where a set of the hub has the same, the package takes the folder too.

    Raises:
        DataError: A revision of a folder.
    """
    path = Path(name).expanduser()
    if (name and path.is_dir()) or name.startswith(("/", ".", "~")):
        return path
    if "@" in name and Path(name.partition("@")[0]).is_dir():
        raise DataError(f"{name.partition('@')[0]} is a folder here, which has no revisions; leave out the @.")
    return None


def _count(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and 1 <= int(text) <= MOST_STREAMED):
        raise DataError(f"The option stream is a number of examples from 1 to {MOST_STREAMED}, not {text!r}.")
    return int(text)


def _resolved(name: str) -> tuple[str, str]:
    """A set of the hub and the commit that is meant.

    Raises:
        DataError: The hub does not know it, or cannot be asked.
    """
    repository, _, revision = name.partition("@")
    if not _REPOSITORY.fullmatch(repository):
        raise DataError(
            f"{repository!r} names no data set of the hub; write hf:organisation/name, or a path with / or ./."
        )
    if _COMMIT.fullmatch(revision):
        return repository, revision
    from huggingface_hub import HfApi, errors

    try:
        commit = HfApi().dataset_info(repository, revision=revision or None, timeout=30).sha
    except errors.GatedRepoError as error:
        raise DataError(
            f"{repository} is gated; accept its terms on its hub page and log in with `hf auth login`."
        ) from (error)
    except errors.RevisionNotFoundError as error:
        raise DataError(f"{repository} has no revision {revision!r}; check what follows the @.") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise DataError(f"{repository} does not exist on the hub or is private; check its spelling.") from error
    except Exception as error:  # the client's own exceptions differ between versions
        raise DataError(
            f"The hub cannot be asked which commit of {repository} is meant; name one after an @ that is in the cache."
        ) from error
    if commit is None:
        raise DataError(f"The hub does not say which commit of {repository} is meant; name one after an @.")
    return repository, commit


def _bytes(value: Any) -> bytes:
    """The file of an example's picture.

    Raises:
        ImageError: There is none, it is too large, or it cannot be read.
    """
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (None, None)
    if data is None and path is None:
        raise ImageError("The example has no picture.")
    if data is None:
        # A file beside the data, on this machine or where the stream comes from.
        from datasets.utils.file_utils import xopen

        try:
            with xopen(path, "rb") as file:
                data = file.read(MAX_BYTES + 1)
        except Exception as error:  # the file systems' own exceptions are many
            raise ImageError(f"'{str(path).rpartition('/')[2]}' cannot be read.") from error
    check_file_size(len(data), MAX_BYTES)
    return bytes(data)


def _name_of(value: Any, names: Sequence[int | str]) -> int | str | None:
    if value is None or value < 0:
        return None
    return names[value] if value < len(names) else int(value)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
