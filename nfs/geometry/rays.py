"""Pixels to rays.

The order of floating-point operations here is deliberate: positional encoding multiplies a point
by up to 2^9 pi, so two correct programs that round differently end in visibly different images
(spec/stylenerf.md 2.4 and Q23).

Legend: B batch, N rays, S samples per ray, R resolution.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nfs.geometry.cameras import cam2world_to_rt


@dataclass(frozen=True)
class Rays:
    """Rays in world space; `directions` have unit length along the optical axis, not in total."""

    origins: Tensor
    """`[B, N, 3]` scene units."""
    directions: Tensor
    """`[B, N, 3]`; a depth of 1 is one scene unit along the optical axis."""

    def at(self, depths: Tensor) -> Tensor:
        """Return the points `[B, N, S, 3]` at `depths [B, N, S]` (scene units)."""
        return self.origins[:, :, None] + depths[..., None] * self.directions[:, :, None]


def pixel_grid(resolution: int, *, device: torch.device | None = None) -> Tensor:
    """Return pixel centres `[R * R, 2]` as (x right, y up) in (-1, 1), row by row from the top."""
    edge = 1 - 1 / resolution
    axis = torch.linspace(-edge, edge, resolution, device=device)
    y, x = torch.meshgrid(-axis, axis, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2)


def corner_pixel_grid(
    resolution: int, image_resolution: int, *, device: torch.device | None = None
) -> Tensor:
    """Return pixels `[R * R, 2]` whose outermost ones sit on the borders -1 and 1 of the image.

    The grid is laid out at the full `image_resolution` and every n-th pixel is kept, so a smaller
    grid does not reach the right and bottom border.
    """
    axis = torch.linspace(-1, 1, image_resolution, device=device)
    kept = torch.arange(resolution, device=device) * image_resolution // resolution
    axis = axis[kept]
    y, x = torch.meshgrid(-axis, axis, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2)


def rolled_pixels(pixels: Tensor, roll_rad: Tensor) -> Tensor:
    """Turn pixels `[N, 2]` or `[B, N, 2]` about the centre by `roll_rad [B]`: `[B, N, 2]`."""
    x, y = pixels[..., 0], pixels[..., 1]
    cos, sin = roll_rad.cos()[:, None], roll_rad.sin()[:, None]
    return torch.stack([x * cos - y * sin, x * sin + y * cos], dim=-1)


def inverse_intrinsics(fov_deg: float, *, device: torch.device | None = None) -> Tensor:
    """Return `[4, 4]`: camera-space position of a pixel at depth 1 for a square field of view."""
    focal = torch.tensor(1 / math.tan(0.5 * fov_deg * math.pi / 180), dtype=torch.float32)
    one = torch.ones(())
    return torch.inverse(torch.diag(torch.stack([focal, focal, one, one]))).to(device)


def camera_rays(pixels: Tensor, cam2world: Tensor, *, fov_deg: float) -> Rays:
    """Return the rays through `pixels [N, 2]` or `[B, N, 2]` of cameras `[B, 4, 4]`."""
    if cam2world.ndim != 3 or cam2world.shape[1:] != (4, 4):
        raise ValueError(f"cam2world must be [B, 4, 4], got {list(cam2world.shape)}")
    batch = len(cam2world)
    pixels = pixels.to(cam2world.dtype).expand(batch, -1, 2)
    inverse_k = inverse_intrinsics(fov_deg, device=cam2world.device).to(cam2world.dtype)
    ones = torch.ones_like(pixels[..., 0])
    on_plane = torch.stack([pixels[..., 0], pixels[..., 1], -ones, ones], dim=1)
    centre = torch.zeros_like(on_plane)
    centre[:, 3] = 1
    with torch.autocast(cam2world.device.type, enabled=False):
        to_world = cam2world_to_rt(cam2world) @ inverse_k.expand(batch, 4, 4)
        origins = (to_world @ centre)[:, :3].transpose(1, 2)
        return Rays(origins, (to_world @ on_plane)[:, :3].transpose(1, 2) - origins)
