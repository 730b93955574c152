"""From a frame to the network's aligned square and back: pictures, landmarks, coefficients.

All maps `[..., 2, 3]` act on continuous pixels, y down. Legend: B faces.
"""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from nfs.face.align import (
    CROP_SIZE_DEEP3D,
    Deep3dAlignment,
    deep3d_alignment,
    deep3d_transform,
    five_points,
)
from nfs.geometry.rotations import matrix_to_euler, so3_exp
from nfs.media.images import apply_affine, invert_affine, warp_affine
from nfs.morphable.coefficients import Coefficients
from nfs.morphable.lighting import NUM_HARMONICS
from nfs.morphable.metrics import MIRRORED_LANDMARKS as MIRRORED_LANDMARKS
from nfs.morphable.projection import CAMERA_DISTANCE, focal_px

Array = NDArray[np.float64]
Picture = NDArray[np.uint8]

# Harmonics that change sign with x: x, xy, xz (nfs.morphable.lighting.harmonics).
_ODD_HARMONICS = (3, 4, 7)


def frame_to_input(landmarks_px: NDArray[np.floating], size_px: int) -> Array:
    """Return the maps `[..., 2, 3]` from frame pixels to the aligned square.

    Args:
        landmarks_px: `[..., 68, 2]` continuous pixels.
        size_px: Side of the aligned square.
    """
    return deep3d_transform(five_points(landmarks_px), size_px)


def crop(image: Picture, matrix: Array, size_px: int) -> tuple[Picture, NDArray[np.bool_]]:
    """Return the aligned picture `[S, S, 3]`, black outside the frame, and what is inside.

    Args:
        image: `[H, W, 3]`.
        matrix: `[2, 3]` from frame to aligned pixels.
        size_px: S.
    """
    centres = np.stack(np.meshgrid(*[np.arange(size_px) + 0.5] * 2), axis=-1).reshape(-1, 2)
    x, y = apply_affine(invert_affine(matrix), centres).T
    inside = (x >= 0) & (x < image.shape[1]) & (y >= 0) & (y < image.shape[0])
    inside = inside.reshape(size_px, size_px)
    warped = warp_affine(image, matrix, size_px)
    return np.where(inside[..., None], warped, 0).astype(np.uint8), inside


def published_alignment(
    landmarks_px: NDArray[np.floating], size: tuple[int, int]
) -> Deep3dAlignment:
    """Return the original's alignment of one face (index coordinates, truncated corner)."""
    five = five_points(landmarks_px) - 0.5
    five[:, 1] = size[1] - 1 - five[:, 1]
    return deep3d_alignment(five, size)


def published_crop(image: Picture, alignment: Deep3dAlignment) -> Picture:
    """Return the original's 224 px square: resized bicubically, cut at whole pixels."""
    width, height = (int(side * alignment.scale) for side in alignment.size)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    left, top = alignment.corner
    box = (left, top, left + CROP_SIZE_DEEP3D, top + CROP_SIZE_DEEP3D)
    return np.asarray(resized.crop(box))


def published_matrix(alignment: Deep3dAlignment) -> Array:
    """Return the map `[2, 3]` that `published_crop` applies to continuous pixels."""
    ratio = [int(side * alignment.scale) / side for side in alignment.size]
    left, top = alignment.corner
    return np.array([[ratio[0], 0.0, -left], [0.0, ratio[1], -top]])


def mirror(coefficients: Coefficients) -> Coefficients:
    """Return pose and light of the mirrored picture; identity and expression stay as they are.

    The bases are not exactly symmetric, so the shape of a mirrored face has no exact coefficients.
    """
    parts = _parts(coefficients)
    parts["rotation"] = parts["rotation"] * parts["rotation"].new_tensor([1.0, -1.0, -1.0])
    parts["translation"] = parts["translation"] * parts["translation"].new_tensor([-1.0, 1.0, 1.0])
    signs = parts["lighting"].new_ones(NUM_HARMONICS)
    signs[list(_ODD_HARMONICS)] = -1
    parts["lighting"] = parts["lighting"] * signs.repeat(3)
    return Coefficients(**parts)


def repose(
    coefficients: Coefficients, matrices: Tensor, *, from_px: int, to_px: int
) -> Coefficients:
    """Return the coefficients that show the same face after a similarity of the picture.

    Roll is exact, scale and shift are exact for the head's origin; the direction under which the
    head is seen is kept (it turns with the viewing ray). A mirroring map mirrors pose and light.

    Args:
        coefficients: B rows in a square picture of `from_px`.
        matrices: `[B, 2, 3]` similarities from its pixels to those of the other picture.
        from_px: Side of the first picture.
        to_px: Side of the other picture.
    """
    linear = matrices[:, :, :2]
    flipped = torch.linalg.det(linear) < 0
    if bool(flipped.any()):
        matrices = torch.where(
            flipped[:, None, None], matrices @ _flip(matrices, from_px), matrices
        )
        mirrored = _parts(mirror(coefficients))
        parts = _parts(coefficients)
        coefficients = Coefficients(
            **{n: torch.where(flipped[:, None], mirrored[n], parts[n]) for n in parts}
        )
        linear = matrices[:, :, :2]
    scale = torch.linalg.det(linear).sqrt()
    roll = torch.atan2(linear[:, 0, 1], linear[:, 0, 0])  # y up, so the sign turns
    axis = torch.stack([torch.zeros_like(roll), torch.zeros_like(roll), roll], dim=-1)
    turn = so3_exp(axis)
    old = coefficients.translation
    depth = CAMERA_DISTANCE - old[:, 2]
    start_focal, end_focal = focal_px(from_px), focal_px(to_px)
    centre = torch.stack([old[:, 0], -old[:, 1]], -1) * (start_focal / depth)[:, None] + from_px / 2
    centre = (linear @ centre[..., None])[..., 0] + matrices[:, :, 2]
    depth = depth * (end_focal / start_focal) / scale
    offset = (centre - to_px / 2) * (depth / end_focal)[:, None]
    new = torch.stack([offset[:, 0], -offset[:, 1], CAMERA_DISTANCE - depth], dim=-1)
    seen = _between((turn @ _ray(old)[..., None])[..., 0], _ray(new))
    parts = _parts(coefficients)
    parts["rotation"] = matrix_to_euler(seen @ turn @ coefficients.rotation_matrix)
    parts["translation"] = new
    return Coefficients(**parts)


def _parts(coefficients: Coefficients) -> dict[str, Tensor]:
    return {field.name: getattr(coefficients, field.name) for field in fields(coefficients)}


def _flip(like: Tensor, size_px: int) -> Tensor:
    """Return `[3, 3]`: x -> size - x."""
    return like.new_tensor([[-1.0, 0.0, size_px], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])


def _ray(translation: Tensor) -> Tensor:
    """Return unit directions `[B, 3]` from the camera to the head's origin."""
    offset = translation - translation.new_tensor([0.0, 0.0, CAMERA_DISTANCE])
    return offset / offset.norm(dim=-1, keepdim=True)


def _between(first: Tensor, second: Tensor) -> Tensor:
    """Return the smallest rotations `[B, 3, 3]` that take unit vectors to nearby others."""
    cross = torch.linalg.cross(first, second)
    sine = cross.norm(dim=-1, keepdim=True)
    angle = torch.asin(sine.clamp(max=1.0))
    factor = torch.where(sine > 1e-9, angle / sine.clamp_min(1e-12), torch.ones_like(sine))
    return so3_exp(cross * factor)
