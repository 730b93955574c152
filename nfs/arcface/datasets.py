"""Images with identities as `MapDataset`s: procedural, RecordIO, folders, `clips` artifacts.

`get` returns `image` uint8 `[3, S, S]` RGB and `label` int64. Only indices are held in memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nfs.arcface.parquet_source import ParquetSource
from nfs.arcface.records import FaceRecords
from nfs.artifacts.manifest import MANIFEST
from nfs.artifacts.row_groups import RowGroups
from nfs.artifacts.store import Store
from nfs.artifacts.tables import iter_files, table_files
from nfs.errors import ArtifactError, InputError
from nfs.face.align import arcface_transform, five_points
from nfs.media.images import decode_jpeg, is_photo, warp_affine
from nfs.runtime.seeding import derive_seed

logger = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]
ALIGNED_PX = 112


class FaceSource(Protocol):
    """Images by number, with their classes."""

    num_classes: int

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def read(self, number: int) -> tuple[Pixels, int]:
        """Return image `[H, W, 3]` and class.

        Raises:
            InputError: If it cannot be read; the message names it.
        """
        ...

    def classes(self) -> NDArray[np.int64]:
        """Return the class of every image."""
        ...


class SyntheticSource:
    """Smooth colour patterns, one per class, shifted and with noise per image.

    Args:
        num_classes: Classes; image i has class i % num_classes.
        num_images: Images.
        noise: Largest noise, grey levels.
        size_px: Side.
    """

    def __init__(self, num_classes: int, num_images: int, noise: float, size_px: int) -> None:
        self.num_classes, self._num_images = num_classes, num_images
        self.noise, self.size_px = noise, size_px

    def __len__(self) -> int:
        """Return the number of images."""
        return self._num_images

    def read(self, number: int) -> tuple[Pixels, int]:
        """Draw an image; it depends on its number only."""
        label = number % self.num_classes
        pattern = np.random.default_rng(derive_seed("pattern", label))
        grid = pattern.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        margin = self.size_px // 8
        whole = self.size_px + margin
        smooth = Image.fromarray(grid).resize((whole, whole), Image.Resampling.BICUBIC)
        rng = np.random.default_rng(derive_seed("synthetic", number))
        top, left = rng.integers(0, margin + 1, 2)
        pixels = np.asarray(smooth)[top : top + self.size_px, left : left + self.size_px]
        noise = rng.uniform(-self.noise, self.noise, pixels.shape)
        return np.clip(pixels + noise, 0, 255).astype(np.uint8), label

    def classes(self) -> NDArray[np.int64]:
        """Return the class of every image."""
        return np.arange(self._num_images) % self.num_classes


class RecordSource:
    """Images of a RecordIO file.

    Args:
        path: `.rec` file, or the folder that holds `train.rec`.
        num_classes: Classes; None: from the identity records, else from scanning all labels.
    """

    def __init__(self, path: str, num_classes: int | None = None) -> None:
        file = path if path.endswith(".rec") else f"{path.rstrip('/')}/train.rec"
        self.records = FaceRecords(file)
        self.num_classes = num_classes or self.records.num_identities or self._scan_classes()
        if not len(self.records):
            raise InputError(f"{file}: holds no images")

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.records)

    def read(self, number: int) -> tuple[Pixels, int]:
        """Decode an image."""
        record = self.records.read(number)
        where = f"{self.records.file.path}: image {number}"
        label = record.labels[0]
        if label != int(label) or not 0 <= label < self.num_classes:
            raise InputError(f"{where}: label {label} is not in 0..{self.num_classes - 1}")
        return _decode(record.image, where), int(label)

    def encoded(self, number: int) -> bytes:
        """Return an image as it is stored, so that a copy loses nothing."""
        return self.records.read(number).image

    def classes(self) -> NDArray[np.int64]:
        """Return the class of every image; reads all records."""
        labels = (self.records.read(number).labels[0] for number in range(len(self.records)))
        return np.fromiter(labels, np.float64).astype(np.int64)

    def _scan_classes(self) -> int:
        return int(self.classes().max()) + 1


class FolderSource:
    """Images of a folder with one sub-folder per identity; classes follow the sorted names."""

    def __init__(self, path: str) -> None:
        self._store = Store(path)
        files = [f for f in self._store.list("", recursive=True) if is_photo(f) and "/" in f]
        names = sorted({f.split("/", 1)[0] for f in files})
        if not files:
            raise InputError(f"{path}: no sub-folder with images; expected <path>/<identity>/*.jpg")
        number = {name: i for i, name in enumerate(names)}
        self._files = files
        self.labels = np.asarray([number[f.split("/", 1)[0]] for f in files], np.int64)
        self.num_classes = len(names)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._files)

    def read(self, number: int) -> tuple[Pixels, int]:
        """Decode an image."""
        file = self._files[number]
        data = self._store.read_bytes(file)
        return _decode(data, f"{self._store.uri}/{file}"), int(self.labels[number])

    def classes(self) -> NDArray[np.int64]:
        """Return the class of every image."""
        return self.labels


class ClipSource:
    """Frames of a `clips` artifact, warped to the 112 px template by their landmarks.

    Args:
        uri: Artifact of `jobs.preprocess`.
        split: Keep clips with this value of `split`; None keeps all.
        max_frames_per_clip: Evenly spaced frames kept of each clip.
        cache_row_groups: Row groups of encoded frames kept in memory.

    Attributes:
        recordings: The clip of every frame, numbered.
    """

    def __init__(
        self,
        uri: str,
        *,
        split: str | None = None,
        max_frames_per_clip: int | None = None,
        cache_row_groups: int = 64,
    ) -> None:
        self._store, self._files = Store(uri), table_files(uri, "frames")
        columns = ["image_jpeg", "landmarks_px"]
        self._groups = RowGroups(self._store, self._files, columns, cache_row_groups)
        identity = _identities(uri, split)
        names = sorted(set(identity.values()))
        number = {name: i for i, name in enumerate(names)}
        clips = {clip: i for i, clip in enumerate(sorted(identity))}
        rows = [
            (file, group, row, number[identity[clip]], clips[clip])
            for file, group, row, clip in self._rows(max_frames_per_clip)
            if clip in identity
        ]
        if not rows:
            raise ArtifactError(f"{uri}: no aligned frame of split {split!r}")
        self._index = np.asarray(rows, np.int64)
        self.labels, self.num_classes = self._index[:, 3], len(names)
        self.recordings = self._index[:, 4]

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self._index)

    def read(self, number: int) -> tuple[Pixels, int]:
        """Decode and align a frame."""
        file, group, row, label, _ = (int(v) for v in self._index[number])
        data, landmarks = self._groups.rows(file, group)[row]
        where = f"{self._store.uri}/{self._files[file]}: row group {group}, row {row}"
        pixels = _decode(data, where)
        points = np.asarray(landmarks, np.float64).reshape(68, 2)
        return align_face(pixels, points), label

    def classes(self) -> NDArray[np.int64]:
        """Return the class of every frame."""
        return self.labels

    def _rows(self, limit: int | None) -> list[tuple[int, int, int, str]]:
        found: list[tuple[int, int, int, str]] = []
        for file, path in enumerate(self._files):
            with self._store.open_parquet(path) as parquet:
                sizes = [
                    parquet.metadata.row_group(g).num_rows for g in range(parquet.num_row_groups)
                ]
                table = parquet.read(columns=["clip_id", "status"])
            places = [(g, r) for g, size in enumerate(sizes) for r in range(size)]
            clips, status = table["clip_id"].to_pylist(), table["status"].to_pylist()
            by_clip: dict[str, list[tuple[int, int, int, str]]] = {}
            for (group, row), clip, state in zip(places, clips, status, strict=True):
                if state == "ok":
                    by_clip.setdefault(clip, []).append((file, group, row, clip))
            for rows in by_clip.values():
                count = min(limit or len(rows), len(rows))
                take = np.linspace(0, len(rows) - 1, count).round().astype(int)
                found += [rows[i] for i in take]
        return found


class FaceImages:
    """A source as training images; a `MapDataset`.

    Args:
        source: Images and classes.
        size_px: S.
        change: Augmentation: (pixels, rng) -> pixels.
        resize: Resize other sizes instead of refusing them.
    """

    def __init__(
        self,
        source: FaceSource,
        *,
        size_px: int = ALIGNED_PX,
        change: Callable[[Pixels, np.random.Generator], Pixels] | None = None,
        resize: bool = False,
    ) -> None:
        self.source, self.size_px, self.change, self.resize = source, size_px, change, resize

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.source)

    def get(self, index: int, rng: np.random.Generator) -> dict[str, NDArray[np.generic]]:
        """Return `image` uint8 `[3, S, S]` and `label` int64."""
        pixels, label = self.source.read(index)
        pixels = self._sized(pixels, index)
        if self.change is not None:
            pixels = self.change(pixels, rng)
        return {
            "image": np.ascontiguousarray(pixels.transpose(2, 0, 1)),
            "label": np.asarray(label, np.int64),
        }

    def _sized(self, pixels: Pixels, index: int) -> Pixels:
        height, width = pixels.shape[:2]
        if (height, width) == (self.size_px, self.size_px):
            return pixels
        # A network with another input size gets resized aligned images; raw photos are refused.
        if not self.resize and (height, width) != (ALIGNED_PX, ALIGNED_PX):
            raise InputError(
                f"image {index} has {width} x {height} px, need aligned {ALIGNED_PX} x {ALIGNED_PX}"
                " px; align it with jobs.preprocess, or set data.resize=true"
            )
        size = (self.size_px, self.size_px)
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))


def align_face(pixels: Pixels, landmarks_px: NDArray[np.floating]) -> Pixels:
    """Warp a picture to the 112 px template.

    Args:
        pixels: uint8 `[H, W, 3]`.
        landmarks_px: `[68, 2]`, continuous pixels.
    """
    # The template is in index coordinates (pixel centres at integers); warps are in continuous.
    matrix = arcface_transform(five_points(landmarks_px) - 0.5)
    matrix[:, 2] += 0.5 - matrix[:, :2] @ np.full(2, 0.5)
    return warp_affine(pixels, matrix, ALIGNED_PX)


def open_source(path: str) -> FaceSource:
    """Open a `.rec` file, a folder with one, a `clips` artifact, parquet, a folder of identities.

    Raises:
        InputError: If it is none of them.
    """
    store = Store(path)
    if path.endswith(".rec") or store.exists("train.rec"):
        return RecordSource(path)
    if store.exists(MANIFEST):
        return ClipSource(path)
    if path.endswith(".parquet") or any(f.endswith(".parquet") for f in store.list("")):
        return ParquetSource(path)
    return FolderSource(path)


def find_validation(folder: str, names: Sequence[str]) -> list[Path]:
    """Return the `.bin` files that names (in the folder) or paths mean.

    Raises:
        InputError: If one is missing.
    """
    found = []
    for name in names:
        file = name if name.endswith(".bin") else f"{name}.bin"
        candidates = [Path(file), Path(folder) / file, Path(folder).parent / file]
        existing = [c for c in candidates if c.is_file()]
        if not existing:
            raise InputError(f"verification set {name!r}: {candidates[1]} is missing")
        found.append(existing[0])
    return found


def _identities(uri: str, split: str | None) -> dict[str, str]:
    """Return clip id -> identity of usable clips."""
    chosen: dict[str, str] = {}
    columns = ["clip_id", "identity_id", "split", "status"]
    for _, table in iter_files(uri, "clips", columns):
        for row in table.select(columns).to_pylist():
            if row["status"] == "ok" and split in (None, row["split"]):
                chosen[row["clip_id"]] = row["identity_id"]
    return chosen


def _decode(data: bytes, where: str) -> Pixels:
    try:
        return decode_jpeg(data)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
