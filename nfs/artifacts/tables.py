"""Reading the tables of an artifact, whole or clip by clip."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from nfs.artifacts.manifest import read_manifest
from nfs.artifacts.schemas import TABLES
from nfs.artifacts.store import Store


def table_files(uri: str, name: str) -> list[str]:
    """Return the relative paths of a table's files, listed in the manifest, sorted."""
    manifest = read_manifest(uri)
    return sorted(f.path for f in manifest.files if f.path.startswith(f"{name}/"))


def iter_files(
    uri: str, name: str, columns: Sequence[str] | None = None
) -> Iterator[tuple[str, pa.Table]]:
    """Yield (relative path, table) for each unit file of a table, in sorted order."""
    store = Store(uri)
    for path in table_files(uri, name):
        with store.open_parquet(path) as parquet:
            yield path, parquet.read(columns=list(columns) if columns else None)


def iter_clips(
    uri: str, name: str, columns: Sequence[str] | None = None
) -> Iterator[tuple[str, pa.Table]]:
    """Yield (clip_id, rows of that clip) of a table, one unit file in memory at a time."""
    wanted = None if columns is None else list(dict.fromkeys(["clip_id", *columns]))
    for _, table in iter_files(uri, name, wanted):
        for clip_id in dict.fromkeys(table["clip_id"].to_pylist()):
            rows = table.filter(pc.equal(table["clip_id"], clip_id))
            yield clip_id, rows


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
