"""Looking points up in feature planes and volumes (spec/stylenerf.md 2.5; Chan et al. 2022, EG3D).

Legend: B batch, P points, C channels, R resolution. Points are `(x, y, z)` in units of the covered
region, which reaches from -1 to 1; outside of it everything is 0.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def tri_plane_features(planes: Tensor, points: Tensor) -> Tensor:
    """Return the sum `[B, P, C]` of three bilinear samples.

    Args:
        planes: `[B, 3, C, R, R]` over (x, y), (x, z) and (y, z); the first runs along the width.
        points: `[B, P, 3]`.
    """
    batch = len(points)
    x, y, z = points.unbind(dim=-1)
    grid = torch.stack([torch.stack(pair, dim=-1) for pair in ((x, y), (x, z), (y, z))], dim=1)
    sampled = F.grid_sample(
        planes.flatten(0, 1), grid.reshape(batch * 3, -1, 1, 2), align_corners=False
    )
    return sampled[..., 0].unflatten(0, (batch, 3)).sum(dim=1).transpose(1, 2)


def volume_features(volume: Tensor, points: Tensor) -> Tensor:
    """Return trilinear samples `[B, P, C]` of `volume [B, C, D, H, W]` at `points [B, P, 3]`.

    Depth, height and width run along x, -z and y: the frontal camera sees width and height.
    """
    grid = _image_axes(points)[:, :, None, None]
    sampled = F.grid_sample(volume, grid, align_corners=False)
    return sampled[..., 0, 0].transpose(1, 2)


def multiscale_features(
    volumes: Tensor, points: Tensor, frequencies: tuple[int, int], *, num_levels: int
) -> Tensor:
    """Return samples `[B, P, L * m]` of L volumes, the finer ones tiled over the region.

    Args:
        volumes: `[B, L * m, R, R, R]`, level by level.
        points: `[B, P, 3]`.
        frequencies: Cells per side of the coarsest and of the finest level; the others lie between
            them in equal ratios. A level with more cells than the volume repeats it.
        num_levels: L.
    """
    size = volumes.shape[-1] + 1
    padded = _mirrored_edge(volumes).unflatten(1, (num_levels, -1))
    where = ((_image_axes(points) + 1) / 2).clamp(0, 1)
    first, last = frequencies
    ratio = (last / first) ** (1 / (num_levels - 1)) if num_levels > 1 else 1.0
    found = []
    for level in range(num_levels):
        cells = round(first * ratio**level)
        local = where if cells < size else torch.fmod(where * cells, size) / size
        grid = (2 * local - 1)[:, :, None, None]
        sampled = F.grid_sample(padded[:, level], grid, align_corners=False)
        found.append(sampled[..., 0, 0])
    return torch.cat(found, dim=1).transpose(1, 2)


def _image_axes(points: Tensor) -> Tensor:
    x, y, z = points.unbind(dim=-1)
    return torch.stack([y, -z, x], dim=-1)


def _mirrored_edge(volumes: Tensor) -> Tensor:
    """Grow `[B, C, R, R, R]` by one layer at the far sides, so that repeated copies join."""
    padded = F.pad(volumes.flip(2, 3, 4), (1, 0, 1, 0, 1, 0))
    body = F.pad(volumes, (0, 1, 0, 1, 0, 1))
    inside = F.pad(torch.ones_like(volumes[:1, :1]), (0, 1, 0, 1, 0, 1)).bool()
    return torch.where(inside, body, padded)
