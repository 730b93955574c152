"""Landmarks of a sequence of frames, and the keypoint text files of the original tools."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nfs.face.protocols import Array


@dataclass(frozen=True)
class Keypoints:
    """Landmarks [T, 68, 2] in continuous pixels; valid [T] says where a face was seen.

    Where none was seen the landmarks are interpolated between the frames around (held at the
    ends), so they are always finite once any frame is valid; the score [T] is 0 there.
    """

    landmarks: Array
    valid: NDArray[np.bool_]
    score: Array


def write_keypoints(path: str | Path, landmarks: Array) -> None:
    """Write landmarks [T, 68, 2] as the text file of SadTalker's extractor (T * 68 * 2 numbers)."""
    np.savetxt(path, landmarks.reshape(-1))


def fill_gaps(points: Array, valid: NDArray[np.bool_]) -> Array:
    """Interpolate landmarks [T, 68, 2] over frames that are not valid [T]; held at the ends."""
    if valid.all() or not valid.any():
        return points
    frames, known = np.arange(len(points)), np.flatnonzero(valid)
    flat = points.reshape(len(points), -1)
    columns = [np.interp(frames, known, flat[known, c]) for c in range(flat.shape[1])]
    return np.stack(columns, axis=1).reshape(points.shape)
