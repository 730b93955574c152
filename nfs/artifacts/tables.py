"""Reading the tables of an artifact, whole or clip by clip."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nfs.artifacts.manifest import read_manifest
from nfs.artifacts.schemas import TABLES
from nfs.artifacts.shards import ClipRun, ShardIndex, is_shard, table_order
from nfs.artifacts.store import Store


def table_files(uri: str, name: str) -> list[str]:
    """Return the relative paths of a table's files, listed in the manifest, in row order."""
    manifest = read_manifest(uri)
    return table_order(f.path for f in manifest.files if f.path.startswith(f"{name}/"))


def iter_files(
    uri: str, name: str, columns: Sequence[str] | None = None
) -> Iterator[tuple[str, pa.Table]]:
    """Yield (relative path, table) for each file of a table (unit or shard), in row order."""
    store = Store(uri)
    for path in table_files(uri, name):
        with store.open_parquet(path) as parquet:
            yield path, parquet.read(columns=list(columns) if columns else None)


def iter_clips(
    uri: str, name: str, columns: Sequence[str] | None = None
) -> Iterator[tuple[str, pa.Table]]:
    """Yield (clip_id, rows of that clip) of a table, about one clip in memory at a time."""
    store = Store(uri)
    for place in clip_places(uri, name):
        yield place.clip_id, read_rows(store, place, columns)


def clip_places(uri: str, name: str) -> list[ClipRun]:
    """Return where the rows of each clip lie, in row order; a clip's rows are consecutive."""
    store, listed = Store(uri), [entry.path for entry in read_manifest(uri).files]
    places = list(ShardIndex(store, listed).runs(name))
    for path in table_order(p for p in listed if p.startswith(f"{name}/") and not is_shard(p)):
        places += unit_places(store, path)
    return places


def unit_places(store: Store, path: str) -> list[ClipRun]:
    """Return where the rows of each clip lie in the file of one unit."""
    with store.open_parquet(path) as parquet:
        clip_ids = parquet.read(columns=["clip_id"])["clip_id"].to_pylist()
    unit, places, row = PurePosixPath(path).stem, [], 0
    for clip_id, rows in groupby(clip_ids):
        count = sum(1 for _ in rows)
        places.append(ClipRun(unit, clip_id, path, row, count))
        row += count
    return places


def read_rows(store: Store, place: ClipRun, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the rows of a place; only the row groups that hold them are loaded."""
    stop = place.first_row + place.num_rows
    with store.open_parquet(place.path) as parquet:
        groups, skipped, row = [], 0, 0
        for group in range(parquet.num_row_groups):
            size = parquet.metadata.row_group(group).num_rows
            if row + size <= place.first_row:
                skipped += size
            elif row < stop:
                groups.append(group)
            row += size
        wanted = None if columns is None else list(dict.fromkeys(["clip_id", *columns]))
        table = parquet.read_row_groups(groups, columns=wanted)
    return table.slice(place.first_row - skipped, place.num_rows)


def read_clip(store: Store, path: str, clip_id: str, columns: Sequence[str]) -> pa.Table:
    """Read the rows of one clip from a unit file or shard, guided by the file's statistics."""
    with store.open_parquet(path) as parquet:
        groups = [g for g in range(parquet.num_row_groups) if _may_hold(parquet, g, clip_id)]
        wanted = list(dict.fromkeys(["clip_id", *columns]))
        table = parquet.read_row_groups(groups, columns=wanted)
    return table.filter(pc.equal(table["clip_id"], clip_id))


def _may_hold(parquet: pq.ParquetFile, group: int, clip_id: str) -> bool:
    facts = parquet.metadata.row_group(group).column(parquet.schema.names.index("clip_id"))
    limits = facts.statistics
    return limits is None or not limits.has_min_max or limits.min <= clip_id <= limits.max


def read_table(
    uri: str,
    name: str,
    columns: Sequence[str] | None = None,
    clip_ids: Sequence[str] | None = None,
) -> pa.Table:
    """Read a whole table, or the rows of some clips.

    Args:
        uri: Artifact directory, complete.
        name: Table name, a key of `schemas.TABLES`.
        columns: Columns to read; all by default.
        clip_ids: Clips to keep; all by default. Order follows the files.
    """
    keep = None if clip_ids is None else set(clip_ids)
    parts = [t for c, t in iter_clips(uri, name, columns) if keep is None or c in keep]
    if not parts:
        schema = TABLES[name]
        fields = [schema.field(c) for c in columns] if columns else list(schema)
        return pa.schema(fields).empty_table()
    table = pa.concat_tables(parts)
    return table.select(list(columns)) if columns else table
