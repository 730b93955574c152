"""`rasterize`: which triangle each pixel sees, on CPU (compiled z-buffer) or GPU (pytorch3d).

Visibility carries no gradient; `shading.interpolate` recomputes differentiable barycentrics.
Legend: B images, V vertices, F triangles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Backend = Literal["auto", "numba", "pytorch3d"]


@dataclass(frozen=True)
class Fragments:
    """What each pixel sees.

    Attributes:
        pix_to_face: `[B, H, W]` int64 index of the nearest triangle, -1 where empty.
        barycentric: `[B, H, W, 3]` perspective-correct weights of its corners, -1 where empty.
        depth: `[B, H, W]` distance along the viewing axis, inf where empty.
    """

    pix_to_face: Tensor
    barycentric: Tensor
    depth: Tensor

    @property
    def mask(self) -> Tensor:
        """`[B, H, W]` which pixels are covered."""
        return self.pix_to_face >= 0


@torch.no_grad()
def rasterize(
    screen: Tensor,
    faces: Tensor,
    image_size_px: int | tuple[int, int],
    *,
    backend: Backend = "auto",
) -> Fragments:
    """Rasterise triangles given in pixels.

    Args:
        screen: `[B, V, 3]` x and y (down) in continuous pixels and depth > 0, as from
            `projection.to_screen`. Nothing is culled; triangles that touch depth <= 0 are dropped.
        faces: `[F, 3]`, shared by all images.
        image_size_px: Side, or (height, width).
        backend: `auto` takes pytorch3d for tensors on a GPU and the compiled z-buffer on the CPU.

    Raises:
        ValueError: If a shape is wrong.
    """
    if screen.dim() != 3 or screen.shape[-1] != 3 or faces.dim() != 2 or faces.shape[-1] != 3:
        raise ValueError(
            f"expected screen [B, V, 3] and faces [F, 3], got {tuple(screen.shape)} and "
            f"{tuple(faces.shape)}"
        )
    height, width = (image_size_px,) * 2 if isinstance(image_size_px, int) else image_size_px
    if backend == "auto":
        backend = "pytorch3d" if screen.is_cuda else "numba"
    if backend == "pytorch3d":
        from nfs.morphable.rasterizer_pytorch3d import rasterize_pytorch3d

        return Fragments(*rasterize_pytorch3d(screen, faces, height, width))
    return _rasterize_numba(screen, faces, height, width)


def _rasterize_numba(screen: Tensor, faces: Tensor, height: int, width: int) -> Fragments:
    from nfs.morphable.zbuffer import zbuffer

    face_of, barycentric, depth = zbuffer(
        screen.detach().float().cpu().contiguous().numpy(),
        faces.int().cpu().contiguous().numpy(),
        height,
        width,
    )
    device = screen.device
    return Fragments(
        torch.from_numpy(face_of).long().to(device),
        torch.from_numpy(barycentric).to(device),
        torch.from_numpy(depth).to(device),
    )
