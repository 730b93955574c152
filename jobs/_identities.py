"""Identities and splits of clips by clusters of their faces (`identity_from=clusters`)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from nfs.artifacts import Store
from nfs.artifacts.identities import cluster_identities
from nfs.artifacts.unit_tables import UnitTables
from nfs.config.base import LaunchConfig
from nfs.face.identity import Embedder, FaceEmbeddings
from nfs.face.sources import split_of
from nfs.runtime import run_units

logger = logging.getLogger("nfs.jobs")

IDENTITIES_FILE = "identities.parquet"
"""Identity of every clip of earlier runs, which it keeps; written before the clips' rows."""


def assign_identities(
    uri: str,
    build_embedder: Callable[[], Embedder],
    *,
    threshold: float,
    val_fraction: float,
    launch: LaunchConfig,
) -> dict[str, int]:
    """Cluster the faces of all clips and write identity and split into their rows.

    Killed at any time, the same call ends in the same state: clusters depend on the embeddings and
    on `identities.parquet` alone, and that file is written once for a given set of clips.

    Returns:
        Counts for the manifest.
    """
    units = UnitTables(uri)
    keys = sorted(units.keys("frames"))
    work = partial(FaceEmbeddings, uri, build_embedder)
    items = [{"key": key, "path": key} for key in keys]
    run_units(items, work, uri, launch, primary=FaceEmbeddings.primary)
    units = UnitTables(uri)
    embeddings = {
        clip_id: np.asarray(rows["embedding"][0].as_py(), np.float32)
        for clip_id, rows in units.clips("faces", ["embedding"])
    }
    known = _read(units.store)
    found = cluster_identities(embeddings, known, threshold)
    if found.bridges:
        logger.warning(
            "%d clips (%s, ...) lie between identities of earlier runs, which stay as they are; "
            "a new run would join them",
            len(found.bridges),
            found.bridges[0],
        )
    if found.of_clip != known:
        rows = sorted(found.of_clip.items())
        names = {"clip_id": [clip for clip, _ in rows], "identity_id": [who for _, who in rows]}
        units.store.write_table(IDENTITIES_FILE, pa.table(names), row_group_size=1 << 16)
    for key in sorted(units.keys("clips")):
        _rewrite(units, key, found.of_clip, val_fraction)
    return {"identity_bridges": len(found.bridges)}


def _read(store: Store) -> dict[str, str]:
    if not store.exists(IDENTITIES_FILE):
        return {}
    with store.open_parquet(IDENTITIES_FILE) as parquet:
        table = parquet.read()
    return dict(zip(table["clip_id"].to_pylist(), table["identity_id"].to_pylist(), strict=True))


def _rewrite(units: UnitTables, key: str, identities: dict[str, str], val_fraction: float) -> None:
    """Write a unit's clips rows with their identities; rows in shards have theirs already."""
    path = units.own_file("clips", key)
    if path is None:
        return
    rows: pa.Table = units.read("clips", key)
    before: list[dict[str, Any]] = rows.to_pylist()
    after = []
    for row in before:
        who = identities.get(row["clip_id"], row["identity_id"])
        after.append({**row, "identity_id": who, "split": split_of(who, val_fraction)})
    if after != before:
        units.store.write_table(path, pa.Table.from_pylist(after, schema=rows.schema))
