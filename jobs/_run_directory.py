"""The directory of one run: held by one driver, tied to its settings and inputs.

run.json      which job, hash of the settings, tracking run, ids of the input artifacts
config.yaml   resolved settings
result.json   written when the run has finished
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nfs.config.base import JobConfig, flatten, read_yaml
from nfs.errors import InputError

RUN_FILE, RESULT_FILE, CONFIG_FILE = "run.json", "result.json", "config.yaml"
# Settings that do not change what a run computes; two commands that differ here are the same run.
NOT_IDENTITY = ("storage", "launch", "tracking", "artifacts", "shard_mb", "best", "states")


@contextmanager
def run_lock(place: Path) -> Iterator[None]:
    """Make the run directory and hold it, so that two drivers never write one run."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        stream = (place / ".lock").open("w")
    except OSError as error:
        raise InputError(
            f"{place}: cannot be written ({error.strerror}); choose another `storage`"
        ) from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(
                f"{place}: another process is running this run; wait for it or give --run-name"
            ) from error
        yield


def open_record(place: Path, job: str, digest: str, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Read or make `run.json`; refuse a directory that belongs to other settings."""
    file = place / RUN_FILE
    if not file.exists():
        record = {"job": job, "config_hash": digest, "tracking_run_id": None, "inputs": None}
        write_atomic(file, json.dumps(record))
        return {**record, "resumed": False}
    record = json.loads(file.read_text(encoding="utf-8"))
    if record["config_hash"] != digest:
        changed = _differences(place, identity)
        raise InputError(
            f"{place}: belongs to a run with other settings ({changed}); "
            "give another --run-name, or the old settings to continue it"
        )
    return {**record, "resumed": True}


def _differences(place: Path, identity: Mapping[str, Any]) -> str:
    old = {k: v for k, v in read_yaml(place / CONFIG_FILE).items() if k not in NOT_IDENTITY}
    before, now = dict(flatten(old)), dict(flatten(identity))
    keys = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
    return ", ".join(f"{k}: {before.get(k)!r} -> {now.get(k)!r}" for k in keys[:5]) or "other job"


def check_inputs(place: Path, record: Mapping[str, Any], inputs: Mapping[str, str]) -> None:
    """Refuse to mix results of different inputs in one run."""
    before = record["inputs"]
    if before is None:
        stored = {k: v for k, v in record.items() if k != "resumed"}
        write_atomic(place / RUN_FILE, json.dumps({**stored, "inputs": dict(inputs)}))
        return
    changed = sorted(p for p in before.keys() | inputs.keys() if before.get(p) != inputs.get(p))
    if changed:
        raise InputError(
            f"{place}: {', '.join(changed)} changed since this run began; "
            "give another --run-name to start anew on the new input"
        )


def finished_result(place: Path) -> dict[str, Any] | None:
    """Return the recorded result of a finished run, if everything it names is still there."""
    file = place / RESULT_FILE
    if not file.is_file():
        return None
    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    missing = [p for p in result["artifacts"].values() if not _exists(p)]
    return None if missing else {**result, "reused": True}


def _exists(path: str) -> bool:
    if "://" not in path:
        return Path(path).exists()
    return bool(artifact_ids([path]))


def input_ids(config: JobConfig) -> dict[str, str]:
    """Return path -> artifact id of the stage directories among the settings."""
    tree = {name: value for name, value in config.tree().items() if name not in NOT_IDENTITY}
    return artifact_ids(_strings(tree))


def _strings(tree: object) -> Iterator[str]:
    """Yield every text among the settings."""
    if isinstance(tree, str) and tree:
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from _strings(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _strings(value)


def artifact_ids(paths: Iterable[str]) -> dict[str, str]:
    """Return path -> artifact id of those paths that are complete artifacts."""
    from nfs.artifacts import Store, read_manifest
    from nfs.artifacts.manifest import MANIFEST

    def known(path: str) -> bool:
        try:
            store = Store(path)
        except InputError:  # a text with :// that is no storage
            return False
        return store.exists(MANIFEST)

    return {path: read_manifest(path).id for path in paths if known(path)}


def write_atomic(file: Path, text: str) -> None:
    """Write a small text file whole or not at all."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)


def absolute(uri: str) -> str:
    """Return a local path as an absolute one; URIs stay."""
    return uri if "://" in uri else str(Path(uri).absolute())
