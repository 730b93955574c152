"""Compiled z-buffer for CPUs: every pixel's nearest triangle, its barycentrics and depth.

The rules are pytorch3d's (spec 2.8): pixel centres at i + .5, no culling, degenerate triangles
skipped, perspective-correct barycentrics, depth test on the interpolated depth.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

MIN_AREA_PX2 = 1e-8
MIN_DEPTH = 1e-6


@njit(cache=True, inline="always")  # type: ignore[untyped-decorator]  # numba ships no types
def _edge(ax: float, ay: float, bx: float, by: float, px: float, py: float) -> float:
    return (ax - px) * (by - py) - (ay - py) * (bx - px)


@njit(cache=True)  # type: ignore[untyped-decorator]  # numba ships no types
def _draw(
    corners: NDArray[np.float32],
    face: int,
    face_of: NDArray[np.int32],
    barycentric: NDArray[np.float32],
    depth: NDArray[np.float32],
) -> None:
    """Draw one triangle, corners `[3, 3]` (x, y, depth)."""
    x0, y0, z0 = corners[0, 0], corners[0, 1], corners[0, 2]
    x1, y1, z1 = corners[1, 0], corners[1, 1], corners[1, 2]
    x2, y2, z2 = corners[2, 0], corners[2, 1], corners[2, 2]
    low, high = min(y0, min(y1, y2)), max(y0, max(y1, y2))
    if high < 0 or low > face_of.shape[0]:
        return
    area = _edge(x1, y1, x2, y2, x0, y0)
    if abs(area) < MIN_AREA_PX2 or min(z0, min(z1, z2)) < MIN_DEPTH:
        return
    inverse = 1.0 / area
    top = max(0, math.ceil(low - 0.5))
    bottom = min(face_of.shape[0] - 1, math.floor(high - 0.5))
    left = max(0, math.ceil(min(x0, min(x1, x2)) - 0.5))
    right = min(face_of.shape[1] - 1, math.floor(max(x0, max(x1, x2)) - 0.5))
    for row in range(top, bottom + 1):
        for column in range(left, right + 1):
            px, py = column + 0.5, row + 0.5
            w0 = _edge(x1, y1, x2, y2, px, py) * inverse
            w1 = _edge(x2, y2, x0, y0, px, py) * inverse
            w2 = 1.0 - w0 - w1
            if w0 < 0 or w1 < 0 or w2 < 0:
                continue
            a0, a1, a2 = w0 / z0, w1 / z1, w2 / z2
            total = a0 + a1 + a2
            z = 1.0 / total
            if z < depth[row, column]:
                depth[row, column] = z
                face_of[row, column] = face
                barycentric[row, column, 0] = a0 * z
                barycentric[row, column, 1] = a1 * z
                barycentric[row, column, 2] = a2 * z


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]  # numba ships no types
def zbuffer(
    screen: NDArray[np.float32], faces: NDArray[np.int32], height: int, width: int
) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]:
    """Rasterise `[B, V, 3]` screen vertices (x px, y px down, depth > 0).

    Serial on purpose: numba's parallel layer shares OpenMP with torch and resets torch's thread
    count, which made every later torch call of a one-CPU worker about eight times slower.

    Args:
        screen: `[B, V, 3]`, contiguous.
        faces: `[F, 3]`.
        height: Rows.
        width: Columns.

    Returns:
        Face index `[B, H, W]` (-1 where empty), barycentrics `[B, H, W, 3]` (-1 where empty) and
        depth `[B, H, W]` (inf where empty).
    """
    count = screen.shape[0]
    face_of = np.full((count, height, width), -1, np.int32)
    barycentric = np.full((count, height, width, 3), -1.0, np.float32)
    depth = np.full((count, height, width), np.inf, np.float32)
    corners = np.empty((3, 3), np.float32)
    for image in range(count):
        for face in range(faces.shape[0]):
            for k in range(3):
                for axis in range(3):
                    corners[k, axis] = screen[image, faces[face, k], axis]
            _draw(corners, face, face_of[image], barycentric[image], depth[image])
    return face_of, barycentric, depth
