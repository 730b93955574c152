"""Keypoints the way SadTalker's extractor gives them, and their export from clips.

The original tools count pixel centres: x = 0 is the middle of the first pixel. Arrays and text
files here follow them; everything else in nfs is continuous (0.5 more, docs/conventions.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from PIL import Image as PilImage

from nfs.artifacts.tables import iter_clips
from nfs.errors import ArtifactError
from nfs.face.detectors import build_detector
from nfs.face.keypoints import write_keypoints
from nfs.face.landmarks import build_landmarks
from nfs.face.protocols import NUM_LANDMARKS, Array, Image
from nfs.face.tracking import FaceTracker, TrackSettings
from nfs.media.images import apply_affine, invert_affine

_COLUMNS = ("landmarks_px", "crop_from_source", "detection_score", "status")

Picture = Image | PilImage.Image


class KeypointExtractor:
    """68 points of the largest face, frame by frame.

    A frame without a face repeats the points of the last one with a face; before the first all
    values are -1. Points are not rounded.

    Args:
        device: Torch device of the networks.
        detector: Face detector, see `build_detector`.
        landmarks: Landmark detector, see `build_landmarks`.
        detect_every: Frames between two looks of the detector.
    """

    def __init__(
        self,
        device: str = "cpu",
        *,
        detector: str = "mtcnn",
        landmarks: str = "dlib",
        detect_every: int = 25,
    ):
        self.detector = build_detector(detector, device)
        self.points = build_landmarks(landmarks, device)
        self.settings = TrackSettings(detect_every=detect_every)

    def extract_keypoint(
        self, images: Picture | Sequence[Picture], name: str | Path | None = None
    ) -> Array:
        """Return points [68, 2] of one picture, or [T, 68, 2] of the frames of a video in order.

        Args:
            images: RGB, uint8 [H, W, 3] or PIL.
            name: The points of a video are also written to this file, its suffix made `.txt`.
        """
        if isinstance(images, np.ndarray | PilImage.Image):
            return self._follow([images])[0]
        points = self._follow(images)
        if name is not None:
            write_keypoints(Path(name).with_suffix(".txt"), points)
        return points

    def _follow(self, images: Sequence[Picture]) -> Array:
        tracker = FaceTracker(self.detector, self.points, self.settings)
        result = np.full((len(images), NUM_LANDMARKS, 2), -1.0)
        for index, image in enumerate(images):
            seen = tracker.step(_array(image))
            if seen:
                result[index] = seen[0].landmarks[-1] - 0.5
            elif index > 0:
                result[index] = result[index - 1]
        return result


def export_keypoints(
    clips: str, folder: Path, *, kind: Literal["txt", "npz"], space: Literal["source", "crop"]
) -> int:
    """Write the landmarks of each usable clip as `<clip_id>.txt` or `.npz`; return how many.

    A text file holds T * 68 * 2 numbers as the original extractor writes them. An npz file holds
    `landmarks` [T, 68, 2] in the same coordinates, `valid` and `score` [T]. Frames without a face
    are interpolated.

    Args:
        clips: Artifact of `jobs.preprocess`.
        folder: Target, made if missing.
        kind: Kind of file.
        space: Pixels of the source video, or of the aligned crop.

    Raises:
        ArtifactError: If no clip has frames.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for clip_id, table in iter_clips(clips, "frames", _COLUMNS):
        points = _numbers(table, "landmarks_px").reshape(-1, NUM_LANDMARKS, 2)
        if space == "source":
            maps = _numbers(table, "crop_from_source").reshape(-1, 2, 3)
            points = apply_affine(invert_affine(maps), points)
        points = points - 0.5
        if kind == "txt":
            write_keypoints(folder / f"{clip_id}.txt", points)
        else:
            statuses = np.array(table["status"].to_pylist())
            scores = table["detection_score"].to_numpy()
            np.savez_compressed(
                folder / f"{clip_id}.npz",
                landmarks=points,
                valid=statuses != "no_face",
                score=scores,
            )
        count += 1
    if count == 0:
        raise ArtifactError(f"{clips}: no clip has frames; look at the statuses of the clips")
    return count


def _numbers(table: pa.Table, column: str) -> Array:
    values = table[column].combine_chunks().flatten()
    return np.asarray(values.to_numpy(zero_copy_only=False), np.float64)


def _array(image: Picture) -> Image:
    return np.asarray(image.convert("RGB")) if isinstance(image, PilImage.Image) else image
