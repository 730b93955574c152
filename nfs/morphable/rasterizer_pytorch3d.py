"""The pytorch3d rasteriser behind `rasterize`: the only module of this package that imports it."""

from __future__ import annotations

import torch
from torch import Tensor


def rasterize_pytorch3d(
    screen: Tensor, faces: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Rasterise screen vertices with pytorch3d (CUDA; its CPU path is hundreds of times slower).

    Args:
        screen: `[B, V, 3]` (x px, y px down, depth > 0).
        faces: `[F, 3]`.
        height: Rows.
        width: Columns.

    Returns:
        Face index, barycentrics and depth as in `Fragments`.
    """
    from pytorch3d.renderer.mesh.rasterize_meshes import rasterize_meshes
    from pytorch3d.structures import Meshes

    count = len(screen)
    if count == 0:
        empty = screen.new_zeros(0, height, width)
        return empty.long(), screen.new_zeros(0, height, width, 3), empty
    # pytorch3d's normalised coordinates: the shorter side spans [-1, 1], +x left, +y up.
    half = min(height, width) / 2
    x = (width / 2 - screen[..., 0]) / half
    y = (height / 2 - screen[..., 1]) / half
    vertices = torch.stack([x, y, screen[..., 2]], dim=-1).float()
    meshes = Meshes(vertices, faces.expand(count, -1, -1))
    packed, zbuf, barycentric, _ = rasterize_meshes(
        meshes,
        image_size=(height, width),
        blur_radius=0.0,
        faces_per_pixel=1,
        perspective_correct=True,
        cull_backfaces=False,
    )
    offsets = torch.arange(count, device=packed.device)[:, None, None] * len(faces)
    covered = packed[..., 0] >= 0
    face_of = torch.where(covered, packed[..., 0] - offsets, -1)
    infinite = torch.full_like(zbuf[..., 0], torch.inf)
    return face_of, barycentric[..., 0, :], torch.where(covered, zbuf[..., 0], infinite)
