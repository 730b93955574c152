"""`manifest.json`: what a stage directory holds, where it came from, and that it is complete."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

import nfs
from nfs.artifacts.shards import discard_leftovers
from nfs.artifacts.store import Store
from nfs.errors import ArtifactError

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1
# Bookkeeping of a running stage; not part of the finished artifact.
TRANSIENT = ("inflight/", "failed/")
# Files hashed at once: an object store answers slowly, but many at a time.
_HASH_THREADS = 8


class FileEntry(BaseModel):
    """One file of an artifact."""

    model_config = ConfigDict(frozen=True)
    path: str
    bytes: int
    sha256: str


class Quarantined(BaseModel):
    """One unit that was given up, and why."""

    model_config = ConfigDict(frozen=True)
    item: str
    reason: str


class Manifest(BaseModel):
    """The content of `manifest.json` (architecture.md, contracts between stages)."""

    model_config = ConfigDict(frozen=True)
    kind: str
    schema_version: int
    id: str
    created_at: str
    nfs_version: str
    config: dict[str, Any]
    parents: list[str]
    counts: dict[str, int]
    quarantined: list[Quarantined]
    files: list[FileEntry]
    extra: dict[str, Any] = {}


def write_manifest(
    uri: str,
    *,
    kind: str,
    config: Mapping[str, Any],
    parents: Sequence[str] = (),
    counts: Mapping[str, int] | None = None,
    quarantined: Sequence[Mapping[str, str]] = (),
    extra: Mapping[str, Any] | None = None,
    known: Mapping[str, FileEntry] | None = None,
) -> Manifest:
    """Hash the files below `uri` and write the manifest last, which completes the artifact.

    Args:
        uri: Artifact directory.
        kind: `clips`, `fits`, `checkpoint`, `identity` or `render`.
        config: Resolved configuration of the stage.
        parents: Directories of the artifacts read; their ids are recorded.
        counts: Numbers worth knowing without opening a table.
        quarantined: `{"item": ..., "reason": ...}` of each unit given up.
        extra: Facts that readers need, e.g. a model checksum.
        known: Files, by path, that their writers have hashed and nobody has changed since.
    """
    store = Store(uri)
    store.delete_partial()
    previous = _previous(store)
    if previous is not None:
        listed = [entry.path for entry in previous.files]
        discard_leftovers(store, listed, store.list(recursive=True))
    paths = [p for p in store.list(recursive=True) if p != MANIFEST and not p.startswith(TRANSIENT)]
    hashed = dict(known or {})
    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        rest = [path for path in paths if path not in hashed]
        hashed |= zip(rest, pool.map(partial(file_entry, store), rest), strict=True)
    manifest = Manifest(
        kind=kind,
        schema_version=SCHEMA_VERSION,
        id=new_id(kind),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        nfs_version=nfs.__version__,
        config=dict(config),
        parents=[read_manifest(parent).id for parent in parents],
        counts=dict(counts or {}),
        quarantined=[Quarantined(**entry) for entry in quarantined],
        files=[hashed[path] for path in paths],
        extra=dict(extra or {}),
    )
    if previous is not None and _same_content(previous, manifest):
        return previous
    store.write_bytes(MANIFEST, manifest.model_dump_json(indent=1).encode())
    return manifest


def read_manifest(uri: str, kind: str | None = None) -> Manifest:
    """Read the manifest of a complete artifact.

    Args:
        uri: Artifact directory.
        kind: Required kind, if any.

    Raises:
        ArtifactError: If the directory is missing, not complete, damaged or of another kind.
    """
    store = Store(uri)
    if not store.exists(MANIFEST):
        raise ArtifactError(
            f"{uri}: no {MANIFEST}, so it is not a complete artifact; "
            "run the stage that writes it again, it continues where it stopped"
        )
    try:
        manifest = Manifest.model_validate(json.loads(store.read_bytes(MANIFEST)))
    except (json.JSONDecodeError, UnicodeDecodeError, ValidationError) as error:
        raise ArtifactError(f"{uri}/{MANIFEST}: damaged: {error}") from None
    if manifest.schema_version != SCHEMA_VERSION:
        raise ArtifactError(
            f"{uri}: schema version {manifest.schema_version}, this nfs reads {SCHEMA_VERSION}"
        )
    if kind is not None and manifest.kind != kind:
        raise ArtifactError(f"{uri}: holds {manifest.kind!r}, need {kind!r}")
    return manifest


def verify(uri: str) -> list[str]:
    """Compare every file with the manifest and return the problems found (empty = intact)."""
    manifest, store = read_manifest(uri), Store(uri)
    problems = []
    for entry in manifest.files:
        if not store.exists(entry.path):
            problems.append(f"{entry.path}: missing")
        elif file_entry(store, entry.path) != entry:
            problems.append(f"{entry.path}: content differs from the manifest")
    listed = {entry.path for entry in manifest.files} | {MANIFEST}
    extra = [p for p in store.list(recursive=True) if p not in listed]
    problems += [f"{p}: not in the manifest" for p in extra if not p.startswith(TRANSIENT)]
    return problems


def new_id(kind: str) -> str:
    """Return a fresh artifact id."""
    return f"{kind}-{uuid.uuid4().hex[:12]}"


def file_entry(store: Store, path: str) -> FileEntry:
    """Return size and checksum of a file."""
    return FileEntry(path=path, bytes=store.size_bytes(path), sha256=store.sha256(path))


def _previous(store: Store) -> Manifest | None:
    return read_manifest(store.uri) if store.exists(MANIFEST) else None


def _same_content(old: Manifest, new: Manifest) -> bool:
    ignore = {"id", "created_at"}
    return old.model_dump(exclude=ignore) == new.model_dump(exclude=ignore)
