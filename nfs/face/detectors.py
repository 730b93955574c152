"""Face detectors by name; MTCNN (facenet-pytorch, weights inside its wheel) and dlib's HOG."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image as PilImage

from nfs.errors import InputError
from nfs.face.protocols import (
    Array,
    Detections,
    FaceDetector,
    FaceFrame,
    Image,
    sorted_by_height,
)

_MIN_FACE_PX = 20
# dlib's detector sees faces from 80 px; its score is a margin, 0 at its own threshold.
_HOG_FACE_PX = 80
_HOG_SCALE = 0.5


class MtcnnDetector:
    """MTCNN on a reduced picture (about 55 CPU-ms at 640 px).

    Args:
        device: Torch device.
        max_side_px: Pictures are reduced to this longer side first.
        min_face_fraction: Smallest face height, relative to the shorter side of the picture.
        min_score: Least score of a face.
    """

    def __init__(
        self,
        device: str = "cpu",
        max_side_px: int = 640,
        min_face_fraction: float = 0.12,
        min_score: float = 0.9,
    ):
        import torch
        from facenet_pytorch import MTCNN

        self.net = MTCNN(keep_all=True, device=torch.device(device)).eval()
        self.max_side_px, self.min_face_fraction = max_side_px, min_face_fraction
        self.min_score = min_score

    def detect(self, images: Sequence[Image]) -> list[Detections]:
        """Return the faces of each picture; consecutive pictures of one size run as one batch."""
        results: list[Detections] = []
        start = 0
        for end in range(1, len(images) + 1):
            if end == len(images) or images[end].shape != images[start].shape:
                results += self._detect_batch(images[start:end])
                start = end
        return results

    def _detect_batch(self, images: Sequence[Image]) -> list[Detections]:
        small, scale = zip(*(shrink(image, self.max_side_px) for image in images), strict=True)
        shorter = min(small[0].shape[:2])
        smallest = max(_MIN_FACE_PX, int(self.min_face_fraction * shorter))
        if shorter < smallest:
            return [_none()] * len(images)
        self.net.min_face_size = smallest
        boxes, scores = self.net.detect(np.stack(small))
        found = zip(boxes, scores, scale, strict=True)
        return [_none() if b is None else self._kept(b, s, factor) for b, s, factor in found]

    def _kept(self, boxes: Array, scores: Array, factor: float) -> Detections:
        boxes, scores = np.asarray(boxes, np.float64), np.asarray(scores, np.float64)
        keep = scores >= self.min_score
        # MTCNN counts pixel centres: half a pixel to continuous coordinates
        return sorted_by_height((boxes[keep] + 0.5) / factor, scores[keep])


class DlibDetector:
    """dlib's HOG detector for frontal faces (needs no weights file).

    Args:
        max_side_px: Pictures are reduced to this longer side first.
        min_face_fraction: Smallest face height, relative to the shorter side of the picture.
    """

    def __init__(self, max_side_px: int = 640, min_face_fraction: float = 0.12):
        import dlib

        self.net = dlib.get_frontal_face_detector()
        self.max_side_px, self.min_face_fraction = max_side_px, min_face_fraction

    def detect(self, images: Sequence[Image]) -> list[Detections]:
        """Return the faces of each picture, with scores mapped to [0, 1]."""
        return [self._detect_one(image) for image in images]

    def _detect_one(self, image: Image) -> Detections:
        small, factor = shrink(image, self.max_side_px)
        smallest = self.min_face_fraction * min(small.shape[:2])
        upsample = 1 if smallest < _HOG_FACE_PX else 0
        rectangles, margins, _ = self.net.run(small, upsample, 0.0)
        if len(rectangles) == 0:
            return _none()
        squares = [(r.left(), r.top(), r.right() + 1, r.bottom() + 1) for r in rectangles]
        boxes = np.stack([dlib_to_box(np.array(s, np.float64)) for s in squares]) / factor
        return sorted_by_height(
            boxes, 1.0 - np.exp(-np.maximum(np.array(margins), 0.0) / _HOG_SCALE)
        )


def dlib_to_box(square: Array) -> Array:
    """Convert dlib's square (x1, y1, x2, y2) to a face box [4]."""
    centre = (square[:2] + square[2:]) / 2
    return FaceFrame(centre, float(square[2] - square[0]), 0.0).box()


def shrink(image: Image, max_side_px: int) -> tuple[Image, float]:
    """Return the picture reduced to a longest side, and the factor by which it was reduced."""
    factor = max_side_px / max(image.shape[:2])
    if factor >= 1.0:
        return image, 1.0
    height, width = (max(round(side * factor), 1) for side in image.shape[:2])
    picture = PilImage.fromarray(image)
    reduced = picture.resize((width, height), PilImage.Resampling.BILINEAR, reducing_gap=2.0)
    return np.asarray(reduced), factor


def build_detector(name: str, device: str = "cpu", min_face_fraction: float = 0.12) -> FaceDetector:
    """Return a face detector by name: `mtcnn`, `mediapipe` or `dlib`.

    Raises:
        InputError: If the name is unknown or its network cannot be had.
    """
    if name == "mtcnn":
        return MtcnnDetector(device, min_face_fraction=min_face_fraction)
    if name == "dlib":
        return DlibDetector(min_face_fraction=min_face_fraction)
    if name == "mediapipe":
        from nfs.face.mediapipe import MediapipeDetector

        return MediapipeDetector(device, min_face_fraction)
    raise InputError(f"detector={name!r} is not known; use mtcnn, mediapipe or dlib")


def _none() -> Detections:
    return Detections(np.zeros((0, 4)), np.zeros(0))
