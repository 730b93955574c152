"""Meshes as Wavefront `.obj` with vertex colours, material and a baked texture.

The texture is an atlas: every two triangles share a square cell, so it needs no unwrapped model and
no seam is visible. Legend: V vertices, F triangles.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from nfs.media.images import encode_png

Picture = NDArray[np.uint8]
MARGIN_PX = 1.5
"""Distance of the triangles' corners from the border of their cell, so that filters stay inside."""


def write_obj(
    path: Path, vertices: Tensor, faces: Tensor, colours: Tensor, *, texture_px: int = 1024
) -> list[Path]:
    """Write `path`, a `.mtl` and a `.png` beside it; returns the three.

    Vertices are `v x y z r g b` (dm, y up; colours in [0, 1]); viewers that ignore vertex colours
    use the texture.

    Args:
        path: The `.obj` file.
        vertices: `[V, 3]` dm.
        faces: `[F, 3]`.
        colours: `[V, 3]` in [0, 1].
        texture_px: Side of the texture.
    """
    points, triangles = vertices.double().numpy(), faces.numpy()
    shades = colours.double().clamp(0, 1).numpy()
    uv_px = atlas(len(triangles), texture_px)
    texture = bake(shades[triangles], uv_px, texture_px)
    uv = uv_px / texture_px
    uv[..., 1] = 1 - uv[..., 1]
    material, picture = path.with_suffix(".mtl"), path.with_suffix(".png")
    lines = [f"mtllib {material.name}", "usemtl head"]
    rows = np.concatenate([points, shades], axis=1)
    lines += ["v " + " ".join(f"{value:.6f}" for value in row) for row in rows]
    lines += [f"vt {u:.6f} {v:.6f}" for u, v in uv.reshape(-1, 2)]
    lines += [
        "f " + " ".join(f"{vertex + 1}/{3 * face + corner + 1}" for corner, vertex in enumerate(f3))
        for face, f3 in enumerate(triangles.tolist())
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    material.write_text(
        f"newmtl head\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nillum 1\nmap_Kd {picture.name}\n",
        encoding="utf-8",
    )
    picture.write_bytes(encode_png(texture))
    return [path, material, picture]


def atlas(num_faces: int, texture_px: int) -> NDArray[np.float64]:
    """Return texture coordinates `[F, 3, 2]` in pixels, two triangles per square cell."""
    per_row = math.ceil(math.sqrt(math.ceil(num_faces / 2)))
    cell = texture_px / per_row
    low, high = MARGIN_PX, cell - MARGIN_PX
    shift = min(2 * MARGIN_PX, (high - low) / 4)
    lower = np.array([[low, low + shift], [low, high], [high - shift, high]])
    upper = np.array([[low + shift, low], [high, high - shift], [high, low]])
    index = np.arange(num_faces)
    corner = np.stack([index // 2 % per_row, index // 2 // per_row], axis=1) * cell
    half = np.where((index % 2 == 0)[:, None, None], lower, upper)
    return np.asarray(corner[:, None] + half, np.float64)


def bake(
    corner_colours: NDArray[np.float64], uv_px: NDArray[np.float64], texture_px: int
) -> Picture:
    """Paint a texture `[S, S, 3]`: each pixel is the linear colour of the triangle of its cell.

    Args:
        corner_colours: `[F, 3, 3]` colours in [0, 1] of the triangles' corners.
        uv_px: `[F, 3, 2]` of `atlas`.
        texture_px: S.
    """
    num_faces = len(uv_px)
    per_row = math.ceil(math.sqrt(math.ceil(num_faces / 2)))
    cell = texture_px / per_row
    centre = np.arange(texture_px) + 0.5
    x, y = np.meshgrid(centre, centre)
    inside_x, inside_y = x % cell, y % cell
    face = 2 * ((x // cell).astype(int) + per_row * (y // cell).astype(int)) + (inside_x > inside_y)
    known = face < num_faces
    face = np.where(known, face, 0)
    a, b, c = (uv_px[face][..., k, :] for k in range(3))
    place = np.stack([x, y], axis=-1)
    area = _cross(b - a, c - a)
    second, third = _cross(place - a, c - a) / area, _cross(b - a, place - a) / area
    weights = np.stack([1 - second - third, second, third], axis=-1)
    colour = (weights[..., None] * corner_colours[face]).sum(-2)
    painted = np.where(known[..., None], colour, 0.0).clip(0, 1)
    return np.round(255 * painted).astype(np.uint8)


def _cross(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    value: NDArray[np.float64] = first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0]
    return value
