"""Aligned frames of a `clips` artifact as random-access training images.

Only an index is held in memory; encoded frames are read one parquet row group at a time and a
bounded number of row groups is kept.
"""

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nfs.artifacts.store import Store
from nfs.artifacts.tables import iter_files, table_files
from nfs.errors import ArtifactError
from nfs.media.images import decode_jpeg
from nfs.stylenerf.warm_start import LinearEncoder


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
    keys: list[tuple[str, int]]
    """Clip and frame number."""

    def __len__(self) -> int:
        return len(self.file)


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
    keys: list[tuple[str, int]] = []
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
        frames = table["frame_index"].to_pylist()
        keys.extend((str(clip_ids[i]), frames[i]) for i in positions)
        found.append(tuple(a.astype(np.int32) for a in (file, groups[positions], rows[positions])))
    if not sum(len(part[0]) for part in found):
        where = "" if split is None else f" in split {split!r}"
        raise ArtifactError(f"{uri}: no frame with status ok{where}; look at the clips table")
    file, row_group, row = (np.concatenate(column) for column in zip(*found, strict=True))
    return FrameIndex(files, file, row_group, row, keys)


class FrameImages:
    """Images of a frame index, resized and mirrored; a `MapDataset`.

    Args:
        uri: Artifact of `jobs.preprocess`.
        index: Usable frames.
        resolution: Pixels per side.
        mirror: Flip half of the images.
        cache_row_groups: Row groups of encoded frames kept.
    """

    encoder: LinearEncoder | None = None
    """Adds a `code` to every item."""
    angles: NDArray[np.float32] | None = None
    """`[M, 2]`: adds the `yaw_pitch` of its camera to every item."""

    def __init__(
        self,
        uri: str,
        index: FrameIndex,
        *,
        resolution: int,
        mirror: bool = True,
        cache_row_groups: int = 64,
    ) -> None:
        self.store = Store(uri)
        self.index = index
        self.resolution = resolution
        self.mirror = mirror
        self.cache_row_groups = cache_row_groups
        self._cache: OrderedDict[tuple[int, int], list[bytes]] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.index)

    def get(self, index: int, rng: np.random.Generator) -> dict[str, NDArray[np.generic]]:
        """Return `image` uint8 `[3, R, R]`, and where set up, `code [z_dim]` and `yaw_pitch [2]`.

        The flip is drawn from `rng`; a mirrored head is seen from the mirrored yaw.
        """
        pixels = self.pixels(index)
        mirrored = self.mirror and rng.random() < 0.5
        if mirrored:
            pixels = np.ascontiguousarray(pixels[:, ::-1])
        item: dict[str, NDArray[np.generic]] = {
            "image": np.ascontiguousarray(pixels.transpose(2, 0, 1))
        }
        if self.encoder is not None:
            item["code"] = self.encoder.encode(pixels, rng)
        if self.angles is not None:
            yaw, pitch = self.angles[index]
            item["yaw_pitch"] = np.asarray([-yaw if mirrored else yaw, pitch], np.float32)
        return item

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """Return an image as stored, resized: uint8 `[R, R, 3]`."""
        frames = self._row_group(int(self.index.file[index]), int(self.index.row_group[index]))
        pixels = decode_jpeg(frames[int(self.index.row[index])])
        size = (self.resolution, self.resolution)
        if pixels.shape[:2] != size:
            pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
        return pixels

    def _row_group(self, file: int, group: int) -> list[bytes]:
        key = (file, group)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        with self.store.open_parquet(self.index.files[file]) as parquet:
            frames = parquet.read_row_group(group, columns=["image_jpeg"])["image_jpeg"].to_pylist()
        self._cache[key] = frames
        if len(self._cache) > self.cache_row_groups:
            self._cache.popitem(last=False)
        return self._cache[key]


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
    kept = []
    for clip_id in dict.fromkeys(clip_ids[positions]):
        mine = positions[clip_ids[positions] == clip_id]
        take = np.linspace(0, len(mine) - 1, min(limit, len(mine))).round().astype(int)
        kept.append(mine[take])
    return np.concatenate(kept)
