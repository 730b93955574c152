"""One photo instead of a clip: found, aligned and fitted here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from nfs.errors import ClipError, InputError
from nfs.face.align import ffhq_square
from nfs.face.detectors import build_detector
from nfs.face.landmarks import build_landmarks
from nfs.inversion.cameras import fitted_cameras
from nfs.inversion.frames import Frames, resize_images
from nfs.media.images import apply_affine, read_photo, warp_affine
from nfs.morphable.landmark_fit import fit_landmarks
from nfs.morphable.loading import load_model

CROP_SIZE_PX = 512
MIN_LANDMARK_SCORE = 0.5


def portrait_frames(
    path: str,
    *,
    model_spec: str,
    size_px: int,
    fov_deg: float = 12.0,
    detector: str = "mtcnn",
    landmarks: str = "dlib",
) -> Frames:
    """Return one frame made from the largest face of a photo.

    The face is cut out with the FFHQ crop, as `jobs.preprocess` does, and the face model is fitted
    to its 68 landmarks.

    Args:
        path: Photo file.
        model_spec: Face model, see `nfs.morphable.load_model`.
        size_px: Side of the generator's image.
        fov_deg: Field of view of the generator's camera.
        detector: Face detector.
        landmarks: Landmark detector.

    Raises:
        InputError: If the file is not a picture or shows no face.
    """
    try:
        image = read_photo(path)
    except ClipError as error:
        raise InputError(f"portrait: {error}") from None
    found = build_detector(detector).detect([image])[0]
    if not len(found):
        raise InputError(f"portrait={path}: no face found; use a photo with a large, frontal face")
    points, scores = build_landmarks(landmarks).landmarks(image, found.boxes[:1])
    if scores[0] < MIN_LANDMARK_SCORE:
        raise InputError(f"portrait={path}: the face is too unclear (score {scores[0]:.2f})")
    crop_from_source = ffhq_square(points[0]).crop_from_source(CROP_SIZE_PX)
    crop = warp_affine(image, crop_from_source, CROP_SIZE_PX)
    model = load_model(model_spec)
    in_crop = torch.from_numpy(apply_affine(crop_from_source, points[0])).float()
    fit = fit_landmarks(model, in_crop[None], CROP_SIZE_PX)
    coefficients = fit.coefficients.to("cpu")
    return Frames(
        resize_images(np.ascontiguousarray(crop)[None], size_px),
        fitted_cameras(coefficients, fov_deg=fov_deg),
        coefficients,
        [0],
        Path(path).stem,
        model.model_id,
        model.checksum,
    )
