"""Face alignment: FFHQ square, five-point alignment to 224 (Deep3D), 112 px template (ArcFace).

Landmarks are the 68 iBUG points in continuous pixels, y down (pixel i covers [i, i + 1)), unless a
name says `_yup` or `_index`: those are the originals' conventions and are converted here only.
T frames.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d, median_filter

from nfs.media.images import apply_affine, invert_affine

Array = NDArray[np.float64]

CROP_SIZE_DEEP3D = 224
CROP_SIZE_ARCFACE = 112
_RESCALE_DEEP3D = 102.0
_STANDARD_FIVE = np.array(
    [
        [-0.311486572, 0.290360779, 0.133779526],
        [0.309798867, 0.289720356, 0.131795257],
        [0.00325349881, -0.0461793244, 0.552442431],
        [-0.252169281, -0.381339163, 0.224057317],
        [0.248466194, -0.381282359, 0.22235769],
    ],
    np.float32,  # published in single precision
).astype(np.float64)
ARCFACE_TEMPLATE_INDEX = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ]
)
# A move of the crop by more than this part of its half side within one frame is a cut.
_CUT = 0.5
_MEDIAN_FRAMES = 5


@dataclass(frozen=True)
class FaceSquare:
    """Oriented square of an FFHQ crop: centre [..., 2] and the vector from it to the right edge."""

    centre: Array
    half_side: Array

    def crop_from_source(self, size_px: int) -> Array:
        """Return the similarity transforms [..., 2, 3] from source to crop pixels."""
        length2 = (self.half_side**2).sum(-1, keepdims=True)
        right = self.half_side / length2 * (size_px / 2)
        down = np.stack([-right[..., 1], right[..., 0]], axis=-1)
        linear = np.stack([right, down], axis=-2)
        offset = size_px / 2 - (linear @ self.centre[..., None])[..., 0]
        return np.concatenate([linear, offset[..., None]], axis=-1)

    def quad(self) -> Array:
        """Return the corners [..., 4, 2]: top left, bottom left, bottom right, top right."""
        x = self.half_side
        y = np.stack([-x[..., 1], x[..., 0]], axis=-1)
        corners = [self.centre - x - y, self.centre - x + y, self.centre + x + y]
        return np.stack([*corners, self.centre + x - y], axis=-2)


def ffhq_square(landmarks: NDArray[np.floating]) -> FaceSquare:
    """Return the FFHQ square of landmarks [..., 68, 2] (spec/face_and_media.md 2.4)."""
    points = np.asarray(landmarks, np.float64)
    left_eye, right_eye = points[..., 36:42, :].mean(-2), points[..., 42:48, :].mean(-2)
    eyes = (left_eye + right_eye) / 2
    across = right_eye - left_eye
    mouth = (points[..., 48, :] + points[..., 54, :]) / 2 - eyes
    axis = across - np.stack([-mouth[..., 1], mouth[..., 0]], axis=-1)
    axis /= np.linalg.norm(axis, axis=-1, keepdims=True)
    reach = np.maximum(2.0 * np.linalg.norm(across, axis=-1), 1.8 * np.linalg.norm(mouth, axis=-1))
    return FaceSquare(centre=eyes + 0.1 * mouth, half_side=axis * reach[..., None])


def square_of_transform(matrix: NDArray[np.floating], size_px: int) -> FaceSquare:
    """Return the source squares that similarities [..., 2, 3] map to [0, size]^2."""
    inverse = invert_affine(matrix)
    middle = np.full((1, 2), size_px / 2)
    half_side = inverse[..., :, 0] * (size_px / 2)
    return FaceSquare(apply_affine(inverse, middle)[..., 0, :], half_side)


def face_square(landmarks: NDArray[np.floating], scheme: str, size_px: int) -> FaceSquare:
    """Return the squares that a scheme cuts out for landmarks [..., 68, 2].

    Args:
        landmarks: Continuous pixels of the source.
        scheme: `ffhq`, `deep3d` (224 px) or `arcface` (112 px), scaled to `size_px`.
        size_px: Side of the crop.
    """
    if scheme == "ffhq":
        return ffhq_square(landmarks)
    if scheme == "deep3d":
        return square_of_transform(deep3d_transform(five_points(landmarks), size_px), size_px)
    if scheme == "arcface":
        return square_of_transform(arcface_crop_transform(landmarks, size_px), size_px)
    raise ValueError(f"scheme={scheme!r} is not known; use ffhq, deep3d or arcface")


def middle_square(width_px: int, height_px: int, size_px: int) -> Array:
    """Return the map [2, 3] from a picture to its middle square, scaled to `size_px`."""
    centre = np.array([width_px / 2, height_px / 2])
    half_side = np.array([min(width_px, height_px) / 2, 0.0])
    return FaceSquare(centre, half_side).crop_from_source(size_px)


def smooth_square(square: FaceSquare, valid: NDArray[np.bool_], sigma_frames: float) -> FaceSquare:
    """Smooth the squares of T frames without delay, so that the crop does not jitter.

    Frames without a face are interpolated. Across a cut (the square jumps by half its half side)
    nothing is mixed.

    Args:
        square: centre [T, 2], half_side [T, 2]; values of invalid frames are ignored.
        valid: [T], at least one true.
        sigma_frames: Standard deviation of the Gaussian; 0 only fills gaps.
    """
    if not valid.any():
        raise ValueError("smooth_square needs at least one valid frame")
    frames, known = np.arange(len(valid)), np.flatnonzero(valid)
    angle = np.unwrap(np.arctan2(square.half_side[known, 1], square.half_side[known, 0]))
    log_side = np.log(np.linalg.norm(square.half_side[known], axis=-1))
    tracks = np.column_stack([square.centre[known], log_side, angle])
    jumps = np.linalg.norm(np.diff(tracks[:, :2], axis=0), axis=-1) > _CUT * np.exp(
        log_side[:-1]
    ) * np.diff(known)
    filled = np.empty((len(valid), tracks.shape[1]))
    starts = [0, *known[1:][jumps], len(valid)]
    for first, last in itertools.pairwise(starts):
        inside = (known >= first) & (known < last)
        for column in range(tracks.shape[1]):
            filled[first:last, column] = _smoothed(
                np.interp(frames[first:last], known[inside], tracks[inside, column]), sigma_frames
            )
    side = np.exp(filled[:, 2])
    direction = np.stack([np.cos(filled[:, 3]), np.sin(filled[:, 3])], axis=-1)
    return FaceSquare(centre=filled[:, :2], half_side=direction * side[:, None])


def _smoothed(values: Array, sigma_frames: float) -> Array:
    if sigma_frames <= 0:
        return values
    despiked = median_filter(values, size=_MEDIAN_FRAMES, mode="nearest")
    return gaussian_filter1d(despiked, sigma_frames, mode="nearest")


def five_points(landmarks: NDArray[np.floating]) -> Array:
    """Return eye, eye, nose tip, mouth corners [..., 5, 2] (image left first) of 68 points."""
    points = np.asarray(landmarks, np.float64)
    left = points[..., (36, 39), :].mean(-2)
    right = points[..., (42, 45), :].mean(-2)
    return np.stack(
        [left, right, points[..., 30, :], points[..., 48, :], points[..., 54, :]], axis=-2
    )


@dataclass(frozen=True)
class Deep3dAlignment:
    """Alignment of a picture to the 224 px square that Deep3D's network was trained on.

    `shift` is t of the weak-perspective fit, `scale` the resize factor 102 / s, `size` (width,
    height) of the source; the resized picture is cut at `corner` (left, top).
    """

    shift: Array
    scale: float
    size: tuple[int, int]
    corner: tuple[int, int]

    def landmarks_yup(self, landmarks_yup: NDArray[np.floating]) -> Array:
        """Map y-up index landmarks [..., 2] into the crop (not truncated, spec 2.2)."""
        half = np.array(self.size, np.float64) / 2
        resized = np.trunc(np.array(self.size) * self.scale)
        moved = (landmarks_yup - self.shift + half) * self.scale
        return np.asarray(moved - (resized / 2 - CROP_SIZE_DEEP3D / 2))


def deep3d_alignment(five_yup: NDArray[np.floating], size: tuple[int, int]) -> Deep3dAlignment:
    """Fit the standard five points to a face (spec/face_and_media.md 2.2, Deep3D).

    Args:
        five_yup: [5, 2] from `five_points`, with y_up = H - 1 - y in index coordinates.
        size: (width, height) of the picture.
    """
    design = np.column_stack([_STANDARD_FIVE, np.ones(5)])
    solution, *_ = np.linalg.lstsq(design, np.asarray(five_yup, np.float64), rcond=None)
    size_of_axes = np.linalg.norm(solution[:3], axis=0)
    scale = float(_RESCALE_DEEP3D / size_of_axes.mean())
    shift = solution[3]
    half = CROP_SIZE_DEEP3D / 2
    width, height = (int(side * scale) for side in size)
    left = int(width / 2 - half + (shift[0] - size[0] / 2) * scale)
    top = int(height / 2 - half + (size[1] / 2 - shift[1]) * scale)
    return Deep3dAlignment(shift, scale, size, (left, top))


def head_rotation(five: NDArray[np.floating]) -> Array:
    """Return the rotations [..., 3, 3] of heads by POS (the fit of spec/face_and_media.md 2.2).

    Axes of the model: x image right, y up, z towards the camera.

    Args:
        five: [..., 5, 2] from `five_points`, y down.
    """
    design = np.column_stack([_STANDARD_FIVE, np.ones(5)])
    axes = (np.linalg.pinv(design) @ np.asarray(five, np.float64))[..., :3, :] * (1, -1)
    along_x = axes[..., 0] / np.linalg.norm(axes[..., 0], axis=-1, keepdims=True)
    along_y = axes[..., 1] / np.linalg.norm(axes[..., 1], axis=-1, keepdims=True)
    # the nearest rotation: the two axes are turned apart equally
    both = np.stack([along_x, along_y, np.cross(along_x, along_y)], axis=-2)
    left, _, right = np.linalg.svd(both)
    return np.asarray(left @ right)


def deep3d_standard_pixels(size_px: int) -> Array:
    """Return where the five standard points lie in an aligned square [5, 2], y down."""
    scale = _RESCALE_DEEP3D * size_px / CROP_SIZE_DEEP3D
    return size_px / 2 + scale * _STANDARD_FIVE[:, :2] * (1, -1)


def deep3d_transform(five: NDArray[np.floating], size_px: int = CROP_SIZE_DEEP3D) -> Array:
    """Return the alignment as maps [..., 2, 3] between continuous pixels, without truncation.

    The same fit as `deep3d_alignment`: a scale and a shift, no rotation (spec 2.2).

    Args:
        five: [..., 5, 2] from `five_points`, y down.
        size_px: Side of the aligned square; 224 in the original.
    """
    design = np.column_stack([_STANDARD_FIVE, np.ones(5)])
    solution = np.linalg.pinv(design) @ np.asarray(five, np.float64)
    size_of_axes = np.linalg.norm(solution[..., :3, :], axis=-2).mean(-1)
    scale = _RESCALE_DEEP3D / size_of_axes * (size_px / CROP_SIZE_DEEP3D)
    linear = scale[..., None, None] * np.eye(2)
    offset = size_px / 2 - scale[..., None] * solution[..., 3, :]
    return np.concatenate([linear, offset[..., None]], axis=-1)


def arcface_transform(five_index: NDArray[np.floating]) -> Array:
    """Return the similarity [..., 2, 3] from index coordinates to the 112 px template (spec 2.3).

    Degenerate points (all equal) give the identity.
    """
    source = np.asarray(five_index, np.float64)
    mean_source, mean_target = source.mean(-2), ARCFACE_TEMPLATE_INDEX.mean(0)
    a, b = source - mean_source[..., None, :], ARCFACE_TEMPLATE_INDEX - mean_target
    spread = (a**2).sum((-1, -2))
    safe = np.where(spread > 0, spread, 1.0)
    cosine = (a * b).sum((-1, -2)) / safe
    sine = (a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]).sum(-1) / safe
    linear = np.stack(
        [np.stack([cosine, -sine], axis=-1), np.stack([sine, cosine], axis=-1)], axis=-2
    )
    offset = mean_target - (linear @ mean_source[..., None])[..., 0]
    matrix = np.concatenate([linear, offset[..., None]], axis=-1)
    identity = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    return np.where((spread > 0)[..., None, None], matrix, identity)


def arcface_crop_transform(
    landmarks: NDArray[np.floating], size_px: int = CROP_SIZE_ARCFACE
) -> Array:
    """Return the maps [..., 2, 3] of landmarks [..., 68, 2] to the template, continuous pixels.

    The template is scaled to `size_px`.
    """
    index = arcface_transform(five_points(landmarks) - 0.5)
    linear = index[..., :2]
    offset = index[..., 2] + 0.5 - 0.5 * linear.sum(-1)
    matrix = np.concatenate([linear, offset[..., None]], axis=-1)
    return matrix * (size_px / CROP_SIZE_ARCFACE)


def pad_box_published(
    box: NDArray[np.floating], size: tuple[int, int], ratio: float = 0.3
) -> tuple[int, int, int, int]:
    """Return the padded square box of 3DMM-Fitting-Pytorch, shrunk at the border (spec 2.1).

    Args:
        box: (x1, y1, x2, y2).
        size: (width, height) of the picture.
        ratio: Padding relative to the longer side.
    """
    x1, y1, x2, y2 = (float(value) for value in box)
    side = int(max(x2 - x1, y2 - y1) * (1 + ratio))
    left = max(int((x1 + x2) // 2 - side // 2), 0)
    top = max(int((y1 + y2) // 2 - side // 2), 0)
    side = min(size[0] - left, side)
    side = min(size[1] - top, side)
    return left, top, left + side, top + side


def pad_box(box: NDArray[np.floating], ratio: float = 0.3) -> Array:
    """Return the padded square box, centred on the face; it may leave the picture."""
    low, high = np.asarray(box[:2], np.float64), np.asarray(box[2:], np.float64)
    half = (high - low).max() * (1 + ratio) / 2
    centre = (low + high) / 2
    return np.concatenate([centre - half, centre + half])
