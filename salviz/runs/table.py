"""The rows of a run: one an image, model, method, metric and setting, in Parquet files that are whole or not there."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from salviz.errors import DataError
from salviz.plain import put

NONE = -1
"""Stands for a missing class."""


@dataclass(frozen=True, slots=True)
class Row:
    """One number of a run.

    Attributes:
        place: Of the image in the run's sample.
        image: Its name in the set.
        label: Its class, or `NONE`.
        prediction: Class predicted for the clean image, or `NONE` where the image could not be explained.
        confidence: Its probability; NaN where unknown.
        quantity: What was measured, such as `ssim` or `spearman_abs`.
        setting: Under what: the token of an augmentation, the name of a stage.
        kind: What kind of setting it is, such as `geometric`.
        value: NaN where undefined.
        outcome: Class predicted under the setting, or `NONE` where that is the same question for all settings.
        seconds: Wall time of the row's share of the explanation.
        error: Why there is no value; None where there is one.
    """

    place: int
    image: str
    label: int
    prediction: int = NONE
    confidence: float = float("nan")
    quantity: str = ""
    setting: str = ""
    kind: str = ""
    value: float = float("nan")
    outcome: int = NONE
    seconds: float = 0.0
    error: str | None = None


_TEXT = pa.dictionary(pa.int32(), pa.string())
_TYPES = {
    "place": pa.int32(), "image": pa.string(), "label": pa.int32(), "prediction": pa.int32(),
    "confidence": pa.float32(), "quantity": _TEXT, "setting": _TEXT, "kind": _TEXT, "value": pa.float64(),
    "outcome": pa.int32(), "seconds": pa.float32(), "error": pa.string(),
}  # fmt: skip
SCHEMA = pa.schema([("model", _TEXT), ("method", _TEXT), ("metric", _TEXT), *_TYPES.items()])
"""Columns of every file; numbers are null where undefined, classes `NONE` where there is none."""

COLUMNS = tuple(SCHEMA.names)


def table(model: str, method: str, metric: str, rows: Sequence[Row]) -> pa.Table:
    """Rows of one model, method and metric as a table of `SCHEMA`."""
    names = [one.name for one in fields(Row)]
    # `dataclasses.astuple` copies every value, which costs more than all the rest of a shard's writing.
    arrays: dict[str, Any] = {name: [getattr(row, name) for row in rows] for name in names}
    # Null, not NaN: a file's statistics leave NaN out, and DuckDB 2.0 concludes from them that there is none.
    for name in ("value", "confidence"):
        arrays[name] = [None if number != number else number for number in arrays[name]]
    for name, text in (("model", model), ("method", method), ("metric", metric)):
        arrays[name] = [text] * len(rows)
    return pa.Table.from_pydict({name: arrays[name] for name in COLUMNS}, schema=SCHEMA)


def write(path: Path, content: pa.Table) -> None:
    """Write a file beside its place, flush it to the disk, then rename it: nobody ever finds half of it.

    Raises:
        DataError: The disk is full or the folder cannot be written to.
    """

    def fill(file: BinaryIO) -> None:
        pq.write_table(content, file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())

    try:
        put(path, fill)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DataError(
            f"The run's folder cannot be written to ({reason}); make room and resume the run: what is written stays."
        ) from error


def scan(files: Sequence[Path]) -> duckdb.DuckDBPyConnection:
    """A connection whose view `rows` holds the rows of many files, of which no more is read than a query asks for.

    Args:
        files: None gives an empty view.
    """
    connection = duckdb.connect(":memory:")
    if files:
        connection.read_parquet([str(file) for file in files]).create_view("rows")
    else:
        connection.from_arrow(SCHEMA.empty_table()).create_view("rows")
    return connection


def digest(files: Sequence[Path]) -> str:
    """Digest of all rows, sorted, without the seconds: equal exactly for equal results.

    Args:
        files: Of a run, in any order.
    """
    state = hashlib.blake2b(digest_size=16)
    kept = ", ".join(f'"{name}"' for name in COLUMNS if name != "seconds")
    with scan(files) as connection:
        found = connection.execute(
            f"select {kept} from rows order by model, method, metric, place, quantity, setting, kind"  # noqa: S608
        )
        while batch := found.fetchmany(10_000):
            for row in batch:
                state.update(repr(row).encode())
    return state.hexdigest()
