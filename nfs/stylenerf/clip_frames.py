"""Aligned frames of a `clips` artifact as a source of images.

Only an index is held in memory; encoded frames are read one parquet row group at a time and a
bounded number of row groups is kept.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nfs.artifacts.image_shards import class_numbers
from nfs.artifacts.manifest import read_manifest
from nfs.artifacts.row_groups import RowGroups
from nfs.artifacts.store import Store
from nfs.artifacts.tables import iter_files, table_files
from nfs.errors import ArtifactError


@dataclass(frozen=True)
class FrameIndex:
    """Where each usable frame is: parallel arrays `[M]`."""

    files: list[str]
    """Relative paths of the frames table."""
    file: NDArray[np.int32]
    """Index into `files`."""
    row_group: NDArray[np.int32]
    """Row group within the file."""
    row: NDArray[np.int32]
    """Row within the row group."""
    clip: NDArray[np.int32]
    """Index into `clip_ids`."""
    frame: NDArray[np.int32]
    """Frame number within the clip."""
    clip_ids: list[str]
    """Names of clips."""

    def __len__(self) -> int:
        return len(self.file)

    def key(self, number: int) -> tuple[str, int]:
        """Return clip and frame number."""
        return self.clip_ids[self.clip[number]], int(self.frame[number])


def index_frames(
    uri: str, *, split: str | None = None, max_frames_per_clip: int | None = None
) -> FrameIndex:
    """Find the frames with status `ok`.

    Args:
        uri: Artifact of `jobs.preprocess`.
        split: Keep clips with this value of `split`; None keeps all.
        max_frames_per_clip: Evenly spaced frames kept of each clip; None keeps all.

    Raises:
        ArtifactError: If nothing is left.
    """
    keep = None if split is None else _clips_of_split(uri, split)
    store, files = Store(uri), table_files(uri, "frames")
    found: list[tuple[NDArray[np.int32], ...]] = []
    numbers: dict[str, int] = {}
    for number, path in enumerate(files):
        with store.open_parquet(path) as parquet:
            sizes = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
            table = parquet.read(columns=["clip_id", "frame_index", "status"])
        groups = np.repeat(np.arange(len(sizes)), sizes)
        rows = np.concatenate([np.arange(size) for size in sizes] or [np.empty(0, int)])
        clip_ids = np.asarray(table["clip_id"].to_pylist(), dtype=object)
        chosen = np.asarray(table["status"].to_pylist(), dtype=object) == "ok"
        if keep is not None:
            chosen &= np.asarray([clip_id in keep for clip_id in clip_ids], dtype=bool)
        positions = _spread(np.flatnonzero(chosen), clip_ids, max_frames_per_clip)
        file = np.full(len(positions), number)
        frame = table["frame_index"].to_numpy()[positions]
        clip = np.asarray([numbers.setdefault(c, len(numbers)) for c in clip_ids[positions]], int)
        columns = (file, groups[positions], rows[positions], clip, frame)
        found.append(tuple(column.astype(np.int32) for column in columns))
    if not sum(len(part[0]) for part in found):
        where = "" if split is None else f" in split {split!r}"
        raise ArtifactError(f"{uri}: no frame with status ok{where}; look at the clips table")
    file, group, row, clip, frame = (np.concatenate(part) for part in zip(*found, strict=True))
    return FrameIndex(files, file, group, row, clip, frame, list(numbers))


class ClipFrames:
    """Encoded frames of a frame index.

    Args:
        uri: Artifact of `jobs.preprocess`.
        index: Usable frames; None finds them all.
        cache_row_groups: Row groups of encoded frames kept.
    """

    def __init__(
        self, uri: str, index: FrameIndex | None = None, *, cache_row_groups: int = 64
    ) -> None:
        read_manifest(uri, kind="clips")
        self.uri = uri
        self.index = index_frames(uri) if index is None else index
        self.groups = RowGroups(Store(uri), self.index.files, ["image_jpeg"], cache_row_groups)

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.index)

    def name(self, number: int) -> str:
        """Return clip and frame, for messages."""
        clip_id, frame = self.index.key(number)
        return f"{clip_id}:{frame}"

    def read(self, number: int) -> bytes:
        """Return an encoded frame."""
        group = (int(self.index.file[number]), int(self.index.row_group[number]))
        data: bytes = self.groups.rows(*group)[int(self.index.row[number])][0]
        return data

    def labels(self) -> NDArray[np.int64]:
        """Return the number of each frame's identity, in the order of their names."""
        identity: dict[str, str] = {}
        for _, table in iter_files(self.uri, "clips", ["clip_id", "identity_id"]):
            identity.update(zip(*(table[c].to_pylist() for c in table.column_names), strict=True))
        names = pa.array([identity.get(clip_id) for clip_id in self.index.clip_ids], pa.string())
        return class_numbers(names, f"{self.uri}: identity_id")[0][self.index.clip]


def _clips_of_split(uri: str, split: str) -> set[str]:
    clips: set[str] = set()
    for _, table in iter_files(uri, "clips", ["clip_id", "split"]):
        rows = zip(table["clip_id"].to_pylist(), table["split"].to_pylist(), strict=True)
        clips.update(clip_id for clip_id, value in rows if value == split)
    return clips


def _spread(
    positions: NDArray[np.intp], clip_ids: NDArray[np.object_], limit: int | None
) -> NDArray[np.intp]:
    if limit is None or not len(positions):
        return positions
    by_clip: dict[str, list[int]] = {}
    for position in positions.tolist():
        by_clip.setdefault(clip_ids[position], []).append(position)
    kept = []
    for mine in by_clip.values():
        take = np.linspace(0, len(mine) - 1, min(limit, len(mine))).round().astype(int)
        kept.append(np.asarray(mine)[take])
    return np.concatenate(kept)
