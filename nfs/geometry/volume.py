"""Volume rendering: depths along rays, importance sampling, compositing weights.

Legend: B batch, N rays, S samples per ray. Depths are "normalised" (0 near, 1 far) or in scene
units, as each function says. Sources: Mildenhall et al. 2020 (NeRF), Zhang et al. 2020 (NeRF++),
with the constants of spec/stylenerf.md 2.4 and 2.5.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import relu

from nfs.geometry.warps import DepthWarp, warped_depths

OPAQUE = 1e10
_PDF_FLOOR = 1e-5
_TRANSMITTANCE_FLOOR = 1e-10


@dataclass(frozen=True)
class RayWeights:
    """Contribution of each sample to its ray."""

    weights: Tensor
    """`[B, N, S]` in [0, 1], in the order of the depths."""
    transmittance: Tensor
    """`[B, N]` light that passes all samples but the last: what a background is multiplied by."""


def jitter_depths(depths: Tensor, uniforms: Tensor) -> Tensor:
    """Move each depth uniformly inside its stratum (end strata are half as wide).

    Args:
        depths: `[..., S]`, ascending.
        uniforms: `[..., S]` in [0, 1).
    """
    middles = (depths[..., 1:] + depths[..., :-1]) / 2
    upper = torch.cat([middles, depths[..., -1:]], dim=-1)
    lower = torch.cat([depths[..., :1], middles], dim=-1)
    return lower + (upper - lower) * uniforms


def scene_depths(
    depths: Tensor, depth_range: tuple[float, float], warp: DepthWarp = "linear"
) -> Tensor:
    """Map normalised depths to scene units; `warp` chooses their spacing."""
    return warped_depths(depths, depth_range, warp)


def ray_weights(sigma: Tensor, depths: Tensor, *, scale: Tensor | float, last: float) -> RayWeights:
    """Turn densities into compositing weights (NeRF eq. 3).

    Args:
        sigma: Density per scene unit `[B, N, S]`; negative values count as 0.
        depths: `[B, N, S]`, ascending.
        scale: Length of a ray per unit of depth, a number or `[B, N, 1]`.
        last: Thickness of the last sample: 0 lets a background through, `OPAQUE` closes the ray.
    """
    gaps = (depths[..., 1:] - depths[..., :-1]) * scale
    gaps = torch.cat([gaps, torch.full_like(gaps[..., :1], last)], dim=-1)
    alpha = 1 - torch.exp(-relu(sigma) * gaps)
    if last > 0:
        alpha = torch.cat([alpha[..., :-1], torch.ones_like(alpha[..., :1])], dim=-1)
    passed = torch.cat([torch.ones_like(alpha[..., :1]), 1 - alpha + _TRANSMITTANCE_FLOOR], dim=-1)
    transmittance = torch.cumprod(passed, dim=-1)[..., :-1]
    return RayWeights(alpha * transmittance, transmittance[..., -1])


def importance_depths(depths: Tensor, weights: Tensor, uniforms: Tensor) -> Tensor:
    """Draw new depths where the weights are (inverse transform sampling, NeRF section 5.2).

    Args:
        depths: Normalised depths `[B, N, S]`, ascending.
        weights: `[B, N, S]`; the two end samples are not used.
        uniforms: `[B, N, M]` in [0, 1]; evenly spaced values make it deterministic.

    Returns:
        `[B, N, M]` normalised depths.
    """
    bins = (depths[..., 1:] + depths[..., :-1]) / 2
    return sample_bins(bins, weights[..., 1:-1], uniforms)


def sample_bins(bins: Tensor, weights: Tensor, uniforms: Tensor) -> Tensor:
    """Invert a piecewise constant distribution.

    Args:
        bins: Edges `[..., S]`, ascending.
        weights: Mass between them `[..., S - 1]`, not normalised.
        uniforms: `[..., M]` in [0, 1].

    Returns:
        `[..., M]` positions between the first and the last edge.
    """
    pdf = weights + _PDF_FLOOR
    pdf = pdf / pdf.sum(dim=-1, keepdim=True)
    cdf = torch.cat([torch.zeros_like(pdf[..., :1]), pdf.cumsum(dim=-1)], dim=-1)
    index = torch.searchsorted(cdf.contiguous(), uniforms.contiguous())
    below = (index - 1).clamp(min=0)
    above = index.clamp(max=bins.shape[-1] - 1)
    cdf_below, cdf_above = cdf.gather(-1, below), cdf.gather(-1, above)
    bin_below, bin_above = bins.gather(-1, below), bins.gather(-1, above)
    mass = cdf_above - cdf_below
    mass = torch.where(mass < _PDF_FLOOR, torch.ones_like(mass), mass)
    return bin_below + (uniforms - cdf_below) / mass * (bin_above - bin_below)


def merge_order(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Sort two sets of depths together: merged depths and the order that sorts `cat`."""
    return torch.cat([first, second], dim=-1).sort(dim=-1)


def unsort(values: Tensor, order: Tensor) -> Tensor:
    """Put sorted `values` back where they were before `order` sorted them.

    Compositing by moving the weights back costs `[B, N, S]`, moving the features forward would
    cost `[B, N, S, C]`.
    """
    return torch.zeros_like(values).scatter(-1, order, values)


def inverted_sphere_points(origins: Tensor, directions: Tensor, inverse_radius: Tensor) -> Tensor:
    """Parametrise points outside the unit sphere (NeRF++ section 4).

    Args:
        origins: Inside the unit sphere, `[B, N, 3]`.
        directions: Unit length, `[B, N, 3]`.
        inverse_radius: 1 / distance of the point from the centre, in [0, 1], `[B, N, S]`.

    Returns:
        `[B, N, S, 4]`: unit direction from the centre, and the inverse radius.
    """
    to_middle = -(directions * origins).sum(dim=-1)
    middle = origins + to_middle[..., None] * directions
    distance = middle.norm(dim=-1)
    to_sphere = to_middle + (1 - distance * distance).sqrt()
    on_sphere = origins + to_sphere[..., None] * directions
    axis = torch.linalg.cross(origins, on_sphere)
    axis = axis / axis.norm(dim=-1, keepdim=True)
    distance = distance[..., None]
    angle = (torch.asin(distance) - torch.asin(distance * inverse_radius))[..., None]
    # Rodrigues' rotation of the sphere point towards the point at 1 / inverse_radius.
    across = torch.linalg.cross(axis, on_sphere)
    along = axis * (axis * on_sphere).sum(dim=-1, keepdim=True)
    turned = (
        on_sphere[:, :, None] * angle.cos()
        + across[:, :, None] * angle.sin()
        + along[:, :, None] * (1 - angle.cos())
    )
    turned = turned / turned.norm(dim=-1, keepdim=True)
    return torch.cat([turned, inverse_radius[..., None]], dim=-1)
