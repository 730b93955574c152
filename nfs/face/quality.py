"""How good a face picture is: sharpness, light, occlusion, pose, size.

Pictures are aligned crops uint8 RGB [S, S, 3] with landmarks [68, 2] in their pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage
from PIL import ImageDraw
from scipy.ndimage import uniform_filter1d

from nfs.face.align import five_points, head_rotation
from nfs.face.protocols import Array, Image, frame_from_landmarks

Box = tuple[float, float, float, float]

# Side of the face region when blur is measured, and when colours are: the measures do not depend
# on the size of the crop.
_BLUR_PX, _COLOUR_PX = 128, 64
_BLUR_TAPS = 11
# Of the square around the face, from its centre; the part of the outline that is surely skin.
_REGION, _INNER = 0.6, 0.85
_OUTLINE = (*range(17), *range(26, 16, -1))
_FEATURES = (range(17, 22), range(22, 27), range(36, 42), range(42, 48), range(48, 60))
_FEATURE_BORDER_PX = 3
# Distance of (Cb, Cr) from the median, and part of the median luma, that are no longer skin.
_OTHER_HUE, _DARK = 14.0, 0.4
_CLIPPED_LOW, _CLIPPED_HIGH = 4, 251


@dataclass(frozen=True)
class PictureQuality:
    """Measures of one picture.

    `blur` in [0, 1] (sharp below 0.4, soft above 0.6); `exposure` mean luma of the face in [0, 1];
    `clipped` part of the face that is black or white; `occlusion` part of the skin region whose
    colour is not the face's own: hands have skin colour and are missed, hair, microphones and hard
    shadows are seen.
    """

    blur: float
    exposure: float
    clipped: float
    occlusion: float


def measure_picture(image: Image, landmarks: Array) -> PictureQuality:
    """Return the measures of a picture with one face."""
    picture = PilImage.fromarray(image)
    box = _face_box(landmarks, picture.size)
    grey = np.asarray(_region(picture, box, _BLUR_PX).convert("L"), np.float64)
    colours = np.asarray(_region(picture, box, _COLOUR_PX).convert("YCbCr"), np.float64)
    face, skin = _masks(landmarks, box)
    luma = colours[..., 0][face]
    if luma.size == 0 or not skin.any():  # landmarks outside the picture
        return PictureQuality(blur_effect(grey), 0.0, 1.0, 1.0)
    clipped = float(((luma <= _CLIPPED_LOW) | (luma >= _CLIPPED_HIGH)).mean())
    return PictureQuality(
        blur_effect(grey), float(luma.mean() / 255), clipped, _other_colour(colours[skin])
    )


def blur_effect(grey: Array) -> float:
    """Return the no-reference blur in [0, 1] of a picture [H, W] (Crete et al. 2007).

    How much of the difference between neighbours survives another blur, in the worse direction.
    """
    worst = 0.0
    for axis in (0, 1):
        change = np.abs(np.diff(grey, axis=axis))
        again = np.abs(np.diff(uniform_filter1d(grey, _BLUR_TAPS, axis=axis), axis=axis))
        total = float(change.sum())
        lost = float(np.maximum(change - again, 0.0).sum())
        worst = max(worst, (total - lost) / total if total > 0 else 1.0)
    return worst


def head_pose_deg(landmarks: Array) -> Array:
    """Return yaw and pitch [T, 2] in degrees of faces [T, 68, 2] by POS on five points.

    Positive yaw turns the face to image right, positive pitch down. A proxy (errors of several
    degrees, more beyond 40): fits have the real pose.
    """
    rotation = head_rotation(five_points(landmarks))
    yaw = np.arctan2(-rotation[..., 2, 0], np.hypot(rotation[..., 0, 0], rotation[..., 1, 0]))
    pitch = np.arctan2(rotation[..., 2, 1], rotation[..., 2, 2])
    return np.degrees(np.stack([yaw, pitch], axis=-1))


def _face_box(landmarks: Array, size: tuple[int, int]) -> Box:
    """Return the face's region (left, top, right, bottom) inside a picture (width, height)."""
    frame = frame_from_landmarks(landmarks)
    low = np.maximum(frame.centre - _REGION * frame.side_px, 0.0)
    high = np.minimum(frame.centre + _REGION * frame.side_px, np.array(size))
    if (high - low).min() < 1.0:
        return (0.0, 0.0, float(size[0]), float(size[1]))
    return (float(low[0]), float(low[1]), float(high[0]), float(high[1]))


def _region(picture: PilImage.Image, box: Box, side: int) -> PilImage.Image:
    return picture.resize((side, side), PilImage.Resampling.BILINEAR, box=box, reducing_gap=2.0)


def _masks(landmarks: Array, box: Box) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return face and skin (without eyes, brows, mouth and the outline) of the colour region."""
    scale = _COLOUR_PX / (np.array(box[2:]) - box[:2])
    points = (landmarks - box[:2]) * scale
    outline = _corners(points, _OUTLINE)
    face = _polygon([outline])
    middle = points[27:36].mean(axis=0)
    inner = [tuple(middle + _INNER * (corner - middle)) for corner in np.array(outline)]
    features = [_corners(points, part) for part in _FEATURES]
    return face, _polygon([inner]) & ~_polygon(features, width=_FEATURE_BORDER_PX)


def _corners(points: Array, indices: Sequence[int]) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in points[list(indices)]]


def _polygon(
    polygons: Sequence[Sequence[tuple[float, float]]], width: int = 0
) -> NDArray[np.bool_]:
    canvas = PilImage.new("1", (_COLOUR_PX, _COLOUR_PX))
    pen = ImageDraw.Draw(canvas)
    for corners in polygons:
        pen.polygon(corners, fill=1, outline=1)
        if width:
            pen.line([*corners, corners[0]], fill=1, width=width)
    return np.asarray(canvas)


def _other_colour(skin: Array) -> float:
    """Return the part of skin pixels [N, 3] (YCbCr) that differ from the face's usual colour."""
    middle = np.median(skin, axis=0)
    other_hue = np.linalg.norm(skin[:, 1:] - middle[1:], axis=-1) > _OTHER_HUE
    dark = skin[:, 0] < _DARK * middle[0]
    return float((other_hue | dark).mean())
