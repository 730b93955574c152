"""Merging the unit files of an artifact into shards.

Everything is written beside what is there; the new manifest switches from the one to the other in
a single write, and only then are the merged files deleted. Rows keep their order, so an artifact
keeps its id and a training that was cut off continues on the same items.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nfs.artifacts.manifest import MANIFEST, FileEntry, Manifest, file_entry, new_id, read_manifest
from nfs.artifacts.shards import (
    INDEX_FOLDER,
    INDEX_SCHEMA,
    ClipRun,
    ShardIndex,
    discard_leftovers,
    is_shard,
    shard_number,
    shard_path,
    table_order,
)
from nfs.artifacts.store import Store
from nfs.errors import ArtifactError

MERGED_TABLES = {"clips": ("clips", "frames", "audio", "faces"), "fits": ("fits",)}
"""Tables by kind of artifact; other kinds are read by the names of their files."""
SHARD_MB = 128
# Row groups are what readers load at once. Small ones are joined up to this size (uncompressed).
_ROW_GROUP_BYTES = 1 << 20


@dataclass(frozen=True)
class Compaction:
    """What was done: files of tables before and after, bytes written."""

    files_before: int
    files_after: int
    bytes_written: int


def compact(
    uri: str, *, shard_mb: float = SHARD_MB, drop: Collection[str] = frozenset()
) -> Compaction:
    """Merge unit files into shards of about `shard_mb`; killed at any time, nothing is lost.

    Memory holds about one row group. A process that opened the artifact before and still reads the
    merged files fails with "missing": compact when nobody reads.

    Args:
        uri: Complete artifact of kind `clips` or `fits`.
        shard_mb: Size (10^6 bytes) at which a shard is closed. Shards from half of it on are kept.
        drop: Keys of units to leave out, whose sources are gone. The artifact gets another id.

    Raises:
        ArtifactError: If the artifact is not complete, or of another kind.
    """
    manifest, store = read_manifest(uri), Store(uri)
    if manifest.kind not in MERGED_TABLES:
        raise ArtifactError(f"{uri}: holds {manifest.kind!r}; only clips and fits are compacted")
    listed = [entry.path for entry in manifest.files]
    discard_leftovers(store, listed, store.list(recursive=True))
    index = ShardIndex(store, listed)
    entries = {entry.path: entry for entry in manifest.files}
    runs: list[tuple[str, ClipRun]] = []
    old: set[str] = set()
    new: list[FileEntry] = []
    before = after = 0
    for table in MERGED_TABLES[manifest.kind]:
        paths = table_order(p for p in entries if p.startswith(f"{table}/"))
        before += len(paths)
        known = _runs_by_path(index, table)
        plan = _plan([entries[p] for p in paths], known, shard_mb * 1e6, drop)
        for number, sources in plan:
            if number is None:  # a shard that stays
                runs += [(table, run) for run in known[sources[0].path]]
                after += 1
                continue
            target = shard_path(table, number, _digest(sources, drop))
            merged = _merge(store, sources, target, known, drop)
            old |= {entry.path for entry in sources}
            if merged:
                runs += [(table, run) for run in merged]
                new.append(file_entry(store, target))
                after += 1
    if not old:
        return Compaction(before, after, 0)
    if runs:
        new.append(_write_index(store, runs))
    old |= set(index.paths)
    files = [entry for entry in manifest.files if entry.path not in old] + new
    _switch(store, manifest, files, new_id(manifest.kind) if drop else manifest.id)
    for path in sorted(old - {entry.path for entry in new}):
        store.delete(path)
    return Compaction(before, after, sum(entry.bytes for entry in new))


def _plan(
    entries: Sequence[FileEntry],
    known: dict[str, list[ClipRun]],
    shard_bytes: float,
    drop: Collection[str],
) -> Iterator[tuple[int | None, list[FileEntry]]]:
    """Yield (number of the new shard, its sources) in order; number None: a shard that stays."""
    number = max((shard_number(e.path) for e in entries if is_shard(e.path)), default=-1) + 1
    group: list[FileEntry] = []

    def close() -> Iterator[tuple[int | None, list[FileEntry]]]:
        nonlocal number, group
        if not group:
            return
        if len(group) == 1 and is_shard(group[0].path) and not touched(group[0]):
            yield None, group
        elif is_shard(group[0].path):
            yield shard_number(group[0].path), group
        else:
            yield number, group
            number += 1
        group = []

    def touched(entry: FileEntry) -> bool:
        return bool(drop) and any(run.unit in drop for run in known.get(entry.path, ()))

    for entry in entries:
        if is_shard(entry.path) and entry.bytes >= shard_bytes / 2 and not touched(entry):
            yield from close()
            yield None, [entry]
            continue
        group.append(entry)
        if sum(e.bytes for e in group) >= shard_bytes:
            yield from close()
    yield from close()


def _merge(
    store: Store,
    sources: Sequence[FileEntry],
    target: str,
    known: dict[str, list[ClipRun]],
    drop: Collection[str],
) -> list[ClipRun]:
    """Write the rows of the sources as one file and return whose they are; [] if none are left."""
    schemas = []
    for entry in sources:
        with store.open_parquet(entry.path) as parquet:
            schemas.append(parquet.schema_arrow)
    schema = pa.unify_schemas(schemas)
    runs: list[ClipRun] = []
    row = 0
    with (
        store.open_output(target) as stream,
        pq.ParquetWriter(stream, schema, compression="zstd") as writer,
    ):
        for tables, units in _row_groups(store, sources, known, drop):
            table = pa.concat_tables([schema.empty_table(), *tables], promote_options="default")
            writer.write_table(table, row_group_size=max(len(table), 1))
            for unit, clip_id in zip(units, table["clip_id"].to_pylist(), strict=True):
                last = runs[-1] if runs else None
                if last is not None and (last.unit, last.clip_id) == (unit, clip_id):
                    runs[-1] = ClipRun(unit, clip_id, target, last.first_row, last.num_rows + 1)
                else:
                    runs.append(ClipRun(unit, clip_id, target, row, 1))
                row += 1
    if not runs:
        store.delete(target)
    return runs


def _row_groups(
    store: Store,
    sources: Sequence[FileEntry],
    known: dict[str, list[ClipRun]],
    drop: Collection[str],
) -> Iterator[tuple[list[pa.Table], list[str]]]:
    """Yield rows of about a row group's size with the unit of each row."""
    tables: list[pa.Table] = []
    units: list[str] = []
    for entry in sources:
        with store.open_parquet(entry.path) as parquet:
            owners = _owners(entry.path, known, parquet.metadata.num_rows)
            first = 0
            for group in range(parquet.num_row_groups):
                table = parquet.read_row_group(group)
                mine = owners[first : first + len(table)]
                first += len(table)
                keep = np.array([unit not in drop for unit in mine], bool)
                if not keep.all():
                    table = table.filter(pa.array(keep))
                if len(table):
                    tables.append(table)
                    units += [unit for unit, kept in zip(mine, keep, strict=True) if kept]
                if sum(part.nbytes for part in tables) >= _ROW_GROUP_BYTES:
                    yield tables, units
                    tables, units = [], []
    if tables:
        yield tables, units


def _owners(path: str, known: dict[str, list[ClipRun]], num_rows: int) -> list[str]:
    """Return the unit of each row of a file."""
    if not is_shard(path):
        return [PurePosixPath(path).stem] * num_rows
    owners = [run.unit for run in known[path] for _ in range(run.num_rows)]
    if len(owners) != num_rows:
        raise ArtifactError(f"{path}: {num_rows} rows, the index knows {len(owners)}")
    return owners


def _runs_by_path(index: ShardIndex, table: str) -> dict[str, list[ClipRun]]:
    found: dict[str, list[ClipRun]] = {}
    for run in index.runs(table):
        found.setdefault(run.path, []).append(run)
    return found


def _digest(sources: Sequence[FileEntry], drop: Collection[str]) -> str:
    text = "|".join([*(f"{e.path} {e.sha256}" for e in sources), *sorted(drop)])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _write_index(store: Store, runs: Sequence[tuple[str, ClipRun]]) -> FileEntry:
    rows = [{"table": table, **vars(run)} for table, run in runs]
    table = pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)
    digest = hashlib.sha256("|".join(sorted({run.path for _, run in runs})).encode())
    path = f"{INDEX_FOLDER}/{digest.hexdigest()[:12]}.parquet"
    store.write_table(path, table, row_group_size=1 << 16)
    return file_entry(store, path)


def _switch(store: Store, manifest: Manifest, files: Sequence[FileEntry], artifact: str) -> None:
    ordered = sorted(files, key=lambda entry: entry.path)
    changed = Manifest.model_validate(
        {**manifest.model_dump(), "id": artifact, "files": [e.model_dump() for e in ordered]}
    )
    store.write_bytes(MANIFEST, changed.model_dump_json(indent=1).encode())
