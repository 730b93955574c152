"""Vertex normals in the two conventions of the original codes.

Legend: B faces, V vertices, F triangles.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

NormalWeighting = Literal["unit", "area"]


def vertex_normals(
    vertices: Tensor, faces: Tensor, *, weighting: NormalWeighting = "unit"
) -> Tensor:
    """Return unit vertex normals `[B, V, 3]`, outward for counter-clockwise triangles.

    Args:
        vertices: `[B, V, 3]`.
        faces: `[F, 3]`.
        weighting: `unit` sums unit face normals (Deep3D); `area` sums raw cross products, so large
            triangles count more (3DMM-Fitting). Spec 2.4.
    """
    corners = vertices[:, faces]
    face_normals = torch.linalg.cross(
        corners[:, :, 0] - corners[:, :, 1], corners[:, :, 1] - corners[:, :, 2]
    )
    if weighting == "unit":
        face_normals = functional.normalize(face_normals, dim=-1)
    total = torch.zeros_like(vertices)
    for corner in range(3):
        total = total.index_add(1, faces[:, corner], face_normals)
    return functional.normalize(total, dim=-1)
