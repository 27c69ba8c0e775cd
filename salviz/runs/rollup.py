"""What a run's rows come to, an image and a setting at a time, written once: pages read it and never the rows.

Two tables, made from the rows by DuckDB without holding them in memory. `images`: what one image adds under a model,
method, metric and quantity. `settings`: what all images together give under one setting; magnitudes that were drawn
anew for each image share a row with their neighbours.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import duckdb
import pyarrow as pa

from salviz.errors import DataError
from salviz.plain import json_text, place, write_files
from salviz.runs import table
from salviz.runs.folder import RunFolder
from salviz.runs.plan import Shard
from salviz.transforms import AUGMENTATIONS

FOLDER, IMAGES, SETTINGS, ABOUT = "tables", "images.parquet", "settings.parquet", "about.json"

BINS = 10
"""Rows an augmentation's magnitudes share, on either side of zero."""

_IMAGES = """
copy (
    with judged as (
        select *, value is null as is_undefined,
            metric = 'cose' and prediction = case when label = -1 then prediction else label end as is_right,
            outcome = case when label = -1 then prediction else label end as stays_right,
            kind in ('model', 'untrained', 'checkpoint') as is_by_model
        from rows where error is null
    ), chosen as (
        select *, is_right and stays_right and not is_by_model as stays, is_right and not stays_right as turns
        from judged
    )
    select model, method, metric, quantity, place, any_value(image) as image, any_value(label) as label,
        any_value(prediction) as prediction, any_value(confidence) as confidence, sum(seconds) as seconds,
        coalesce(sum(value) filter (stays and not is_undefined), 0) as kept_sum,
        count(*) filter (stays and not is_undefined) as kept,
        coalesce(sum(value) filter (turns and not is_undefined), 0) as turned_sum,
        count(*) filter (turns and not is_undefined) as turned,
        count(*) filter (stays and is_undefined) as kept_undefined,
        count(*) filter (turns and is_undefined) as turned_undefined,
        coalesce(sum(value) filter (not is_undefined and kind in ('geometric', 'photometric')), 0) as augmented_sum,
        count(value) filter (kind in ('geometric', 'photometric')) as augmented,
        coalesce(sum(value) filter (not is_undefined and kind != 'itself'), 0) as value_sum,
        count(*) filter (not is_undefined and kind != 'itself') as values_,
        count(*) filter (is_undefined and kind != 'itself') as undefined
    from chosen group by model, method, metric, quantity, place
) to '{path}' (format parquet, compression zstd)
"""

_SETTINGS = """
copy (
    with split as (
        select *, split_part(split_part(setting, ' #', 1), ':', 1) as name,
            try_cast(split_part(setting, ':', 2) as double) as magnitude
        from rows where error is null
    ), binned as (
        select split.*, case when widths.width is null then null else width * round(magnitude / width) end as level
        from split left join widths on split.name = widths.name
    )
    select model, method, metric, quantity, kind, name, level, avg(value) as value,
        count(value) as values_, count(*) - count(value) as undefined,
        avg((outcome = case when label = -1 then prediction else label end)::int) as kept
    from binned group by model, method, metric, quantity, kind, name, level
) to '{path}' (format parquet, compression zstd)
"""


def key(shards: Sequence[Shard], there: set[str]) -> str:
    """What tables are of: the shards of the plan that are there, and what is asked of them."""
    state = hashlib.blake2b(f"{_IMAGES}{_SETTINGS}".encode(), digest_size=16)
    for shard in shards:
        if shard.key in there:
            state.update(shard.key.encode())
    return state.hexdigest()


def roll(folder: RunFolder) -> str:
    """Make the tables of what is there, unless they are there already.

    Args:
        folder: Of a run.

    Returns:
        Their key.

    Raises:
        DataError: The folder cannot be written to.
    """
    now = key(folder.plan, folder.present())
    if known(folder) == now:
        return now
    with table.scan(folder.files()) as connection:
        connection.from_arrow(_widths()).create_view("widths")
        for name, query in ((IMAGES, _IMAGES), (SETTINGS, _SETTINGS)):
            _copy(connection, query, folder.path / FOLDER / name)
    write_files(folder.path / FOLDER, {ABOUT: json_text({"key": now}).encode()})
    return now


def known(folder: RunFolder) -> str | None:
    """Key of the tables that are there, or None."""
    try:
        return str(json.loads((folder.path / FOLDER / ABOUT).read_text(encoding="utf-8"))["key"])
    except (OSError, ValueError, KeyError):
        return None


def connect(folder: RunFolder) -> duckdb.DuckDBPyConnection:
    """A connection whose views `images` and `settings` are a run's tables, made where they are missing or old."""
    roll(folder)
    connection = duckdb.connect(":memory:")
    for name, file in (("images", IMAGES), ("settings", SETTINGS)):
        connection.read_parquet(str(folder.path / FOLDER / file)).create_view(name)
    return connection


def _widths() -> pa.Table:
    cards = [card for card in AUGMENTATIONS.values() if card.has_magnitude]
    return pa.table({"name": [card.id for card in cards], "width": [card.levels[-1] / BINS for card in cards]})


def _copy(connection: duckdb.DuckDBPyConnection, query: str, path: Path) -> None:
    """Write what a query gives beside its place and put it there whole."""
    path.parent.mkdir(exist_ok=True)
    try:
        place(path, lambda beside: connection.execute(query.format(path=str(beside).replace("'", "''"))))
    except (OSError, duckdb.IOException) as error:
        raise DataError(f"The run's folder cannot be written to ({error}); make room and look again.") from error
