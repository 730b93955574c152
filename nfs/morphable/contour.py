"""Jaw landmarks that slide: the outline of a turned head is not where it is on a frontal one.

Detectors put the 17 jaw points of the far side on the visible outline, which moves from the jaw to
the cheek as the head turns. Each jaw point therefore has candidates on the surface, from its own
place towards the middle of the face at the same height (the parallels of Zhu et al. 2015,
High-fidelity pose and expression normalization); a turned head takes the outermost.
Legend: J = 17 jaw points, C candidates, V vertices, T frames.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nfs.morphable.metrics import MIRRORED_LANDMARKS

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
Indices = NDArray[np.integer]

NUM_JAW = 17
NUM_CANDIDATES = 11
REACH = 0.6
"""Last candidate: this fraction of the way to the middle of the face."""
MIN_YAW_RAD = 0.2
"""Heads turned less keep the points of the frontal outline."""


def jaw_candidates(
    positions: FloatArray, faces: Indices, triangles: Indices, weights: FloatArray
) -> tuple[IntArray, FloatArray]:
    """Return candidates of the jaw points as vertices `[J, C, 3]` and weights `[J, C, 3]`.

    Args:
        positions: `[V, 3]` mean shape.
        faces: `[F, 3]` skin triangles, which the candidates lie on.
        triangles: `[68, 3]` vertices of the landmarks.
        weights: `[68, 3]` their barycentric weights.

    Returns:
        The first candidate of each is the landmark itself. Where the surface ends, the previous
        candidate is repeated.
    """
    chosen = np.repeat(triangles[:NUM_JAW, None].astype(np.int64), NUM_CANDIDATES, axis=1)
    barycentric = np.repeat(weights[:NUM_JAW, None], NUM_CANDIDATES, axis=1)
    points = (positions[triangles[:NUM_JAW]] * weights[:NUM_JAW, :, None]).sum(1)
    middle = points[NUM_JAW // 2, 0]
    corners = positions[faces]
    for jaw, point in enumerate(points):
        for step in range(1, NUM_CANDIDATES):
            part = REACH * step / (NUM_CANDIDATES - 1)
            place = np.array([point[0] + part * (middle - point[0]), point[1]])
            found = _front_triangle(corners, place)
            if found is None:
                chosen[jaw, step] = chosen[jaw, step - 1]
                barycentric[jaw, step] = barycentric[jaw, step - 1]
            else:
                chosen[jaw, step], barycentric[jaw, step] = faces[found[0]], found[1]
    return chosen, barycentric


def outermost(points_px: Tensor, rotation: Tensor) -> Tensor | None:
    """Return which candidate of each jaw point is on the outline, `[T, J]`; None if all keep 0.

    Args:
        points_px: `[T, J, C, 2]` projected candidates, y down.
        rotation: `[T, 3, 3]` poses.
    """
    yaw = torch.atan2(rotation[:, 0, 2], rotation[:, 2, 2])
    turned = yaw.abs() > MIN_YAW_RAD
    if not bool(turned.any()):
        return None
    up = rotation[:, :2, 1]
    right = torch.stack([up[:, 1], up[:, 0]], dim=-1)
    outward = (points_px * right[:, None, None]).sum(-1)
    side = torch.ones_like(outward[0, :, 0])
    side[: NUM_JAW // 2] = -1
    choice = (outward * side[:, None]).argmax(-1)
    choice[:, NUM_JAW // 2] = 0
    return torch.where(turned[:, None], choice, torch.zeros_like(choice))


def asymmetry_matrix(identity_basis: Tensor) -> Tensor:
    """Return `[K, K]`: `a^T M a` is the squared left-right difference of identity a, in dm^2.

    Each landmark is compared with the mirror image of its mate; half the difference counts, summed
    over the 68 landmarks.

    Args:
        identity_basis: `[68, 3, K]` at the landmarks.
    """
    mirror = identity_basis.new_tensor([-1.0, 1.0, 1.0])[None, :, None]
    difference = (
        identity_basis - mirror * identity_basis[torch.from_numpy(MIRRORED_LANDMARKS)]
    ) / 2
    flat = difference.flatten(0, 1)
    return flat.T @ flat


def _front_triangle(corners: FloatArray, place: FloatArray) -> tuple[int, FloatArray] | None:
    """Return the triangle nearest to the viewer at (x, y) and its weights there."""
    low, high = corners[:, :, :2].min(1), corners[:, :, :2].max(1)
    near = np.flatnonzero(((low <= place) & (place <= high)).all(1))
    a, b, c = corners[near].transpose(1, 0, 2)
    area = _cross(b - a, c - a)
    flat = np.abs(area) < 1e-12
    area = np.where(flat, 1.0, area)
    offset = place - a[:, :2]
    second, third = _cross(offset, c - a) / area, _cross(b - a, offset) / area
    weights = np.stack([1 - second - third, second, third], axis=1)
    inside = (weights >= -1e-9).all(1) & ~flat
    if not inside.any():
        return None
    depth = np.where(inside, (weights * corners[near, :, 2]).sum(1), -np.inf)
    best = int(depth.argmax())
    return int(near[best]), weights[best]


def _cross(first: FloatArray, second: FloatArray) -> FloatArray:
    value: FloatArray = first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0]
    return value
