"""Pictures in a zip file, read in place: nothing of it is ever unpacked to disk."""

from __future__ import annotations

import hashlib
import lzma
import threading
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from salviz.datasets.pictures import Entry, PictureSet, label_in
from salviz.errors import DataError, ImageError
from salviz.images import SUFFIXES, Picture, decode
from salviz.images.decoding import MAX_BYTES

MAX_RATIO = 200
"""A file that unpacks to more than this many times its packed size is no photograph."""


MAX_FILES = 1_000_000
"""Files an archive may hold."""

_UNREADABLE = (
    OSError, EOFError, RuntimeError, ValueError, NotImplementedError, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
)  # fmt: skip


class ZipSet(PictureSet):
    """A zip file of class folders or of flat files, as `FolderSet` takes them.

    Files that are no picture by their name, hidden ones, links, and names that lead out of the archive are left out;
    files that unpack to more than `decoding.MAX_BYTES` or `MAX_RATIO` times their packed size cannot be opened.

    Args:
        path: Of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().resolve()
        self.id, self.title = f"zip:{self.path}", self.path.name
        try:
            self._file = zipfile.ZipFile(self.path)
        except FileNotFoundError as error:
            raise DataError(f"There is no file {path}; check its name.") from error
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{self.path.name} is no zip file, or it is damaged.") from error
        # One file object is read by whoever opens a picture.
        self._lock = threading.Lock()
        if len(self._file.infolist()) > MAX_FILES:
            raise DataError(f"{self.path.name} holds more than {MAX_FILES} files; name a folder instead.")
        members = [member for member in self._file.infolist() if _is_picture(member)]
        if not members:
            raise DataError(f"There is no picture in {self.path.name}.")
        self._members = sorted(members, key=lambda member: member.filename)
        self.entries = [Entry(member.filename, label_in(member.filename)) for member in self._members]
        names = {entry.name for entry in self.entries}
        if len(names) < len(self.entries):
            raise DataError(f"{self.path.name} holds two files of one name; pack it anew.")

    def open(self, place: int) -> Picture:
        """See the base."""
        member = self._members[place]
        return decode(self._bytes(member), name=member.filename, source="upload")

    def fingerprint(self, place: int) -> str:
        """Of the file's bytes."""
        return hashlib.blake2b(self._bytes(self._members[place]), digest_size=16).hexdigest()

    def _bytes(self, member: zipfile.ZipInfo) -> bytes:
        # The archive's own word on the size is not believed: reading stops at the bound.
        bound = min(MAX_BYTES, max(member.compress_size, 1) * MAX_RATIO)
        try:
            with self._lock, self._file.open(member) as file:
                data = file.read(bound + 1)
        except _UNREADABLE as error:
            reason = "is protected by a password" if member.flag_bits & 1 else "is damaged"
            raise ImageError(f"'{member.filename}' {reason}: pack it anew.") from error
        if len(data) > bound:
            raise ImageError(f"'{member.filename}' unpacks to more than a photograph takes.")
        return data


def _is_picture(member: zipfile.ZipInfo) -> bool:
    parts = PurePosixPath(member.filename).parts
    is_link = (member.external_attr >> 16) & 0o170000 == 0o120000
    is_inside = bool(parts) and not member.filename.startswith("/") and "\\" not in member.filename
    is_visible = all(not part.startswith(".") and part.isprintable() and ":" not in part for part in parts)
    is_system = parts[:1] == ("__MACOSX",)
    return (
        is_inside
        and is_visible
        and not is_link
        and not is_system
        and not member.is_dir()
        and member.filename.lower().endswith(SUFFIXES)
    )
