"""Is there a head in the depth map, or a plane? Collapse to a plane is the commonest failure.

The depth map is unprojected to points, and a plane is fitted to those of the foreground. The relief
is how far the points stand off that plane, relative to how far they extend along it, so neither the
size of the head nor a tilt of the plane matters. A ball's visible half has 0.32, the open head of
`nfs.morphable` 0.35 to 0.39, a wall 0.

Legend: h and w pixels of the depth map, P points of the foreground.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nfs.geometry.rays import pixel_grid

FLAT_BELOW = 0.06
EMPTY_BELOW = 0.02
HOLLOW_BELOW = -0.2
SOLID_OPACITY = 0.5


@dataclass(frozen=True)
class Shape:
    """Shape of one depth map."""

    relief: float
    """RMS distance of the foreground from its best plane over its RMS extent in the plane."""
    bulge: float
    """Correlation in [-1, 1] of that distance (away from the camera) with the squared distance
    from the foreground's middle: positive where the middle is nearer, as in a face."""
    coverage: float
    """Share of pixels that are foreground."""

    @property
    def problem(self) -> str | None:
        """What is wrong with it, in words, or None."""
        if self.coverage < EMPTY_BELOW:
            return "the foreground is empty: the background paints the picture"
        if self.relief < FLAT_BELOW:
            return "the geometry is flat"
        if self.bulge < HOLLOW_BELOW:
            return "the geometry is hollow: its middle is farther away than its rim"
        return None


def measure_shape(depth: Tensor, opacity: Tensor, *, tan_half_fov: float, far: float) -> Shape:
    """Measure one depth map.

    Args:
        depth: `[h, w]` along the optical axis, scene units, `(1 - opacity) * far` mixed in.
        opacity: `[h, w]` in [0, 1].
        tan_half_fov: Half frame at depth 1.
        far: Depth that stands for nothing.
    """
    size = depth.shape[-1]
    opacity, depth = opacity.double().flatten(), depth.double().flatten()
    solid = opacity > SOLID_OPACITY
    coverage = float(solid.double().mean())
    if int(solid.sum()) < 4:
        return Shape(relief=0.0, bulge=0.0, coverage=coverage)
    surface = ((depth - (1 - opacity) * far) / opacity)[solid]
    grid = pixel_grid(size, device=depth.device).double()[solid]
    lateral = grid * tan_half_fov * surface[:, None]
    points = torch.cat([lateral, surface[:, None]], dim=1)
    points = points - points.mean(dim=0)
    variances, axes = torch.linalg.eigh(points.T @ points / len(points))
    normal = axes[:, 0] * torch.sign(axes[2, 0])  # away from the camera
    extent = (variances[1] + variances[2]).sqrt()
    relief = float(variances[0].clamp_min(0).sqrt() / extent.clamp_min(1e-12))
    off = points @ normal
    radius = (points - off[:, None] * normal).square().sum(dim=1)
    return Shape(relief=relief, bulge=_correlation(off, radius), coverage=coverage)


def _correlation(first: Tensor, second: Tensor) -> float:
    first, second = first - first.mean(), second - second.mean()
    scale = (first.square().sum() * second.square().sum()).sqrt()
    return float((first * second).sum() / scale) if float(scale) > 1e-18 else 0.0
