"""A run kept a second time under a URL, such as `s3://…`: what is there already is fetched and not made again.

The run itself lives in its folder, which is all that computing and reading know of; the store holds the same files
under the same names. A shard's name says everything its numbers depend on, so both sides may only ever lack one.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any, TypeVar

from salviz.errors import DataError, RequestError
from salviz.plain import write_files
from salviz.runs.folder import ABOUT, MAPS, PLAN, SAMPLE, SCORES, RunFolder
from salviz.runs.plan import Shard

Found = TypeVar("Found")


class Store:
    """The files of a run under a URL.

    Args:
        url: What fsspec opens: `s3://bucket/run`, `gs://…`, `file:///shared/run`, `memory://run`, or a path.

    Raises:
        RequestError: fsspec, or what it needs for such a URL, is not installed; or there is no such kind of URL.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            from fsspec.core import url_to_fs
        except ImportError as error:
            raise RequestError("A store needs fsspec: pip install -r requirements-ray.txt.") from error
        try:
            self._files, root = url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise RequestError(f"The store '{url}' cannot be opened: {error}.") from error
        self._root = str(root).rstrip("/")

    def about(self) -> dict[str, Any] | None:
        """What the store's `run.json` holds; None where no run is there yet.

        Raises:
            DataError: The store cannot be read, or the file is damaged.
        """
        content = self._read(ABOUT)
        if content is None:
            return None
        try:
            found: dict[str, Any] = json.loads(content)
        except ValueError as error:
            raise DataError(f"{ABOUT} in '{self.url}' is damaged; name another store.") from error
        return found

    def restore(self, folder: RunFolder) -> None:
        """Bring a run that is in the store alone to a folder; its shards follow with `meet`.

        Args:
            folder: Where nothing is yet.

        Raises:
            RequestError: There is no run in the store, or the folder cannot be written to.
            DataError: The store cannot be read.
        """
        # The last of them makes it a run.
        contents = {name: self._read(name) for name in (SAMPLE, PLAN, ABOUT)}
        found = {name: content for name, content in contents.items() if content is not None}
        if len(found) < len(contents):
            raise RequestError(f"There is no run in '{folder.path}', and none in '{self.url}'.")
        write_files(folder.path / SCORES, {})
        write_files(folder.path, found)

    def meet(self, folder: RunFolder) -> None:
        """Bring shards of the plan that are on one side only to the other, and what the run is to the store.

        Args:
            folder: Of a run that was begun.

        Raises:
            DataError: The store cannot be read or written to.
            RequestError: The folder cannot be written to.
        """
        for name in (SAMPLE, PLAN, ABOUT):
            self._write(name, (folder.path / name).read_bytes())
        here, there = folder.present(), self._present()
        for shard in folder.plan:
            if shard.key in here - there:
                self.send(folder, shard)
            elif shard.key in there - here:
                for name in _names(shard):
                    content = self._read(name)
                    if content is not None:
                        path = folder.path / name
                        write_files(path.parent, {path.name: content})

    def send(self, folder: RunFolder, shard: Shard) -> None:
        """Bring a shard to the store.

        Args:
            folder: Where it is.
            shard: Of its plan.

        Raises:
            DataError: The store cannot be written to; the shard stays where it is.
        """
        for name in _names(shard):
            if (folder.path / name).is_file():
                self._write(name, (folder.path / name).read_bytes())

    def _present(self) -> set[str]:
        def listed() -> set[str]:
            # Others write there, and fsspec remembers what it saw.
            self._files.invalidate_cache()
            names = [PurePosixPath(path) for path in self._files.ls(f"{self._root}/{SCORES}", detail=False)]
            return {name.stem for name in names if name.suffix == ".parquet" and not name.name.startswith(".")}

        return self._tried(listed, "read") or set()

    def _read(self, name: str) -> bytes | None:
        def read() -> bytes:
            content: bytes = self._files.cat_file(f"{self._root}/{name}")
            return content

        return self._tried(read, "read")

    def _write(self, name: str, content: bytes) -> None:
        """Write beside its place and move it there: not every kind of store puts a file there whole or not at all."""
        path = PurePosixPath(f"{self._root}/{name}")
        beside = str(path.with_name(f".{path.name}.{secrets.token_hex(4)}"))

        def write() -> bool:
            self._files.makedirs(str(path.parent), exist_ok=True)
            self._files.pipe_file(beside, content)
            self._files.mv(beside, str(path))
            return True

        if self._tried(write, "written to") is None:
            raise DataError(f"The store '{self.url}' lost a file that was just written; resume the run.")

    def _tried(self, act: Callable[[], Found], what: str) -> Found | None:
        """What an act gives; None where a file is not there."""
        try:
            return act()
        except FileNotFoundError:
            return None
        except Exception as error:
            # Every kind of store has errors of its own.
            raise DataError(
                f"The store '{self.url}' cannot be {what} ({type(error).__name__}: {error}); what the run's folder "
                "holds stays."
            ) from error


def _names(shard: Shard) -> tuple[str, str]:
    """The files of a shard: its maps first, where it keeps any, as its rows say that it is there."""
    return f"{MAPS}/{shard.key}.safetensors", f"{SCORES}/{shard.key}.parquet"
