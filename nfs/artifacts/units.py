"""Resumable stages: one unit of work, one set of atomic files, whatever happens in between.

Below the artifact directory:
  <table>/<key>.parquet     output of a unit; the primary table's file is written last = committed
  inflight/<key>.json       written before the work, so that a crash of the process is counted
  failed/<key>.json         exceptions so far; removed when the unit is committed

A unit ends in exactly one committed file: its result, or the row that says why there is none. The
stage imports no Ray, so the same code runs as an actor and as a plain loop.
"""

from __future__ import annotations

import json
import logging
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from nfs.artifacts.manifest import FileEntry, file_entry
from nfs.artifacts.store import Store
from nfs.artifacts.unit_tables import UnitTables
from nfs.errors import ClipError, InputError

logger = logging.getLogger(__name__)

MAX_ERRORS = 2
# Deaths of the worker on one unit: within one session of the job, and over all sessions (a killed
# job leaves marks on innocent units, so only many of those count).
MAX_DEATHS = 3
MAX_DEATHS_EVER = 10

Item = Mapping[str, Any]
# status, error, files written
_Outcome = tuple[str, str, list[FileEntry]]


class UnitWork(Protocol):
    """What a stage does to one unit. Built once per worker, called many times."""

    primary: str
    """Table whose file commits the unit."""

    def __call__(self, item: Item) -> dict[str, pa.Table]:
        """Return the tables of one unit (`item` has `key`, `path` and plain extras).

        Raises:
            ClipError: If the unit itself is bad; recorded at once.
        """
        ...

    def failure(self, item: Item, status: str, error: str) -> dict[str, pa.Table]:
        """Return the tables of a unit that is given up: at least the primary table's row."""
        ...


@dataclass
class UnitReport:
    """Outcome of a stage: keys by fate, and the files that workers wrote and hashed, by path."""

    ok: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    retry: list[str] = field(default_factory=list)
    written: dict[str, FileEntry] = field(default_factory=dict)

    def add(self, result: Mapping[str, Any]) -> None:
        """Count one result of `UnitStage.run_one`."""
        key, status = result["key"], result["status"]
        if status == "ok":
            self.ok.append(key)
        elif status == "skipped":
            self.skipped.append(key)
        elif status == "retry":
            self.retry.append(key)
        else:
            self.failed[key] = result["error"]
        for path, size, sha256 in json.loads(result["written"]):
            self.written[path] = FileEntry(path=path, bytes=size, sha256=sha256)


class UnitStage:
    """Runs units one by one and never raises for a bad one.

    Args:
        uri: Artifact directory.
        make_work: Picklable factory of the work; called in the worker's process.
        session: Names this launch of the job; shared by all its workers.
    """

    def __init__(self, uri: str, make_work: Callable[[], UnitWork], session: str):
        self.store = Store(uri)
        self.work = make_work()
        self.session = session

    def run_one(self, item: Item) -> dict[str, Any]:
        """Process one unit and return `{key, status, seconds, error, written}`.

        `status` is `ok`, `skipped` (was committed before), `failed` (committed as given up) or
        `retry` (an exception; a later pass tries again). `written` is JSON: path, bytes and sha256
        of each file of the unit.
        """
        start, key = time.monotonic(), item["key"]
        status, error, files = self._attempt(item)
        return {
            "key": key,
            "status": status,
            "seconds": time.monotonic() - start,
            "error": error,
            "written": json.dumps([[entry.path, entry.bytes, entry.sha256] for entry in files]),
        }

    def _attempt(self, item: Item) -> _Outcome:
        key, work = item["key"], self.work
        if is_committed(self.store, work.primary, key):
            return "skipped", "", []
        mark = _read_mark(self.store, _inflight(key))
        ever, here = mark.get("ever", 0), mark.get(self.session, 0)
        if here >= MAX_DEATHS or ever >= MAX_DEATHS_EVER:
            return self._give_up(item, "worker_died", f"its worker process died {ever} times")
        _write_mark(self.store, _inflight(key), {"ever": ever + 1, self.session: here + 1})
        try:
            files = self._commit(key, work(item))
        except ClipError as error:
            return self._give_up(item, error.status, str(error))
        except InputError:
            raise  # the store or the settings are wrong, not the unit
        except Exception as error:  # noqa: BLE001 - one bad unit must not stop the job
            return self._record_error(item, error)
        return "ok", "", files

    def _record_error(self, item: Item, error: Exception) -> _Outcome:
        key, text = item["key"], f"{type(error).__name__}: {error}"
        logger.warning("%s: %s", item.get("path", key), "".join(traceback.format_exception(error)))
        count = _read_mark(self.store, _failed(key)).get("count", 0) + 1
        if count >= MAX_ERRORS:
            return self._give_up(item, "error", text)
        _write_mark(self.store, _failed(key), {"count": count})
        self.store.delete(_inflight(key))
        return "retry", text, []

    def _give_up(self, item: Item, status: str, error: str) -> _Outcome:
        files = self._commit(item["key"], self.work.failure(item, status, error))
        return "failed", f"{status}: {error}", files

    def _commit(self, key: str, tables: Mapping[str, pa.Table]) -> list[FileEntry]:
        primary, files = self.work.primary, []
        for name in sorted(tables, key=lambda n: n == primary):
            path = f"{name}/{key}.parquet"
            self.store.write_table(path, tables[name])
            files.append(file_entry(self.store, path))
        self.store.delete(_inflight(key))
        self.store.delete(_failed(key))
        return files


def is_committed(store: Store, primary: str, key: str) -> bool:
    """Return whether a unit has its final file."""
    return store.exists(f"{primary}/{key}.parquet")


def pending(items: Iterable[Item], uri: str, primary: str) -> list[Item]:
    """Return the items that are not committed yet, as a file of their own or in a shard."""
    done = UnitTables(uri).keys(primary)
    return [item for item in items if item["key"] not in done]


def run_units_here(
    items: Iterable[Item],
    make_work: Callable[[], UnitWork],
    uri: str,
    on_done: Callable[[Mapping[str, Any]], None],
) -> UnitReport:
    """Run a stage as a plain loop in this process (tests, `launch.kind=local`)."""
    stage, report = UnitStage(uri, make_work, session=uuid.uuid4().hex), UnitReport()
    todo = list(items)
    for _ in range(MAX_ERRORS):
        report.retry = []
        again = []
        for item in todo:
            result = stage.run_one(item)
            report.add(result)
            if result["status"] == "retry":
                again.append(item)
            else:
                on_done(result)
        todo = again
        if not todo:
            break
    return report


def _inflight(key: str) -> str:
    return f"inflight/{key}.json"


def _failed(key: str) -> str:
    return f"failed/{key}.json"


def _read_mark(store: Store, path: str) -> dict[str, int]:
    return dict(json.loads(store.read_bytes(path))) if store.exists(path) else {}


def _write_mark(store: Store, path: str, mark: Mapping[str, int]) -> None:
    store.write_bytes(path, json.dumps(mark).encode())
