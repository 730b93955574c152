"""Aligned frames of a `clips` artifact, with fits where there are some; a `MapDataset`.

Only an index is held in memory; frames and fits are read on demand and a bounded number is kept.
Legend: M frames, S side of the aligned square.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from nfs.artifacts.row_groups import RowGroups
from nfs.artifacts.store import Store
from nfs.artifacts.tables import iter_files, table_files
from nfs.errors import ArtifactError
from nfs.media.images import decode_jpeg
from nfs.morphable.coefficients import Coefficients
from nfs.morphable.recon.alignment import (
    Array,
    Picture,
    crop,
    frame_to_input,
    published_alignment,
    published_crop,
    published_matrix,
    repose,
)
from nfs.morphable.recon.augment import Augmentation, Change, compose, move_landmarks
from nfs.training.loading import collate

Item = dict[str, NDArray[Any]]
Align = Literal["exact", "published"]
USABLE = "ok"
# Neighbouring frames look alike: those this close to the held-out part are not trained on.
GUARD_FRAMES = 5
CACHED_FITS = 256
# In the order of the fields of Coefficients.
_FIT_COLUMNS = ("identity", "expression", "texture", "rotation_rad", "translation", "lighting")


@dataclass(frozen=True)
class FrameIndex:
    """Where each usable frame is: parallel arrays `[M]`.

    Attributes:
        files: Relative paths of the frames table.
        file: Index into `files`.
        row_group: Row group within the file.
        row: Row within the row group.
        clip_ids: Names of the clips.
        clip: Index into `clip_ids`.
        frame: Frame number in the clip.
    """

    files: list[str]
    file: NDArray[np.int32]
    row_group: NDArray[np.int32]
    row: NDArray[np.int32]
    clip_ids: list[str]
    clip: NDArray[np.int32]
    frame: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.file)

    def select(self, chosen: NDArray[Any]) -> FrameIndex:
        """Return some frames (positions or a mask)."""
        names = ("file", "row_group", "row", "clip", "frame")
        return replace(self, **{name: getattr(self, name)[chosen] for name in names})

    def spread(self, count: int) -> FrameIndex:
        """Return at most `count` evenly spaced frames."""
        places = np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(int)
        return self.select(places)


@dataclass(frozen=True)
class Split:
    """Frames to train on and to evaluate on.

    Attributes:
        kind: `identity`: held-out people are never trained on. `time_tail`: the last part of each
            clip is held out, so the people are known; weaker evidence.
        train: Frames to train on.
        held_out: Frames to evaluate on.
    """

    kind: Literal["identity", "time_tail"]
    train: FrameIndex
    held_out: FrameIndex


def index_frames(uri: str) -> FrameIndex:
    """Find the frames with status `ok`, in the order of files and frames.

    Raises:
        ArtifactError: If there are none.
    """
    store, files = Store(uri), table_files(uri, "frames")
    columns: list[tuple[NDArray[Any], ...]] = []
    numbers: dict[str, int] = {}
    for number, path in enumerate(files):
        table, groups, rows = _read_places(store, path, ["clip_id", "frame_index", "status"])
        ok = _usable(table)
        clip = np.array(
            [numbers.setdefault(c, len(numbers)) for c in table["clip_id"].to_pylist()], int
        )
        frame = np.asarray(table["frame_index"].to_numpy(), int)
        parts = (np.full(len(ok), number), groups, rows, clip, frame)
        columns.append(tuple(part[ok].astype(np.int32) for part in parts))
    if not sum(len(part[0]) for part in columns):
        raise ArtifactError(f"{uri}: no frame with status ok; look at the clips table")
    file, group, row, clip, frame = (np.concatenate(c) for c in zip(*columns, strict=True))
    return FrameIndex(files, file, group, row, list(numbers), clip, frame)


def split_frames(uri: str, index: FrameIndex, holdout_fraction: float) -> Split:
    """Divide frames by identity when the `split` column allows, otherwise by time.

    Args:
        uri: The `clips` artifact.
        index: Its usable frames.
        holdout_fraction: Last part of each clip held out in `time_tail`.

    Raises:
        ArtifactError: If nothing is left to train on or to evaluate.
    """
    who: dict[str, tuple[str, str]] = {}
    for _, table in iter_files(uri, "clips", ["clip_id", "split", "identity_id"]):
        for row in table.to_pylist():
            who[row["clip_id"]] = (row["split"] or "", row["identity_id"] or "")
    sides = [who.get(clip_id, ("", ""))[0] for clip_id in index.clip_ids]
    people = [who.get(clip_id, ("", ""))[1] for clip_id in index.clip_ids]
    wanted = "val" if "val" in sides else "test"
    train = np.array([side == "train" for side in sides])
    val = np.array([side == wanted for side in sides])
    shared = {p for p, t in zip(people, train, strict=True) if t} & {
        p for p, v in zip(people, val, strict=True) if v
    }
    if train.any() and val.any() and not shared:
        split = Split("identity", index.select(train[index.clip]), index.select(val[index.clip]))
    else:
        late, guarded = _late_frames(index, holdout_fraction)
        split = Split("time_tail", index.select(~late & ~guarded), index.select(late))
    if not len(split.train) or not len(split.held_out):
        raise ArtifactError(
            f"{uri}: {len(split.train)} frames to train on and {len(split.held_out)} to evaluate "
            f"with data.holdout_fraction={holdout_fraction:g}; give more or longer clips"
        )
    return split


def _late_frames(index: FrameIndex, fraction: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which frames belong to the last part of their clip, and which lie just before it."""
    late, guarded = np.zeros(len(index), bool), np.zeros(len(index), bool)
    for clip in np.unique(index.clip):
        mine = np.flatnonzero(index.clip == clip)
        first, end = index.frame[mine].min(), index.frame[mine].max() + 1
        border = end - int(fraction * (end - first))
        late[mine] = index.frame[mine] >= border
        if late[mine].any():
            guarded[mine] = (index.frame[mine] >= border - GUARD_FRAMES) & ~late[mine]
    return late, guarded


class FrameReader:
    """Reads frames of an index from any thread; keeps the most recently used row groups.

    Args:
        uri: The `clips` artifact.
        files: Files of the frames table, as in the index.
        cache_row_groups: Row groups of encoded frames kept.
    """

    def __init__(self, uri: str, files: Sequence[str], cache_row_groups: int = 64):
        columns = ("image_jpeg", "landmarks_px")
        self._groups = RowGroups(Store(uri), files, columns, cache_row_groups)

    def read(self, index: FrameIndex, position: int) -> tuple[Picture, Array]:
        """Return a frame `[H, W, 3]` and its landmarks `[68, 2]`."""
        rows = self._groups.rows(int(index.file[position]), int(index.row_group[position]))
        jpeg, landmarks = rows[int(index.row[position])]
        return decode_jpeg(jpeg), np.asarray(landmarks, np.float64).reshape(-1, 2)


class FitReader:
    """Looks up fitted coefficients by clip and frame, from any thread.

    Args:
        uri: The `fits` artifact.
    """

    def __init__(self, uri: str):
        store, files = Store(uri), table_files(uri, "fits")
        self._groups = RowGroups(store, files, _FIT_COLUMNS, CACHED_FITS)
        # Per clip: file, then frame, row group and row of the good fits, by frame.
        self._places: dict[str, tuple[int, NDArray[np.int32]]] = {}
        for number, path in enumerate(files):
            table, groups, rows = _read_places(store, path, ["clip_id", "frame_index", "status"])
            clips = np.array(table["clip_id"].to_pylist(), object)
            frames = np.asarray(table["frame_index"].to_numpy(), int)
            places = np.stack([frames, groups, rows]).astype(np.int32)
            good = _usable(table)
            for clip_id in dict.fromkeys(clips.tolist()):
                mine = places[:, good & (clips == clip_id)]
                self._places[clip_id] = number, mine[:, np.argsort(mine[0])]

    def read(self, clip_id: str, frame: int) -> Coefficients | None:
        """Return one row of coefficients, or None if that frame has no good fit."""
        if clip_id not in self._places:
            return None
        file, (frames, groups, rows) = self._places[clip_id]
        place = int(np.searchsorted(frames, frame))
        if place == len(frames) or frames[place] != frame:
            return None
        values = self._groups.rows(file, int(groups[place]))[int(rows[place])]
        return Coefficients(*(torch.tensor(value).reshape(1, -1) for value in values))


class ReconFrames:
    """Aligned pictures, landmarks and fits of an index.

    Args:
        reader: Source of the frames.
        index: Frames of an epoch.
        size_px: S.
        augmentation: Random changes; none for evaluation.
        align: `published` is the original's whole-pixel crop, 224 px only.
        fits: Source of coefficients to train towards.
    """

    def __init__(
        self,
        reader: FrameReader,
        index: FrameIndex,
        *,
        size_px: int,
        augmentation: Augmentation | None = None,
        align: Align = "exact",
        fits: FitReader | None = None,
    ):
        self.index = index
        self._reader, self._size, self._align = reader, size_px, align
        self._augmentation, self._fits = augmentation, fits

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.index)

    def get(self, index: int, rng: np.random.Generator) -> Item:
        """Return one sample; the change is drawn from `rng`.

        Returns:
            image uint8 `[3, S, S]`, black outside the frame; inside bool `[S, S]`; landmarks
            `[68, 2]` pixels; with fits also fit `[257]`, fit_pose and fit_shape (0 or 1: whether
            these parts may be compared; a mirrored shape has no coefficients).
        """
        change = self._augmentation.draw(rng) if self._augmentation else Change()
        frame, landmarks = self._reader.read(self.index, index)
        image, inside, points, matrix = self._aligned(frame, landmarks, change)
        item: Item = {
            "image": np.ascontiguousarray(image.transpose(2, 0, 1)),
            "inside": inside,
            "landmarks": points.astype(np.float32),
        }
        if self._fits is not None:
            item |= self._fit(self._fits, index, matrix, frame.shape[0], change)
        return item

    def items(self) -> list[Item]:
        """Return every sample in order; for evaluation sets without random changes."""
        rng = np.random.default_rng(0)
        return [self.get(position, rng) for position in range(len(self))]

    def _aligned(
        self, frame: Picture, landmarks: Array, change: Change
    ) -> tuple[Picture, NDArray[np.bool_], Array, Array]:
        extra = change.matrix(self._size)
        if self._align == "exact":
            matrix = compose(extra, frame_to_input(landmarks, self._size))
            image, inside = crop(frame, matrix, self._size)
            return image, inside, move_landmarks(landmarks, matrix), matrix
        height, width = frame.shape[:2]
        alignment = published_alignment(landmarks, (width, height))
        yup = np.column_stack([landmarks[:, 0] - 0.5, height - landmarks[:, 1] - 0.5])
        points = alignment.landmarks_yup(yup)
        points = np.column_stack([points[:, 0] + 0.5, self._size - points[:, 1] - 0.5])
        matrix = compose(extra, published_matrix(alignment))
        inside = crop(frame, matrix, self._size)[1]
        image = crop(published_crop(frame, alignment), extra, self._size)[0]
        return image, inside, move_landmarks(points, extra), matrix

    def _fit(
        self, fits: FitReader, index: int, matrix: Array, frame_px: int, change: Change
    ) -> Item:
        clip_id = self.index.clip_ids[self.index.clip[index]]
        found = fits.read(clip_id, int(self.index.frame[index]))
        if found is None:
            packed = np.zeros(Coefficients.zeros(1).pack().shape[1], np.float32)
        else:
            map_ = torch.from_numpy(matrix).float()[None]
            moved = repose(found, map_, from_px=frame_px, to_px=self._size)
            packed = moved.pack()[0].numpy()
        known = np.float32(found is not None)
        shape = np.float32(found is not None and not change.flip)
        return {"fit": packed, "fit_pose": np.asarray(known), "fit_shape": np.asarray(shape)}


def stack_items(items: list[Item]) -> dict[str, torch.Tensor]:
    """Return a batch of samples as tensors."""
    return {name: torch.from_numpy(value) for name, value in collate(items).items()}


def mean_landmarks(dataset: ReconFrames, count: int) -> NDArray[np.float32]:
    """Return the mean landmarks `[68, 2]` of evenly spaced samples: the best constant guess."""
    places = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int)
    rng = np.random.default_rng(0)
    return np.mean([dataset.get(int(i), rng)["landmarks"] for i in places], axis=0)


def describe(split: Split) -> Mapping[str, Any]:
    """Return facts for the tracker and the model card."""
    return {
        "split": split.kind,
        "train_frames": len(split.train),
        "held_out_frames": len(split.held_out),
        "train_clips": len(np.unique(split.train.clip)),
        "held_out_clips": len(np.unique(split.held_out.clip)),
    }


def _read_places(
    store: Store, path: str, columns: list[str]
) -> tuple[pa.Table, NDArray[np.int64], NDArray[np.int64]]:
    """Return columns of a file with the row group of each row and its place within it."""
    with store.open_parquet(path) as parquet:
        sizes = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
        table = parquet.read(columns=columns)
    groups = np.repeat(np.arange(len(sizes)), sizes)
    rows = np.concatenate([np.arange(size) for size in sizes] or [np.empty(0, int)])
    return table, groups, rows


def _usable(table: pa.Table) -> NDArray[np.bool_]:
    return np.array([status == USABLE for status in table["status"].to_pylist()], bool)
