"""The runs of a server: asked for by pages, made one a device by workers outside the server, told by their files.

Nothing about a run lives in a process: whoever reads its folder knows how it stands, a page of another server too.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from salviz import datasets
from salviz.errors import RequestError
from salviz.images import Picture
from salviz.plain import json_text, write_files
from salviz.runs.folder import RunFolder
from salviz.runs.measures import Item
from salviz.runs.presence import FAILURE, how_far, is_held, read_json
from salviz.runs.spec import Spec

VARIABLE = "SALVIZ_RUNS_DIR"
"""Environment variable: the folder that holds the runs of the Batch page."""

TRIES = 3
"""A run whose worker died so often without a word is not begun again by itself."""

_ASKED, _WANTED = "asked.json", "wanted.json"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,79}")

State = Literal["waiting", "running", "complete", "cancelled", "failed", "interrupted"]


@dataclass(frozen=True)
class Standing:
    """How a run stands.

    Attributes:
        name: Of the run.
        state: `waiting` for a worker, `running`, `complete`, `cancelled`, `failed`, or `interrupted`: begun and left.
        asked: When it was asked for, seconds since the epoch.
        device: It runs on.
        done: Explanations made, or pictures looked at before the first of them.
        total: Explanations of the plan; 0 where nothing is known yet.
        what: Is made now.
        rate: Explanations a second since the worker began; 0 where nothing is known yet.
        place: Runs before it in the queue.
        error: One sentence, once failed.
        is_changed: Whether it failed because code or weights are other ones now.
    """

    name: str
    state: State
    asked: float
    device: str
    done: int = 0
    total: int = 0
    what: str = ""
    rate: float = 0.0
    place: int = 0
    error: str = ""
    is_changed: bool = False

    @property
    def is_open(self) -> bool:
        """Whether it waits or runs."""
        return self.state in ("waiting", "running")

    @property
    def seconds_left(self) -> float | None:
        """How long it should still take, as far as that can be told."""
        return (self.total - self.done) / self.rate if self.rate > 0 else None


class Shelf:
    """A folder of runs.

    Args:
        root: Of the folder; where `SALVIZ_RUNS_DIR` points, or `.salviz/runs` in the home folder, where None.
    """

    def __init__(self, root: Path | str | None = None) -> None:
        chosen = root if root is not None else os.environ.get(VARIABLE) or Path.home() / ".salviz" / "runs"
        self.root = Path(chosen).expanduser()

    def folder(self, name: str) -> RunFolder:
        """The folder of a run.

        Raises:
            RequestError: There is none of this name.
        """
        if not _NAME.fullmatch(name) or not (self.root / name).is_dir():
            raise RequestError(f"There is no run {name!r} on this server.")
        return RunFolder(self.root / name)

    def names(self) -> list[str]:
        """All runs, the latest first."""
        return sorted(self._found(), key=lambda name: (-self._asked(name)["time"], name))

    def _found(self) -> list[str]:
        if not self.root.is_dir():
            return []
        return [path.name for path in self.root.iterdir() if _NAME.fullmatch(path.name) and _is_run(path)]

    def spec(self, name: str) -> Spec:
        """What a run was asked to do.

        Raises:
            RequestError: There is none of this name, or its files are damaged.
        """
        folder = self.folder(name)
        return folder.spec if folder.exists else Spec.from_dict(self._asked(name)["spec"])

    def open(self, name: str, place: int) -> Picture:
        """Open a picture of a run's sample, if it is still what it was.

        Raises:
            SalvizError: There is no such run or picture, or it cannot be read any more.
        """
        folder = self.folder(name)
        if not 0 <= place < len(folder.sample):
            raise RequestError(f"The run {name} has no picture {place}.")
        one = folder.sample[place]
        source = datasets.open_set(folder.data).source(one.name)
        return Item(place, one.name, None, one.fingerprint, source).open()

    def submit(self, spec: Spec, device: str) -> str:
        """Ask for a run; whoever asks for the same gets the same.

        Args:
            spec: What is asked.
            device: Of `classifiers.store.devices()`.

        Returns:
            The run's name. Somebody must see to it that a worker runs, see `worker.ensure`.

        Raises:
            RequestError: The folder cannot be written to.
        """
        text = json_text(spec.as_dict())
        digest = hashlib.blake2b(f"{text}|{device}".encode(), digest_size=4).hexdigest()
        words = re.sub(r"[^a-z0-9]+", "-", f"{spec.data.rpartition('/')[2]} {' '.join(spec.metrics)}".lower()).strip(
            "-"
        )
        name = f"{words[:40] or 'run'}-{digest}"
        if not (self.root / name / _ASKED).is_file():
            asked = {"spec": spec.as_dict(), "device": device, "time": time.time()}
            write_files(self.root / name, {_ASKED: json_text(asked, indent=2).encode()})
            self._want(name, device)
        elif self.standing(name).state not in ("complete", "waiting", "running"):
            self.resume(name)
        return name

    def resume(self, name: str, *, accepts_changes: bool = False) -> None:
        """Ask for what is missing of a run.

        Args:
            name: Of the run.
            accepts_changes: Whether what depends on code or weights that have changed is to be made anew.

        Raises:
            RequestError: There is none of this name, or its folder cannot be written to.
        """
        folder = self.folder(name)
        folder.go_on()
        (folder.path / FAILURE).unlink(missing_ok=True)
        self._want(name, str(self._asked(name)["device"]), accepts_changes=accepts_changes)

    def cancel(self, name: str) -> None:
        """Ask a run to stop, or take it out of the queue.

        Raises:
            RequestError: There is none of this name.
        """
        folder = self.folder(name)
        folder.cancel()
        if not is_held(folder.path):
            (folder.path / _WANTED).unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Delete a run and all it found.

        Raises:
            RequestError: There is none of this name, or somebody works on it.
        """
        import shutil

        folder = self.folder(name)
        if is_held(folder.path):
            raise RequestError(f"The run {name} is at work; cancel it first.")
        shutil.rmtree(folder.path, ignore_errors=True)

    def queue(self, device: str) -> list[str]:
        """Runs that wait for a device, the first asked for first."""
        waiting = []
        for name in self._found():
            wanted = read_json(self.root / name / _WANTED)
            if wanted and wanted["device"] == device:
                waiting.append((float(wanted["since"]), name))
        return [name for _, name in sorted(waiting)]

    def standing(self, name: str) -> Standing:
        """How a run stands.

        Raises:
            RequestError: There is none of this name.
        """
        folder, asked = self.folder(name), self._asked(name)
        common: dict[str, Any] = {"name": name, "asked": asked["time"], "device": str(asked["device"])}
        if is_held(folder.path):
            return Standing(state="running", **common, **how_far(folder.path))
        status = folder.status() if folder.exists else None
        if status is not None:
            common |= {"done": status.explained, "total": status.explanations}
        failure = read_json(folder.path / FAILURE)
        if failure:
            is_changed = bool(failure.get("is_changed"))
            return Standing(state="failed", **common, error=str(failure["error"]), is_changed=is_changed)
        if read_json(folder.path / _WANTED):
            # Its own place counts those before it, and the one at work.
            before = self.queue(str(asked["device"]))
            return Standing(state="waiting", **common, place=before.index(name) if name in before else 0)
        if status is not None and status.is_complete:
            return Standing(state="complete", **common)
        return Standing(state="cancelled" if folder.is_cancelled else "interrupted", **common)

    def _asked(self, name: str) -> dict[str, Any]:
        """What was asked, when and for which device; a run of the command line says less."""
        path = self.root / name
        found = read_json(path / _ASKED)
        if found is None:
            folder = RunFolder(path)
            return {"spec": folder.spec.as_dict(), "device": "cpu", "time": (path / "run.json").stat().st_mtime}
        return found

    def _want(
        self, name: str, device: str, tries: int = 0, since: float | None = None, *, accepts_changes: bool = False
    ) -> None:
        wanted = {
            "device": device, "since": time.time() if since is None else since, "tries": tries,
            "accepts_changes": accepts_changes,
        }  # fmt: skip
        write_files(self.root / name, {_WANTED: json_text(wanted).encode()})

    # For workers

    def begins(self, name: str) -> bool:
        """Note one more try at a run; False where too many came to nothing, which is then its failure."""
        wanted = read_json(self.root / name / _WANTED)
        if wanted is None:
            return False
        if wanted["tries"] >= TRIES:
            self.ended(name, error=f"Its worker ended without a word {TRIES} times; perhaps memory ran out. Resume it "
                       "with fewer methods, or on another machine.")  # fmt: skip
            return False
        self._want(
            name, wanted["device"], wanted["tries"] + 1, wanted["since"], accepts_changes=self.accepts_changes(name)
        )
        return True

    def accepts_changes(self, name: str) -> bool:
        """Whether whoever asked for a run wants what code or weights have changed made anew."""
        return bool((read_json(self.root / name / _WANTED) or {}).get("accepts_changes"))

    def ended(self, name: str, *, error: str = "", is_changed: bool = False) -> None:
        """Note that a run is over."""
        folder = self.root / name
        if error:
            write_files(folder, {FAILURE: json_text({"error": error, "is_changed": is_changed}).encode()})
        (folder / _WANTED).unlink(missing_ok=True)


def _is_run(path: Path) -> bool:
    return (path / _ASKED).is_file() or (path / "run.json").is_file()
