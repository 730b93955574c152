"""What a face detector and a landmark detector are, and the boxes they exchange.

A face box is (x1, y1, x2, y2) in continuous pixels, y down, tight around the face from the
forehead to the chin (as MTCNN draws it); detectors with another habit convert at their border.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Array = NDArray[np.float64]

NUM_LANDMARKS = 68
# dlib's square beside other measures, medians over 15 photographs and frames:
# the face box is 1.33 times as high and 0.965 times as wide, its centre 0.078 sides higher;
# its side is 2.67 times the rms radius of the 68 points, its centre 0.148 rms above their mean.
_BOX_HEIGHT, _BOX_WIDTH, _BOX_RISE = 1.33, 0.965, 0.078
WIDTH_PER_HEIGHT = _BOX_WIDTH / _BOX_HEIGHT
"""Of a face box."""
_SIDE_PER_RMS, _RISE_PER_RMS = 2.67, 0.148


@dataclass(frozen=True)
class Detections:
    """Faces of one picture, largest first: boxes [N, 4], scores [N] in [0, 1]."""

    boxes: Array
    scores: Array

    def __len__(self) -> int:
        return len(self.boxes)


def sorted_by_height(boxes: Array, scores: Array) -> Detections:
    """Return faces, boxes [N, 4] and scores [N], with the highest box first."""
    order = np.argsort(-(boxes[:, 3] - boxes[:, 1]), kind="stable")
    return Detections(boxes[order], scores[order])


class FaceDetector(Protocol):
    """Finds faces."""

    def detect(self, images: Sequence[Image]) -> list[Detections]:
        """Return the faces of each picture uint8 RGB [H, W, 3]; sizes may differ."""
        ...


class LandmarkDetector(Protocol):
    """Finds the 68 iBUG points of faces whose place is roughly known."""

    def landmarks(self, image: Image, boxes: Array) -> tuple[Array, Array]:
        """Return points [N, 68, 2] in continuous pixels and scores [N] in [0, 1] for N boxes.

        The score says how sure it is that there is a face; below 0.5 the points are unusable.
        """
        ...

    def follow(self, image: Image, previous: Array) -> tuple[Array, float]:
        """Return points [68, 2] and score near the points [68, 2] of the previous frame."""
        ...


class FrameLandmarks(LandmarkDetector, Protocol):
    """A landmark detector that also takes many pictures at once."""

    def landmarks_of_frames(self, images: Sequence[Image], boxes: Array) -> tuple[Array, Array]:
        """Return points [N, 68, 2] and scores [N] for one box [N, 4] in each of N pictures."""
        ...


@dataclass(frozen=True)
class FaceFrame:
    """The upright square that dlib's detector would draw: centre (2,), side, roll of the face."""

    centre: Array
    side_px: float
    roll_rad: float

    def crop_from_source(self, size_px: int, side_px: float) -> Array:
        """Return the transform [2, 3] to a square picture with this frame centred, upright.

        Args:
            size_px: Side of the picture.
            side_px: Side of the frame inside it.
        """
        scale = side_px / self.side_px
        cosine, sine = scale * np.cos(self.roll_rad), scale * np.sin(self.roll_rad)
        linear = np.array([[cosine, sine], [-sine, cosine]])
        offset = size_px / 2 - linear @ self.centre
        return np.column_stack([linear, offset])

    def box(self) -> Array:
        """Return the face box [4] (axis-aligned, roll ignored)."""
        half = self.side_px / 2 * np.array([_BOX_WIDTH, _BOX_HEIGHT])
        centre = self.centre - np.array([0.0, _BOX_RISE * self.side_px])
        return np.concatenate([centre - half, centre + half])


def frame_from_box(box: Array) -> FaceFrame:
    """Return the square that belongs to a face box [4]."""
    side = float(max((box[3] - box[1]) / _BOX_HEIGHT, 1.0))
    centre = (box[:2] + box[2:]) / 2 + np.array([0.0, _BOX_RISE * side])
    return FaceFrame(centre, side, 0.0)


def frame_from_landmarks(points: Array) -> FaceFrame:
    """Return the square that belongs to landmarks [68, 2]."""
    mean = points.mean(axis=0)
    rms = float(np.sqrt(((points - mean) ** 2).sum(axis=-1).mean()))
    across = points[42:48].mean(axis=0) - points[36:42].mean(axis=0)
    roll = float(np.arctan2(across[1], across[0]))
    up = np.array([np.sin(roll), -np.cos(roll)])
    return FaceFrame(mean + up * _RISE_PER_RMS * rms, max(_SIDE_PER_RMS * rms, 1.0), roll)


def overlap(box: Array, boxes: Array) -> Array:
    """Return the intersection over union [N] of a box [4] with boxes [N, 4]."""
    low = np.maximum(box[:2], boxes[:, :2])
    high = np.minimum(box[2:], boxes[:, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=-1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=-1) + np.prod(box[2:] - box[:2])
    return np.asarray(shared / np.maximum(areas - shared, 1e-9))
