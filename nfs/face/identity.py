"""Embeddings of the faces of clips, for identities by clusters (the table `faces`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from nfs.artifacts.schemas import FACES
from nfs.artifacts.shards import ClipRun
from nfs.artifacts.store import Store
from nfs.artifacts.tables import read_rows, unit_places
from nfs.media.images import decode_jpeg, to_float

MAX_FRAMES = 8

Item = Mapping[str, Any]


class Embedder(Protocol):
    """A network in whose space pictures of one person are close."""

    def embed(self, images: Tensor) -> Tensor:
        """Return `[B, E]` embeddings of FFHQ-style crops `[B, 3, H, W]` in [-1, 1]."""
        ...


class FaceEmbeddings:
    """Unit work after the clips are cut: the mean embedding of some frames of each clip.

    Items carry the `key` of a unit that has frames.

    Args:
        uri: Artifact of kind `clips`.
        build_embedder: Picklable; called once per worker.
    """

    primary = "faces"

    def __init__(self, uri: str, build_embedder: Callable[[], Embedder]):
        self.store, self.embedder = Store(uri), build_embedder()

    def __call__(self, item: Item) -> dict[str, pa.Table]:
        """Return a row for each clip of the unit that has a usable frame."""
        places = unit_places(self.store, f"frames/{item['key']}.parquet")
        rows = [row for row in map(self._row, places) if row is not None]
        return {"faces": pa.Table.from_pylist(rows, schema=FACES)}

    def failure(self, item: Item, status: str, error: str) -> dict[str, pa.Table]:
        """Return no rows: the clips keep the identity of their file."""
        del item, status, error
        return {"faces": FACES.empty_table()}

    def _row(self, place: ClipRun) -> dict[str, Any] | None:
        statuses = read_rows(self.store, place, ["status"])["status"].to_pylist()
        usable = [row for row, status in enumerate(statuses) if status == "ok"]
        if not usable:
            return None
        picks = np.linspace(0, len(usable) - 1, min(MAX_FRAMES, len(usable))).round().astype(int)
        images = []
        for pick in picks:
            at = replace(place, first_row=place.first_row + usable[pick], num_rows=1)
            data = read_rows(self.store, at, ["image_jpeg"])["image_jpeg"][0].as_py()
            images.append(decode_jpeg(data))
        with torch.inference_mode():
            vectors = self.embedder.embed(to_float(np.stack(images)))
        return {
            "clip_id": place.clip_id,
            "embedding": vectors.double().mean(dim=0).float().tolist(),
            "num_frames": len(images),
        }
