"""Random access to rows of parquet files by row group, from any thread, with bounded memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from nfs.artifacts.store import Store

Rows = list[tuple[Any, ...]]


class RowGroups:
    """Row groups of some columns; the most recently used ones are kept.

    Two threads that want the same row group read it once. Copies made by pickling start empty.

    Args:
        store: Folder of the files.
        files: Relative paths.
        columns: Columns to read, in this order.
        keep: Row groups kept in memory.
    """

    def __init__(self, store: Store, files: Sequence[str], columns: Sequence[str], keep: int):
        self.store, self.files, self.columns = store, list(files), list(columns)
        self.keep = keep
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_kept")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def __len__(self) -> int:
        """Return the number of row groups in memory."""
        return len(self._kept)

    def rows(self, file: int, group: int) -> Rows:
        """Return the rows of a row group, one tuple of column values each.

        Args:
            file: Index into `files`.
            group: Row group of the file.
        """
        key = (file, group)
        with self._lock:
            future = self._kept.get(key)
            mine = future is None
            if future is None:
                future = self._kept[key] = Future()
            self._kept.move_to_end(key)
            while len(self._kept) > max(1, self.keep):
                self._kept.popitem(last=False)
        if mine:
            try:
                future.set_result(self._read(file, group))
            except BaseException as error:  # noqa: BLE001 - raised below, in every waiting thread
                future.set_exception(error)
                with self._lock:
                    self._kept.pop(key, None)
        return future.result()

    def _read(self, file: int, group: int) -> Rows:
        with self.store.open_parquet(self.files[file]) as parquet:
            table = parquet.read_row_group(group, columns=self.columns)
        return list(zip(*(table[name].to_pylist() for name in self.columns), strict=True))

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, int], Future[Rows]] = OrderedDict()
