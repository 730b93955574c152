"""Frames of a `clips` artifact as a zip in StyleGAN's format (spec/stylenerf.md 2.10)."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from nfs.artifacts.photo_sets import DATASET_JSON
from nfs.artifacts.store import Store
from nfs.artifacts.tables import iter_files, table_files
from nfs.errors import ArtifactError, InputError
from nfs.media.images import decode_jpeg

_PER_FOLDER = 1000
_ROWS = 32
FrameKey = tuple[str, int]


@dataclass(frozen=True)
class PhotoExport:
    """What was written.

    Attributes:
        num_photos: Photos in the zip.
        num_identities: Distinct identities among them.
        num_without_label: Frames left out because no label is known.
        labels: What the labels are: `identities`, `vectors` (the photos' own) or `given`.
    """

    num_photos: int
    num_identities: int
    num_without_label: int
    labels: str


def export_zip(
    clips: str,
    target: str | Path,
    *,
    resolution: int,
    labels: Mapping[FrameKey, Sequence[float]] | None = None,
    identities: bool = False,
    split: str | None = None,
    max_frames_per_clip: int | None = None,
) -> PhotoExport:
    """Write usable frames as square PNGs, with `dataset.json`; the zip appears when it is whole.

    The same frames give the same bytes.

    The label is `labels[clip_id, frame_index]`; without `labels` the vector that the photo came
    with, or the number of the identity where no photo has one. `dataset.json` also names
    identities and the frame behind each photo; other readers ignore that.

    Args:
        clips: Artifact of `jobs.preprocess`.
        target: Local path, ending in `.zip`.
        resolution: Pixels per side, a power of two.
        labels: Vectors of equal lengths; frames without one are left out.
        identities: Take the identities even where photos have vectors.
        split: Keep clips with this value of `split`; None keeps all.
        max_frames_per_clip: Evenly spaced frames kept of each clip; None keeps all.

    Raises:
        InputError: If the settings are wrong or no frame is left.
    """
    path = Path(target)
    if path.suffix.lower() != ".zip":
        raise InputError(f"{target}: expected a name that ends in .zip")
    if resolution < 4 or resolution & (resolution - 1):
        raise InputError(f"resolution={resolution} is not a power of two")
    identity, vectors = _clips(clips, split)
    own = {} if identities or labels is not None else vectors
    _check_vectors(clips, identity, own)
    numbers = {name: i for i, name in enumerate(sorted(set(identity.values())))}
    entries: list[list[Any]] = []
    frames: list[list[Any]] = []
    used: set[str] = set()
    unlabelled = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for clip_id, frame, data in _frames(clips, identity, max_frames_per_clip):
                label: int | list[float] | None = own.get(clip_id, numbers[identity[clip_id]])
                if labels is not None:
                    vector = labels.get((clip_id, frame))
                    label = None if vector is None else [float(v) for v in vector]
                if label is None:
                    unlabelled += 1
                    continue
                name = f"{len(entries) // _PER_FOLDER:05d}/img{len(entries):08d}.png"
                archive.writestr(zipfile.ZipInfo(name), _png(data, resolution))
                entries.append([name, label])
                frames.append([name, clip_id, frame])
                used.add(identity[clip_id])
            facts = {"labels": entries, "identities": list(numbers), "frames": frames}
            archive.writestr(zipfile.ZipInfo(DATASET_JSON), json.dumps(facts))
        if not entries:
            where = "" if split is None else f" in split {split!r}"
            raise ArtifactError(f"{clips}: no usable frame{where}; look at the status columns")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    kind = "given" if labels is not None else ("vectors" if own else "identities")
    return PhotoExport(len(entries), len(used), unlabelled, kind)


def _clips(clips: str, split: str | None) -> tuple[dict[str, str], dict[str, list[float]]]:
    """Return identities and label vectors of the usable clips, by clip id."""
    identity: dict[str, str] = {}
    vectors: dict[str, list[float]] = {}
    columns = ["clip_id", "identity_id", "split", "status", "label"]
    for _, table in iter_files(clips, "clips", columns):
        for row in table.to_pylist():
            if row["status"] == "ok" and split in (None, row["split"]):
                identity[row["clip_id"]] = row["identity_id"]
                vector = row.get("label")  # older artifacts have no such column
                if vector is not None:
                    vectors[row["clip_id"]] = vector
    return identity, vectors


def _check_vectors(
    clips: str, identity: Mapping[str, str], own: Mapping[str, Sequence[float]]
) -> None:
    sizes = sorted({len(vector) for vector in own.values()})
    if own and (len(own) < len(identity) or len(sizes) > 1):
        raise InputError(
            f"{clips}: {len(own)} of {len(identity)} clips have label vectors, of {sizes} numbers; "
            "all need one of the same length; --identities takes the identities instead"
        )


def _frames(
    clips: str, identity: Mapping[str, str], limit: int | None
) -> Iterator[tuple[str, int, bytes]]:
    """Yield (clip id, frame number, encoded picture); a few rows are in memory at a time."""
    store = Store(clips)
    for file in table_files(clips, "frames"):
        with store.open_parquet(file) as parquet:
            facts = parquet.read(columns=["clip_id", "status"]).to_pylist()
            wanted = _wanted(facts, identity, limit)
            columns, row = ["clip_id", "frame_index", "image_jpeg"], 0
            for batch in parquet.iter_batches(batch_size=_ROWS, columns=columns):
                for values in batch.filter(pa.array(wanted[row : row + len(batch)])).to_pylist():
                    yield values["clip_id"], values["frame_index"], values["image_jpeg"]
                row += len(batch)


def _wanted(
    facts: list[dict[str, Any]], identity: Mapping[str, str], limit: int | None
) -> NDArray[np.bool_]:
    by_clip: dict[str, list[int]] = {}
    for row, values in enumerate(facts):
        if values["status"] == "ok" and values["clip_id"] in identity:
            by_clip.setdefault(values["clip_id"], []).append(row)
    wanted = np.zeros(len(facts), bool)
    for rows in by_clip.values():
        count = min(limit or len(rows), len(rows))
        wanted[np.asarray(rows)[np.linspace(0, len(rows) - 1, count).round().astype(int)]] = True
    return wanted


def _png(data: bytes, resolution: int) -> bytes:
    pixels = decode_jpeg(data)
    image = Image.fromarray(pixels)
    if image.size != (resolution, resolution):
        image = image.resize((resolution, resolution), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=0)  # as StyleGAN's tool: quick to read
    return buffer.getvalue()
