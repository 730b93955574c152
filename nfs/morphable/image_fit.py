"""`fit_images`: photographs in, coefficients out, one row for each and never an exception for one.

For a script or a notebook; `jobs.preprocess` and `jobs.fit_3dmm` do the same for folders, with
shards and resume. Legend: S crop side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nfs.errors import ClipError
from nfs.face.align import ffhq_square
from nfs.media.images import apply_affine, read_photo, warp_affine
from nfs.morphable.clip_fit import ClipFit, fit_clip_frames
from nfs.morphable.landmark_fit import FitSettings
from nfs.morphable.model import MorphableModel
from nfs.morphable.refine import Refiner

Picture = NDArray[np.uint8]
FindLandmarks = Callable[[Picture], NDArray[np.float64] | None]
"""Picture `[H, W, 3]` -> landmarks `[68, 2]` in its pixels, or None without a face."""
MIN_LANDMARK_SCORE = 0.5


@dataclass(frozen=True)
class ImageFit:
    """Fit of one picture.

    Attributes:
        status: `ok`, or why there is no fit: `no_face`, `decode_error`, `diverged`.
        error: The reason in words, empty if ok.
        result: The fit (T = 1), None if there is none.
        crop: `[S, S, 3]` aligned crop that the fit refers to, None if there is no fit.
        landmarks_px: `[68, 2]` in the crop, None if there is no fit.
        crop_from_source: `[2, 3]`, None if there is no fit.
    """

    status: str
    error: str = ""
    result: ClipFit | None = None
    crop: Picture | None = None
    landmarks_px: NDArray[np.float64] | None = None
    crop_from_source: NDArray[np.float64] | None = None


def face_finder(detector: str = "mtcnn", landmarks: str = "dlib") -> FindLandmarks:
    """Return a function that finds the landmarks of the largest face.

    Args:
        detector: See `nfs.face.detectors.build_detector`.
        landmarks: See `nfs.face.landmarks.build_landmarks`.
    """
    from nfs.face.detectors import build_detector
    from nfs.face.landmarks import build_landmarks

    boxes_of, points_of = build_detector(detector), build_landmarks(landmarks)

    def find(picture: Picture) -> NDArray[np.float64] | None:
        found = boxes_of.detect([picture])[0]
        if not len(found):
            return None
        points, scores = points_of.landmarks(picture, found.boxes[:1])
        return points[0] if scores[0] >= MIN_LANDMARK_SCORE else None

    return find


def fit_images(
    model: MorphableModel,
    images: Sequence[Picture | str | Path],
    *,
    find: FindLandmarks | None = None,
    crop_size_px: int = 256,
    with_appearance: bool = True,
    settings: FitSettings | None = None,
    refiner: Refiner | None = None,
) -> list[ImageFit]:
    """Fit unrelated photographs; the results are in the order of the input.

    Args:
        model: The model to fit.
        images: uint8 RGB `[H, W, 3]`, or files.
        find: Finds landmarks; default `face_finder()`.
        crop_size_px: Side of the FFHQ-aligned crop that is fitted.
        with_appearance: Estimate light and texture too.
        settings: See `fit_landmarks`.
        refiner: Photometric stage.
    """
    find = find or face_finder()
    fits = []
    for image in images:
        try:
            picture = read_photo(str(image)) if isinstance(image, str | Path) else image
            points = find(picture)
            if points is None:
                raise ClipError("no_face", "no face was found in the picture")
            square = ffhq_square(points).crop_from_source(crop_size_px)
            crop = warp_affine(picture, square, crop_size_px)
            moved = apply_affine(square, points)
            result = fit_clip_frames(
                model,
                torch.from_numpy(moved)[None].float(),
                crop_size_px,
                images={0: crop} if with_appearance else None,
                settings=settings,
                refiner=refiner,
            )
        except ClipError as error:
            fits.append(ImageFit(error.status, str(error)))
        else:
            fits.append(ImageFit("ok", "", result, crop, moved, square))
    return fits
