"""Depth warps: how normalised depths spread between near and far, and where points end up.

Linear depths suit a bounded head; logarithmic and inverse ones reach far backgrounds with few
samples, and bring their points into a bounded region (spec/stylenerf.md 2.4).

Legend: B batch, N rays, S samples per ray.
"""

import math
from typing import Literal

import torch
from torch import Tensor

DepthWarp = Literal["linear", "log", "inverse"]

_LOG_CENTRE = (1.0, 0.0, 0.0)  # where the frontal camera of radius 1 stands


def warped_depths(depths: Tensor, depth_range: tuple[float, float], warp: DepthWarp) -> Tensor:
    """Map normalised depths (0 near, 1 far) to scene units: evenly spaced in the warped scale."""
    near, far = depth_range
    if warp == "linear":
        return near * (1 - depths) + far * depths
    if warp == "log":
        return torch.exp(math.log(near) * (1 - depths) + math.log(far) * depths)
    return 1 / ((1 / near) * (1 - depths) + (1 / far) * depths)


def contracted_points(points: Tensor, depth_range: tuple[float, float], warp: DepthWarp) -> Tensor:
    """Bring points `[..., 3]` (scene units) into the region that a field of this warp covers.

    Linear: unchanged. Log: distances from the frontal camera shrink to their square root over that
    of far. Inverse: points outside the unit ball move into the shell up to radius 2 (Barron et al.
    2022, mip-NeRF 360, eq. 10).
    """
    if warp == "linear":
        return points
    if warp == "log":
        offset = points - points.new_tensor(_LOG_CENTRE)
        return offset / (math.sqrt(depth_range[1]) * offset.norm(dim=-1, keepdim=True).sqrt())
    distance = points.norm(dim=-1, keepdim=True)
    outside = (2 - 1 / distance) * (points / distance)
    return torch.where(distance < 1, points, outside)
