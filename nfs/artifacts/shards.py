"""Shards: unit files merged into larger ones, and the index that says which rows are whose.

  <table>/shard-<number>-<digest>.parquet   rows of many units, in the order of the units
  index/<digest>.parquet                    where each clip of each unit lies in the shards

Only shards and the index that `manifest.json` lists count: a compaction that was killed leaves
files that nobody reads and that the next writer deletes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc

from nfs.artifacts.store import Store

INDEX_FOLDER = "index"
_SHARD_PREFIX = "shard-"
INDEX_SCHEMA = pa.schema(
    [
        ("table", pa.string()),
        ("unit", pa.string()),
        ("clip_id", pa.string()),
        ("path", pa.string()),
        ("first_row", pa.int64()),
        ("num_rows", pa.int64()),
    ]
)


@dataclass(frozen=True)
class ClipRun:
    """Consecutive rows of one clip in a file.

    `unit` is the key of the unit of work that wrote them.
    """

    unit: str
    clip_id: str
    path: str
    first_row: int
    num_rows: int


class ShardIndex:
    """The index of an artifact; empty when it was never compacted.

    Args:
        store: Artifact directory.
        listed: Paths in its manifest.
    """

    def __init__(self, store: Store, listed: Iterable[str]):
        self.paths = sorted(p for p in listed if p.startswith(f"{INDEX_FOLDER}/"))
        parts = []
        for path in self.paths:
            with store.open_parquet(path) as parquet:
                parts.append(parquet.read())
        self._rows = pa.concat_tables(parts) if parts else INDEX_SCHEMA.empty_table()

    def units(self, table: str) -> set[str]:
        """Return the keys of the units of a table that lie in shards."""
        return set(pc.unique(self._of(table)["unit"]).to_pylist())

    def runs(self, table: str) -> Iterator[ClipRun]:
        """Yield the rows of a table's clips in the order of the table."""
        for row in self._of(table).to_pylist():
            yield ClipRun(**{name: row[name] for name in row if name != "table"})

    def _of(self, table: str) -> pa.Table:
        return self._rows.filter(pc.equal(self._rows["table"], table))


def is_shard(path: str) -> bool:
    """Return whether a file is a shard rather than the file of one unit."""
    return PurePosixPath(path).name.startswith(_SHARD_PREFIX)


def shard_path(table: str, number: int, digest: str) -> str:
    """Return the path of a shard."""
    return f"{table}/{_SHARD_PREFIX}{number:06d}-{digest}.parquet"


def shard_number(path: str) -> int:
    """Return the place of a shard among those of its table."""
    return int(PurePosixPath(path).name.removeprefix(_SHARD_PREFIX).split("-")[0])


def table_order(paths: Iterable[str]) -> list[str]:
    """Return files of a table in the order of its rows: shards, then units by key.

    New units come after the shards and compaction appends, so rows never change places.
    """
    return sorted(paths, key=lambda path: (not is_shard(path), path))


def discard_leftovers(store: Store, listed: Sequence[str], found: Iterable[str]) -> None:
    """Delete what a killed compaction left: unlisted shards, merged units, other indices.

    Args:
        store: Artifact directory.
        listed: Paths in its manifest.
        found: Paths that are there.
    """
    index, known = ShardIndex(store, listed), set(listed)
    units: dict[str, set[str]] = {}
    for path in found:
        if path in known or not path.endswith(".parquet"):
            continue
        folder = path.split("/")[0]
        merged = units.setdefault(folder, index.units(folder))
        if is_shard(path) or folder == INDEX_FOLDER or PurePosixPath(path).stem in merged:
            store.delete(path)
