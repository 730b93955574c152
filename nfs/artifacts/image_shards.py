"""Encoded images in a column of parquet files, read one row group at a time."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pyarrow as pa
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

    def column(self, name: str) -> list[Any]:
        """Return a column of all rows.

        Raises:
            InputError: If a file lacks it.
        """
        values: list[Any] = []
        for path in self.files:
            with self._store.open_parquet(path) as parquet:
                if name not in parquet.schema_arrow.names:
                    raise InputError(f"{self.uri}: {path} has no column {name!r}")
                values += parquet.read(columns=[name])[name].to_pylist()
        return values

    def labels(self, name: str) -> Labels:
        """Return a label column: int64 `[N]` or float32 `[N, L]`."""
        return label_array(self.column(name), f"{self.uri}: column {name!r}")

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


def class_numbers(values: list[Any], where: str) -> tuple[NDArray[np.int64], list[Any]]:
    """Return class numbers `[N]` of integers or names, and the sorted distinct values.

    Raises:
        InputError: If a value is missing, or integers and names are mixed.
    """
    if any(value is None for value in values):
        raise InputError(f"{where}: {sum(v is None for v in values)} rows have no value")
    kinds = {type(value) for value in values}
    if kinds not in ({int}, {str}):
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise InputError(f"{where}: need integers or texts, got {names}")
    distinct = sorted(set(values))
    number = {value: i for i, value in enumerate(distinct)}
    return np.asarray([number[value] for value in values], np.int64), distinct


def _has_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)


def _shard(path: str) -> bool:
    return path.endswith(".parquet")
