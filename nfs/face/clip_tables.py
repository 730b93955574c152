"""Rows of the tables `clips`, `frames` and `audio` for one clip (architecture.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nfs.artifacts.schemas import AUDIO, CLIPS, FRAMES
from nfs.config.preprocess import QualityConfig
from nfs.face.keypoints import Keypoints
from nfs.face.protocols import Array
from nfs.face.quality import PictureQuality
from nfs.media.images import apply_affine
from nfs.media.video import VideoInfo

_MEASURES = ("face_height_px", "yaw_deg", "pitch_deg", "blur", "exposure", "clipped", "occlusion")


@dataclass
class ClipFrames:
    """Frames of a clip while they are cut out: maps [T, 2, 3], pictures, measures of faces."""

    keypoints: Keypoints
    matrices: Array
    heights_px: NDArray[np.float64]
    pose_deg: Array
    pictures: list[bytes]
    quality: list[PictureQuality | None]

    def measures(self) -> dict[str, NDArray[np.float64]]:
        """Return each measure [T]; NaN in frames without a face."""
        known = [
            PictureQuality(np.nan, np.nan, np.nan, np.nan) if q is None else q for q in self.quality
        ]
        values = {
            "face_height_px": self.heights_px,
            "yaw_deg": self.pose_deg[:, 0],
            "pitch_deg": self.pose_deg[:, 1],
            "blur": np.array([q.blur for q in known]),
            "exposure": np.array([q.exposure for q in known]),
            "clipped": np.array([q.clipped for q in known]),
            "occlusion": np.array([q.occlusion for q in known]),
        }
        return {n: np.where(self.keypoints.valid, v, np.nan) for n, v in values.items()}


def frame_statuses(frames: ClipFrames, limits: QualityConfig) -> list[str]:
    """Return the status of each frame: `ok`, or the first reason against it."""
    values = frames.measures()
    reasons = (
        ("no_face", ~frames.keypoints.valid),
        ("small_face", _below(values["face_height_px"], limits.min_face_height_px)),
        ("turned", _above(np.abs(values["yaw_deg"]), limits.max_yaw_deg)),
        ("turned", _above(np.abs(values["pitch_deg"]), limits.max_pitch_deg)),
        ("blurred", _above(values["blur"], limits.max_blur)),
        ("badly_exposed", _below(values["exposure"], limits.min_exposure)),
        ("badly_exposed", _above(values["exposure"], limits.max_exposure)),
        ("badly_exposed", _above(values["clipped"], limits.max_clipped)),
        ("occluded", _above(values["occlusion"], limits.max_occlusion)),
    )
    statuses = ["ok"] * len(frames.pictures)
    for reason, holds in reversed(reasons):
        for index in np.flatnonzero(holds):
            statuses[index] = reason
    return statuses


def frames_table(
    clip_id: str, frames: ClipFrames, statuses: Sequence[str], fps: float, size_px: int
) -> pa.Table:
    """Return the rows of `frames`."""
    count, values = len(statuses), frames.measures()
    landmarks = apply_affine(frames.matrices, frames.keypoints.landmarks)
    columns = [
        [clip_id] * count,
        np.arange(count, dtype=np.int32),
        np.arange(count) / fps,
        pa.array(frames.pictures, pa.binary()),
        np.full(count, size_px, np.int32),
        _fixed_lists(landmarks),
        _fixed_lists(frames.matrices),
        frames.keypoints.score.astype(np.float32),
        list(statuses),
        *(_floats(values[name]) for name in _MEASURES),
    ]
    return pa.table(columns, schema=FRAMES)


def frame_summary(frames: ClipFrames, statuses: Sequence[str]) -> dict[str, Any]:
    """Return the columns of `clips` that sum up its frames."""
    values = frames.measures()
    seen = frames.keypoints.valid
    medians = {name: float(np.median(np.abs(values[name][seen]))) for name in _MEASURES}
    return {**medians, "frame_statuses": sorted(Counter(statuses).items())}


def audio_table(
    clip_id: str, samples: NDArray[np.float32], mel: NDArray[np.float32], sample_rate_hz: int
) -> pa.Table:
    """Return the row of `audio`: samples [N] in [-1, 1] and mel [80, T]."""
    row = {
        "clip_id": clip_id,
        "sample_rate_hz": sample_rate_hz,
        "samples": np.round(samples * 32767.0).astype("<i2").tobytes(),
        "mel": np.ascontiguousarray(mel.T, np.float32).ravel(),
        "num_mel_frames": mel.shape[1],
    }
    return pa.Table.from_pylist([row], schema=AUDIO)


def clip_row(
    item: Mapping[str, Any], info: VideoInfo | None, row: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a row of `clips`: what the item and its file say, then `row`."""
    known = {
        **{name: item[name] for name in ("clip_id", "source_uri", "source_sha256")},
        **{name: item[name] for name in ("identity_id", "split")},
        "fps": 0.0,
        "num_frames": 0,
        "duration_s": 0.0,
        "width_px": info.width_px if info else 0,
        "height_px": info.height_px if info else 0,
        "has_audio": False,
        "av_offset_s": None,
        "status": "ok",
        "error": "",
        "source_start_s": float(item.get("start_s") or 0.0),
        "source_end_s": item.get("end_s"),
        "num_faces": None,
        "av_corrected_s": 0.0,
        "label": item.get("label"),
    }
    photo = {"duration_s": 0.0} if info is not None and info.is_photo else {}
    return {**known, **row, **photo}


def clips_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Return rows of `clips` as a table."""
    return pa.Table.from_pylist([dict(row) for row in rows], schema=CLIPS)


def _below(values: NDArray[np.float64], limit: float | None) -> NDArray[np.bool_]:
    return np.zeros(len(values), bool) if limit is None else values < limit


def _above(values: NDArray[np.float64], limit: float | None) -> NDArray[np.bool_]:
    return np.zeros(len(values), bool) if limit is None else values > limit


def _floats(values: NDArray[np.float64]) -> pa.Array:
    return pa.array(values.astype(np.float32), from_pandas=True)


def _fixed_lists(values: Array) -> pa.Array:
    flat = np.ascontiguousarray(values, np.float32).reshape(len(values), -1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])
