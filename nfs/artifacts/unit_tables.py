"""What the units of a stage have committed so far, before and after the manifest is written."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import PurePosixPath

import pyarrow as pa

from nfs.artifacts.compaction import compact
from nfs.artifacts.manifest import MANIFEST, read_manifest
from nfs.artifacts.shards import ClipRun, ShardIndex, is_shard
from nfs.artifacts.store import Store
from nfs.artifacts.tables import read_rows, unit_places


class UnitTables:
    """Tables of an artifact by unit, in their own files or in shards; a view of one moment.

    Args:
        uri: Artifact directory; it need not be complete.
    """

    def __init__(self, uri: str):
        self.uri, self.store = uri, Store(uri)
        listed = []
        if self.store.exists(MANIFEST):
            listed = [entry.path for entry in read_manifest(uri).files]
        self._index = ShardIndex(self.store, listed)
        self._files: dict[str, dict[str, str]] = {}
        self._runs: dict[str, dict[str, list[ClipRun]]] = {}

    def keys(self, table: str) -> set[str]:
        """Return the keys of the units that have rows in a table."""
        return self._own_files(table).keys() | self._merged(table).keys()

    def read(self, table: str, key: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows of one unit.

        Raises:
            KeyError: If it has none.
        """
        merged = self._merged(table).get(key)
        if merged is None:
            with self.store.open_parquet(self._own_files(table)[key]) as parquet:
                return parquet.read(columns=list(columns) if columns else None)
        rows = pa.concat_tables([read_rows(self.store, run, columns) for run in merged])
        return rows.select(list(columns)) if columns else rows

    def runs(self, table: str, key: str) -> list[ClipRun]:
        """Return where the clips of one unit lie."""
        merged = self._merged(table).get(key)
        return merged or unit_places(self.store, self._own_files(table)[key])

    def clips(
        self, table: str, columns: Sequence[str] | None = None
    ) -> Iterator[tuple[str, pa.Table]]:
        """Yield (clip_id, its rows) of all units by key, about one clip in memory at a time."""
        for key in sorted(self.keys(table)):
            for run in self.runs(table, key):
                yield run.clip_id, read_rows(self.store, run, columns)

    def merged_keys(self, table: str) -> set[str]:
        """Return the keys of the units whose rows lie in shards."""
        return set(self._merged(table))

    def own_file(self, table: str, key: str) -> str | None:
        """Return the path of a unit's own file; None when it lies in a shard or has none."""
        return None if key in self._merged(table) else self._own_files(table).get(key)

    def _own_files(self, table: str) -> dict[str, str]:
        if table not in self._files:
            paths = [p for p in self.store.list(table) if not is_shard(p)]
            self._files[table] = {PurePosixPath(p).stem: p for p in paths}
        return self._files[table]

    def _merged(self, table: str) -> dict[str, list[ClipRun]]:
        if table not in self._runs:
            found = self._runs[table] = {}
            for run in self._index.runs(table):
                found.setdefault(run.unit, []).append(run)
        return self._runs[table]


def drop_units(uri: str, keys: Collection[str], tables: Sequence[str]) -> None:
    """Delete units; an artifact with some of them in shards is compacted without them."""
    found, gone = UnitTables(uri), frozenset(keys)
    if any(not gone.isdisjoint(found.merged_keys(table)) for table in tables):
        compact(uri, drop=gone)
    for table in tables:
        for key in gone:
            found.store.delete(f"{table}/{key}.parquet")
