"""Where a landmark fit starts: the pose of the mean face under scaled orthography."""

from __future__ import annotations

import torch
from torch import Tensor

from nfs.morphable.gauss_newton import Problem
from nfs.morphable.projection import CAMERA_DISTANCE, focal_px


def orthographic_pose(problem: Problem) -> tuple[Tensor, Tensor]:
    """Return rotations `[T, 3, 3]` and translations `[T, 3]`: least squares, nearest rotation."""
    middle = problem.mean.mean(0)
    centre = problem.target.mean(1, keepdim=True)
    upward = (problem.target - centre) * problem.target.new_tensor([1.0, -1.0])
    affine = (torch.linalg.pinv(problem.mean - middle) @ upward).transpose(1, 2)
    u, singular, vt = torch.linalg.svd(affine, full_matrices=False)
    rows = u @ vt
    third = torch.linalg.cross(rows[:, 0], rows[:, 1])
    rotation = torch.cat([rows, third[:, None]], dim=1)
    # Landmarks on one spot have no scale; one pixel per dm keeps such a frame finite.
    scale = singular.mean(1).clamp_min(1.0)
    half = problem.image_size_px / 2
    depth = focal_px(problem.image_size_px) / scale
    offset = [
        (centre[:, 0, 0] - half) / scale,
        (half - centre[:, 0, 1]) / scale,
        CAMERA_DISTANCE - depth,
    ]
    return rotation, torch.stack(offset, dim=-1) - rotation @ middle
