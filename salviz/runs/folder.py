"""A run's folder: what was asked, the sample, the plan, the shards that are there, and a log."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from salviz.errors import RequestError
from salviz.plain import json_text, write_files
from salviz.runs import table
from salviz.runs.plan import Shard
from salviz.runs.spec import Spec

ABOUT, SAMPLE, PLAN, SCORES, LOG, CANCEL = "run.json", "sample.parquet", "plan.parquet", "scores", "log.jsonl", "cancel"
MAPS, CLASSES = "maps", "classes.json"

_STALE_SECONDS = 3600.0


@dataclass(frozen=True)
class Sampled:
    """A picture of the sample, as the run's folder holds it.

    Attributes:
        name: In the set.
        label: As the set calls its class; a number, an id or a name as text, or None.
        is_number: Whether the label is a number.
        fingerprint: Of its content when the run began; empty where it could not be read.
    """

    name: str
    label: str | None
    is_number: bool
    fingerprint: str

    @property
    def given(self) -> int | str | None:
        """The label as the set had it."""
        return int(self.label) if self.is_number and self.label is not None else self.label


@dataclass(frozen=True)
class Status:
    """How far a run is.

    Attributes:
        shards: Shards of the plan.
        done: Those that are there.
        explanations: Pictures of all shards together, a method, model and metric each.
        explained: Those that are there.
        is_cancelled: Whether it was asked to stop.
    """

    shards: int
    done: int
    explanations: int
    explained: int
    is_cancelled: bool

    @property
    def is_complete(self) -> bool:
        """Whether every shard is there."""
        return self.done == self.shards


class RunFolder:
    """A run's folder; what is read is remembered.

    Args:
        path: Of the folder.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).expanduser()

    @classmethod
    def existing(cls, path: Path | str) -> RunFolder:
        """The folder of a run that was begun.

        Raises:
            RequestError: There is no run, or it is damaged.
        """
        folder = cls(path)
        _ = folder.about
        return folder

    @property
    def exists(self) -> bool:
        """Whether a run was begun here."""
        return (self.path / ABOUT).is_file()

    @cached_property
    def about(self) -> dict[str, Any]:
        """What `run.json` holds: spec, versions, digests, machine.

        Raises:
            RequestError: There is no run here, or its file is damaged.
        """
        try:
            found: dict[str, Any] = json.loads((self.path / ABOUT).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RequestError(f"There is no run in '{self.path}'.") from None
        except (OSError, ValueError) as error:
            raise RequestError(f"'{self.path / ABOUT}' is damaged; begin the run again.") from error
        return found

    @cached_property
    def spec(self) -> Spec:
        """What was asked."""
        return Spec.from_dict(self.about["spec"])

    @property
    def data(self) -> str:
        """Name of the image set as it was when the run began: with the revision, where it has revisions."""
        return str(self.about["data"])

    @cached_property
    def sample(self) -> list[Sampled]:
        """The pictures, in their order."""
        return [Sampled(**row) for row in self._read(SAMPLE)]

    @cached_property
    def plan(self) -> list[Shard]:
        """The shards, in the order in which they are made."""
        return [Shard(**row) for row in self._read(PLAN)]

    def _read(self, name: str) -> list[dict[str, Any]]:
        try:
            rows: list[dict[str, Any]] = pq.read_table(self.path / name).to_pylist()
        except (OSError, pa.ArrowInvalid) as error:
            raise RequestError(f"'{self.path / name}' is missing or damaged; begin the run again.") from error
        return rows

    def class_name(self, model: str, index: int) -> str:
        """Short name of a class of the sample's labels, as the model calls it; its number where that is not known."""
        return self._classes.get(model, {}).get(str(index), f"class {index}")

    @cached_property
    def _classes(self) -> dict[str, dict[str, str]]:
        try:
            found: dict[str, dict[str, str]] = json.loads((self.path / CLASSES).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            # Runs of earlier versions have no names; a run is as good without.
            return {}
        return found

    def begin(
        self,
        spec: Spec,
        sample: Sequence[Sampled],
        plan: Sequence[Shard],
        digests: Mapping[str, Any],
        classes: Mapping[str, Mapping[int, str]],
    ) -> None:
        """Write down what is asked; shards that are there already and belong to it will be used.

        Args:
            spec: What is asked.
            sample: The pictures.
            plan: The shards.
            digests: Of code, weights and data, for `run.json`.
            classes: Short names of the sample's labels, by model.

        Raises:
            RequestError: The folder cannot be written to.
        """
        for name in ("about", "spec", "sample", "plan", "_classes"):
            self.__dict__.pop(name, None)
        about = {
            "spec": spec.as_dict(),
            **digests,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": {
                "system": platform.platform(), "processor": platform.machine(), "cpus": os.cpu_count(),
                "python": platform.python_version(),
            },
        }  # fmt: skip
        # Only then is there a run: its plan must be there before anybody reads of it.
        write_files(self.path, {})
        (self.path / SCORES).mkdir(exist_ok=True)
        for name, kind, rows in ((SAMPLE, Sampled, sample), (PLAN, Shard, plan)):
            columns = {one: [getattr(row, one) for row in rows] for one in kind.__dataclass_fields__}
            table.write(self.path / name, pa.table(columns))
        names = {model: {str(index): name for index, name in known.items()} for model, known in classes.items()}
        write_files(self.path, {CLASSES: json_text(names).encode()})
        write_files(self.path, {ABOUT: (json_text(about, indent=2) + "\n").encode()})

    def file(self, shard: Shard) -> Path:
        """Where the rows of a shard are or will be."""
        return self.path / SCORES / f"{shard.key}.parquet"

    def present(self) -> set[str]:
        """Keys of all shards that are there, of whatever spec."""
        return {path.stem for path in (self.path / SCORES).glob("[!.]*.parquet")}

    def sweep(self) -> None:
        """Remove what a killed worker left half written; nobody writes a file for an hour."""
        for path in (self.path / SCORES).glob(".*"):
            try:
                if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                    path.unlink()
            except FileNotFoundError:
                # Its worker lives, and has just put it in its place.
                continue

    def files(self) -> list[Path]:
        """The files of the shards of the plan that are there."""
        there = self.present()
        return [self.file(shard) for shard in self.plan if shard.key in there]

    def status(self) -> Status:
        """How far the run is."""
        there = self.present()
        done = [shard.count for shard in self.plan if shard.key in there]
        total = sum(shard.count for shard in self.plan)
        return Status(len(self.plan), len(done), total, sum(done), self.is_cancelled)

    def digest(self) -> str:
        """Digest of all rows; equal exactly for equal results."""
        return table.digest(self.files())

    def cancel(self) -> None:
        """Ask whoever works on the run to stop."""
        (self.path / CANCEL).touch()

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody asked it to stop."""
        return (self.path / CANCEL).exists()

    def go_on(self) -> None:
        """Take back a request to stop."""
        (self.path / CANCEL).unlink(missing_ok=True)

    def note(self, what: str, **values: Any) -> None:
        """Add a line to the log.

        Args:
            what: Happened.
            values: Plain types.
        """
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "what": what, **values}
        # One write of one short line: lines of several workers do not mix.
        with (self.path / LOG).open("a", encoding="utf-8") as file:
            file.write(json_text(line) + "\n")
