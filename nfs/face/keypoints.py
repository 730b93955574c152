"""Landmarks of a sequence of frames, and the keypoint text files of the original tools."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nfs.face.protocols import NUM_LANDMARKS, Array, Image
from nfs.face.tracking import FaceTracker


@dataclass(frozen=True)
class Keypoints:
    """Landmarks [T, 68, 2] in continuous pixels; valid [T] says where a face was seen.

    Where none was seen the landmarks are interpolated between the frames around (held at the
    ends), so they are always finite once any frame is valid; the score [T] is 0 there.
    """

    landmarks: Array
    valid: NDArray[np.bool_]
    score: Array


def extract_keypoints(images: Iterable[Image], tracker: FaceTracker) -> Keypoints:
    """Follow one face through frames uint8 RGB [H, W, 3], which are not kept.

    Args:
        images: Frames in order; a single picture is a list of one.
        tracker: A fresh tracker.
    """
    faces = [tracker.step(image) for image in images]
    valid = np.array([face.landmarks is not None for face in faces], bool)
    points = np.full((len(faces), NUM_LANDMARKS, 2), -1.0)
    for index, face in enumerate(faces):
        if face.landmarks is not None:
            points[index] = face.landmarks
    score = np.array([face.score if face.landmarks is not None else 0.0 for face in faces])
    return Keypoints(_fill_gaps(points, valid), valid, score)


def write_keypoints(path: str | Path, landmarks: Array) -> None:
    """Write landmarks [T, 68, 2] as the text file of SadTalker's extractor (T * 68 * 2 numbers)."""
    np.savetxt(path, landmarks.reshape(-1))


def _fill_gaps(points: Array, valid: NDArray[np.bool_]) -> Array:
    if valid.all() or not valid.any():
        return points
    frames, known = np.arange(len(points)), np.flatnonzero(valid)
    flat = points.reshape(len(points), -1)
    columns = [np.interp(frames, known, flat[known, c]) for c in range(flat.shape[1])]
    return np.stack(columns, axis=1).reshape(points.shape)
