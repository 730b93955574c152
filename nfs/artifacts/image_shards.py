"""Encoded images in a column of parquet files, read one row group at a time."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nfs.artifacts.photo_sets import Labels, label_array
from nfs.artifacts.row_groups import RowGroups
from nfs.artifacts.store import Store
from nfs.errors import InputError

logger = logging.getLogger(__name__)

# A random order reads a row group per image.
_LARGE_ROW_GROUP_BYTES = 16 << 20


class ImageShards:
    """Rows of a parquet file, or of all `.parquet` files in a folder, sorted by path.

    Args:
        uri: Local path or pyarrow URI of the file or folder.
        image_column: Encoded pictures: binary, or a struct with a field `bytes`.
        keep: Row groups kept in memory.

    Raises:
        InputError: If there is no row, or a file lacks the column.
    """

    def __init__(self, uri: str, *, image_column: str = "image", keep: int = 64) -> None:
        self.uri, self.image_column = uri.rstrip("/"), image_column
        folder, _, file = self.uri.rpartition("/") if uri.endswith(".parquet") else (uri, "", "")
        store = Store(folder or ("/" if file and uri.startswith("/") else "."))
        self.files = [file] if file else [f for f in store.list("", recursive=True) if _shard(f)]
        if not self.files:
            raise InputError(f"{uri}: no .parquet file in this folder or below it")
        self._store = store
        groups: list[tuple[int, int, int]] = []
        num_bytes = 0
        for number, path in enumerate(self.files):
            with store.open_parquet(path) as parquet:
                self._check_column(parquet, path)
                for group in range(parquet.num_row_groups):
                    facts = parquet.metadata.row_group(group)
                    groups.append((number, group, facts.num_rows))
                    num_bytes += facts.total_byte_size
        self._groups = np.asarray(groups, np.int64).reshape(-1, 3)
        self._first = np.concatenate([[0], np.cumsum(self._groups[:, 2])])
        if not len(self):
            raise InputError(f"{uri}: the parquet files hold no rows")
        mean = num_bytes // len(self._groups)
        if mean > _LARGE_ROW_GROUP_BYTES:
            logger.warning(
                "%s: row groups of %d MB on average; a shuffled order reads one per image: write "
                "them with about 32 rows (row_group_size=32)", uri, mean >> 20,
            )  # fmt: skip
        self._rows = RowGroups(store, self.files, [image_column], keep)

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self._first[-1])

    def name(self, number: int) -> str:
        """Return where a row is, for messages."""
        file, _, row, first = self._place(number)
        return f"{self.files[file]}:{first + row}"

    def read(self, number: int) -> bytes:
        """Return the encoded picture of a row.

        Raises:
            InputError: If it is null.
        """
        file, group, row, _ = self._place(number)
        value: Any = self._rows.rows(file, group)[row][0]
        if isinstance(value, dict):
            value = value.get("bytes")
        if not isinstance(value, bytes):
            raise InputError(f"{self.uri}: {self.name(number)}: no encoded picture in this row")
        return value

    def column(self, name: str) -> pa.ChunkedArray:
        """Return a column of all rows.

        Raises:
            InputError: If a file lacks it.
        """
        parts: list[pa.ChunkedArray] = []
        for path in self.files:
            with self._store.open_parquet(path) as parquet:
                if name not in parquet.schema_arrow.names:
                    raise InputError(f"{self.uri}: {path} has no column {name!r}")
                parts.append(parquet.read(columns=[name])[name])
        kind = parts[0].type
        return pa.chunked_array([c.cast(kind) for part in parts for c in part.chunks], kind)

    def labels(self, name: str) -> Labels:
        """Return a label column: int64 `[N]` or float32 `[N, L]`."""
        where = f"{self.uri}: column {name!r}"
        column = self.column(name)
        if pa.types.is_integer(column.type):
            return class_numbers(column, where)[0]
        return label_array(column.to_pylist(), where)

    def _place(self, number: int) -> tuple[int, int, int, int]:
        """Return file, row group, row within it, and the row group's first row in the file."""
        index = int(np.searchsorted(self._first, number, side="right")) - 1
        file, group, _ = (int(v) for v in self._groups[index])
        row = number - int(self._first[index])
        return file, group, row, int(self._first[index] - self._first[index - group])

    def _check_column(self, parquet: pq.ParquetFile, path: str) -> None:
        schema = parquet.schema_arrow
        if self.image_column not in schema.names:
            raise InputError(
                f"{self.uri}: {path} has no column {self.image_column!r}, only "
                f"{', '.join(schema.names)}"
            )
        kind = schema.field(self.image_column).type
        inner = kind.field("bytes").type if _has_bytes(kind) else kind
        if not (pa.types.is_binary(inner) or pa.types.is_large_binary(inner)):
            raise InputError(
                f"{self.uri}: {path}: column {self.image_column!r} is {kind}, need encoded "
                "pictures (binary, or a struct with `bytes`)"
            )


def class_numbers(values: pa.ChunkedArray | pa.Array, where: str) -> tuple[NDArray[np.int64], int]:
    """Return classes `[N]` and their number: integers as they are, texts in sorted order.

    Raises:
        InputError: If a value is missing or negative, or the column is neither.
    """
    if values.null_count:
        raise InputError(f"{where}: {values.null_count} rows have no value")
    if pa.types.is_integer(values.type):
        numbers = values.to_numpy().astype(np.int64)
        if numbers.min(initial=0) < 0:
            raise InputError(f"{where}: class {numbers.min()} is negative")
        return numbers, int(numbers.max(initial=-1)) + 1
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise InputError(f"{where}: need integers or texts, got {values.type}")
    distinct = pc.unique(values).sort()
    return pc.index_in(values, distinct).to_numpy().astype(np.int64), len(distinct)


def _has_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)


def _shard(path: str) -> bool:
    return path.endswith(".parquet")
