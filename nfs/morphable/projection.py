"""The fixed camera of morphable fits: model space to pixels.

The camera looks along -z from z = 10 dm. Pixel coordinates are continuous: pixel i covers [i, i +
1), y points down (spec 2.6). Legend: B faces, N points.
"""

from __future__ import annotations

import torch
from torch import Tensor

FOCAL_224 = 1015.0
REFERENCE_SIZE_PX = 224
CAMERA_DISTANCE = 10.0


def focal_px(image_size_px: float) -> float:
    """Return the focal length in pixels of a square image, the same field of view at every size."""
    return FOCAL_224 * image_size_px / REFERENCE_SIZE_PX


def pose_points(points: Tensor, rotation: Tensor, translation: Tensor) -> Tensor:
    """Return `y = R x + t`: points `[B, N, 3]`, rotations `[B, 3, 3]`, translations `[B, 3]`."""
    return points @ rotation.transpose(-1, -2) + translation[:, None]


def project_points(
    points: Tensor, image_size_px: int, *, focal_length_px: float | None = None
) -> Tensor:
    """Project posed points.

    Args:
        points: `[B, N, 3]` posed, dm, y up.
        image_size_px: Side of the square image.
        focal_length_px: Another focal length; default `focal_px(image_size_px)`.

    Returns:
        `[B, N, 2]` pixels (x, y down), continuous.
    """
    return to_screen(points, image_size_px, focal_length_px=focal_length_px)[..., :2]


def to_screen(
    points: Tensor, image_size_px: int, *, focal_length_px: float | None = None
) -> Tensor:
    """Project posed points and keep their depth: `[B, N, 3]` (x px, y px down, depth dm > 0).

    This is what `rasterize` takes. Arguments as in `project_points`.
    """
    focal = focal_px(image_size_px) if focal_length_px is None else focal_length_px
    centre = image_size_px / 2
    depth = CAMERA_DISTANCE - points[..., 2]
    x = focal * points[..., 0] / depth + centre
    y = centre - focal * points[..., 1] / depth
    return torch.stack([x, y, depth], dim=-1)
