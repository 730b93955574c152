"""Reading the frames of a person: pixels from `clips`, poses and coefficients from `fits`.

Legend: T frames, H side of the generator's image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from nfs.artifacts import Store, read_manifest
from nfs.artifacts.tables import iter_clips, table_files
from nfs.errors import InputError
from nfs.inversion.cameras import fitted_cameras
from nfs.inversion.selection import Candidates, choose_frames
from nfs.media.images import decode_jpeg, to_float
from nfs.morphable.coefficients import Coefficients

_FIT_COLUMNS = {
    "identity": "identity",
    "expression": "expression",
    "texture": "texture",
    "rotation": "rotation_rad",
    "translation": "translation",
    "lighting": "lighting",
}


@dataclass(frozen=True)
class Frames:
    """Frames of one person with their cameras and fits.

    Attributes:
        images: `[T, 3, H, H]` in [-1, 1].
        cam2world: `[T, 4, 4]`.
        coefficients: T rows.
        frame_indices: T frame numbers in the clip.
        clip_id: The clip.
        model_id: Name of the face model of the fits.
        model_checksum: Its checksum.
    """

    images: Tensor
    cam2world: Tensor
    coefficients: Coefficients
    frame_indices: list[int]
    clip_id: str
    model_id: str
    model_checksum: str

    def __len__(self) -> int:
        """Return T."""
        return len(self.frame_indices)

    def subset(self, rows: Sequence[int]) -> Frames:
        """Return some frames."""
        chosen = torch.tensor(list(rows), dtype=torch.long)
        return Frames(
            self.images[chosen],
            self.cam2world[chosen],
            self.coefficients[chosen],
            [self.frame_indices[row] for row in rows],
            self.clip_id,
            self.model_id,
            self.model_checksum,
        )


def load_frames(
    clips: str,
    fits: str,
    *,
    clip_id: str | None,
    size_px: int,
    num_frames: int,
    num_held_out: int = 0,
    fov_deg: float = 12.0,
) -> tuple[Frames, Frames | None]:
    """Choose and read frames of a clip: those to fit (reference first) and held-out ones.

    Args:
        clips: Artifact of `jobs.preprocess`.
        fits: Artifact of `jobs.fit_3dmm` over these clips.
        clip_id: The clip; None = the first one with usable frames.
        size_px: H.
        num_frames: Frames to fit; fewer when the clip has fewer.
        num_held_out: Frames for measurement only.
        fov_deg: Field of view of the generator's camera.

    Raises:
        InputError: If there is no such clip, or none with usable frames.
    """
    manifest = read_manifest(fits, kind="fits")
    name, rows = _fit_rows(fits, clip_id)
    landmarks = _landmarks(clips, name)
    usable = [row for row in rows.to_pylist() if row["frame_index"] in landmarks]
    if not usable:
        raise InputError(
            f"clip_id={name}: no frame has both landmarks ({clips}) and a fit ({fits}) with status "
            "ok; choose another clip"
        )
    usable.sort(key=lambda row: row["frame_index"])
    candidates = Candidates(
        np.array([landmarks[row["frame_index"]] for row in usable]),
        np.array([row["rotation_rad"] for row in usable]),
        np.array([row["frame_index"] for row in usable]),
    )
    fitted = choose_frames(candidates, num_frames)
    held_out = choose_frames(candidates, num_held_out, exclude=fitted) if num_held_out else []
    chosen = [usable[row] for row in [*fitted, *held_out]]
    coefficients = _coefficients(chosen)
    frames = Frames(
        _images(clips, name, [row["frame_index"] for row in chosen], size_px),
        fitted_cameras(coefficients, fov_deg=fov_deg),
        coefficients,
        [row["frame_index"] for row in chosen],
        name,
        *face_model_of(manifest.extra),
    )
    count = len(fitted)
    rest = range(count, len(frames))
    return frames.subset(range(count)), frames.subset(rest) if rest else None


def face_model_of(extra: Mapping[str, object]) -> tuple[str, str]:
    """Return name and checksum of the face model from the manifest of fits."""
    return str(extra.get("model", "unknown")), str(extra.get("model_checksum", "unknown"))


def resize_images(images: NDArray[np.uint8], size_px: int) -> Tensor:
    """Return uint8 `[T, h, h, 3]` as `[T, 3, H, H]` in [-1, 1], antialiased."""
    floats = to_float(images)
    if floats.shape[-1] == size_px:
        return floats
    resized = functional.interpolate(
        floats, size=(size_px, size_px), mode="bicubic", antialias=True, align_corners=False
    )
    return resized.clamp(-1, 1)


def _fit_rows(fits: str, clip_id: str | None) -> tuple[str, pa.Table]:
    seen: list[str] = []
    columns = ["frame_index", "status", *_FIT_COLUMNS.values()]
    for name, rows in iter_clips(fits, "fits", columns):
        seen.append(name)
        good = rows.filter(pc.equal(rows["status"], "ok"))
        if clip_id == name or (clip_id is None and good.num_rows):
            return name, good
    wanted = "with usable frames" if clip_id is None else f"called {clip_id!r}"
    raise InputError(f"{fits}: no clip {wanted}; clips there: {', '.join(seen[:8]) or 'none'}")


def _landmarks(clips: str, clip_id: str) -> dict[int, NDArray[np.float64]]:
    columns = ["clip_id", "frame_index", "landmarks_px", "status"]
    store = Store(clips)
    found: dict[int, NDArray[np.float64]] = {}
    for path in table_files(clips, "frames"):
        with store.open_parquet(path) as parquet:
            table = parquet.read(columns=columns)
        for row in table.filter(pc.equal(table["clip_id"], clip_id)).to_pylist():
            if row["status"] == "ok":
                points = np.array(row["landmarks_px"], np.float64)
                found[row["frame_index"]] = points.reshape(-1, 2)
    return found


def _images(clips: str, clip_id: str, frame_indices: list[int], size_px: int) -> Tensor:
    """Decode some frames; only the row groups that hold them are read."""
    store = Store(clips)
    pictures: dict[int, NDArray[np.uint8]] = {}
    for path in table_files(clips, "frames"):
        with store.open_parquet(path) as parquet:
            for group in range(parquet.num_row_groups):
                keys = parquet.read_row_group(group, columns=["clip_id", "frame_index"]).to_pylist()
                rows = [
                    (at, key["frame_index"])
                    for at, key in enumerate(keys)
                    if key["clip_id"] == clip_id and key["frame_index"] in frame_indices
                ]
                if rows:
                    data = parquet.read_row_group(group, columns=["image_jpeg"])["image_jpeg"]
                    for at, index in rows:
                        pictures[index] = decode_jpeg(data[at].as_py())
    return torch.cat([resize_images(pictures[i][None], size_px) for i in frame_indices])


def _coefficients(rows: list[dict[str, list[float]]]) -> Coefficients:
    parts = {
        name: torch.tensor([row[column] for row in rows], dtype=torch.float32)
        for name, column in _FIT_COLUMNS.items()
    }
    return Coefficients(**parts)
