"""Volume rendering of the two fields: coarse pass, importance samples, background.

Legend: B batch, N rays, S samples per ray and pass, H hidden size, C channels of the features.
Steps: spec/stylenerf.md 2.5.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import relu

from nfs.geometry import volume
from nfs.geometry.rays import Rays
from nfs.stylenerf.field import BackgroundField, ForegroundField

PointWarp = Callable[[Tensor, Tensor], Tensor]
"""`(points [B, N, S, 3], cam2world [B, 4, 4]) -> points`, before the foreground is queried."""


@dataclass(frozen=True)
class RenderDraws:
    """Random numbers of one rendering; a missing one is drawn from torch's global generator.

    Only training uses them: evaluation is deterministic. Uniforms lie in [0, 1), noise is standard
    normal and is added to the raw density.
    """

    depth_jitter: Tensor | None = None
    """`[B, N, S]` uniforms of the coarse foreground depths."""
    sigma_noise_coarse: Tensor | None = None
    """`[B, N, S]`."""
    importance: Tensor | None = None
    """`[B, N, S]` uniforms of the fine depths."""
    sigma_noise_fine: Tensor | None = None
    """`[B, N, S]`."""
    background_jitter: Tensor | None = None
    """`[B, N, Sb]` uniforms of the background depths."""
    sigma_noise_background: Tensor | None = None
    """`[B, N, Sb]`."""
    path_offsets: Tensor | None = None
    """`[B, 2]` uniforms that shift the pixels of the path regulariser (`RenderOptions`)."""


@dataclass(frozen=True)
class RaySamples:
    """Samples of some rays one by one, along the ray, not composited."""

    features: Tensor
    """`[B, K, S, 3 + C]`: colour, then features."""
    weights: Tensor
    """`[B, K, S]` share of each sample in its ray."""

    def followed_by(self, behind: "RaySamples", transmittance: Tensor) -> "RaySamples":
        """Return these samples and then those behind them, seen through `transmittance [B, K]`."""
        weights = behind.weights * transmittance[..., None]
        return RaySamples(
            torch.cat([self.features, behind.features], dim=2),
            torch.cat([self.weights, weights], dim=2),
        )


@dataclass(frozen=True)
class RayResult:
    """Composited rays of one rendering."""

    features: Tensor
    """`[B, N, 3 + C]`: colour, then features."""
    weights: Tensor
    """`[B, N, 2 S]` foreground weights in the order of `depths`."""
    transmittance: Tensor
    """`[B, N]` factor of the background."""
    background_weights: Tensor
    """`[B, N, Sb]`, without the factor."""
    depths: Tensor
    """`[B, N, 2 S]` normalised depths of both passes, ascending."""
    depths_coarse: Tensor
    """`[B, N, S]` normalised, ascending."""
    depths_fine: Tensor
    """`[B, N, S]` normalised."""
    samples: RaySamples | None = None
    """Samples of the last rays one by one, where asked for."""

    def first(self, count: int) -> "RayResult":
        """Return the first `count` rays, without samples."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "samples"}
        return RayResult(**{name: value[:, :count] for name, value in values.items()})


@dataclass(frozen=True)
class Sampling:
    """Where rays are sampled."""

    num_samples: int
    """Foreground samples per ray and pass."""
    num_background_samples: int
    """Background samples per ray."""
    depth_range: tuple[float, float]
    """Near and far end of the foreground, scene units."""
    background_start: float
    """Largest inverse radius of the background, in (0, 1]."""


@dataclass(frozen=True)
class _Pass:
    """Samples of one pass through the foreground."""

    depths: Tensor
    hidden: Tensor
    sigma: Tensor


class ForegroundQuery:
    """The foreground along a set of rays: from normalised depths to hidden states and densities.

    Args:
        field: The field.
        rays: Rays.
        ws: Styles of the field `[B, num_ws, w_dim]`.
        depth_range: Near and far, scene units.
        warp: Moves points before they are queried, or None; called with points only.
    """

    def __init__(
        self,
        field: ForegroundField,
        rays: Rays,
        ws: Tensor,
        *,
        depth_range: tuple[float, float],
        warp: Callable[[Tensor], Tensor] | None,
    ) -> None:
        self.field, self.rays, self.ws = field, rays, ws
        self.depth_range = depth_range
        self.warp = warp

    def __call__(self, depths: Tensor, noise: Tensor | None) -> _Pass:
        """Query normalised `depths [B, N, S]`; `noise` is added to the density."""
        points = self.rays.at(volume.scene_depths(depths, self.depth_range))
        if self.warp is not None:
            moved = self.warp(points)
            if moved.shape != points.shape:
                raise ValueError(
                    f"point_warp returned {list(moved.shape)} for points {list(points.shape)}"
                )
            points = moved
        batch, rays, samples, _ = points.shape
        hidden, sigma = self.field.hidden_and_sigma(points.reshape(batch, -1, 3), self.ws)
        sigma = sigma.reshape(batch, rays, samples)
        if noise is not None:
            sigma = sigma + noise
        return _Pass(depths, hidden.reshape(batch, rays, samples, -1), relu(sigma))


def _per_ray(values: Tensor, num_rays: int) -> Tensor:
    """Reshape `[B, K * S, C]` to `[B, K, S, C]`."""
    return values.reshape(len(values), num_rays, -1, values.shape[-1])


def _composite(weights: Tensor, hidden: Tensor) -> Tensor:
    """Weighted sum over samples: `[B, N, S]` and `[B, N, S, H]` to `[B, N, H]`."""
    return (weights[..., None, :] @ hidden)[..., 0, :]


def _noise(draw: Tensor | None, like: Tensor, *, training: bool) -> Tensor | None:
    if not training:
        return None
    return torch.randn_like(like) if draw is None else draw


def _uniforms(draw: Tensor | None, like: Tensor) -> Tensor:
    return torch.rand_like(like) if draw is None else draw


def coarse_depths(rays: Rays, num_samples: int, *, jitter: Tensor | None, training: bool) -> Tensor:
    """Return normalised depths `[B, N, S]`, evenly spaced or jittered in training."""
    batch, num_rays, _ = rays.directions.shape
    even = torch.linspace(0, 1, num_samples, device=rays.directions.device)
    depths = even.expand(batch, num_rays, num_samples)
    return volume.jitter_depths(depths, _uniforms(jitter, depths)) if training else depths


def fine_depths(coarse: _Pass, scale: Tensor, query: ForegroundQuery, uniforms: Tensor) -> Tensor:
    """Return importance samples `[B, N, S]` of the coarse pass, normalised; no gradient."""
    with torch.no_grad():
        along = volume.scene_depths(coarse.depths, query.depth_range)
        weights = volume.ray_weights(coarse.sigma, along, scale=scale, last=0.0).weights
        return volume.importance_depths(coarse.depths, weights, uniforms)


def render_background(
    field: BackgroundField,
    rays: Rays,
    code: Tensor,
    *,
    sampling: Sampling,
    draws: RenderDraws,
    training: bool,
    keep: int = 0,
) -> tuple[Tensor, Tensor, RaySamples | None]:
    """Render everything outside the unit sphere.

    Returns:
        Features `[B, N, 3 + C]`, weights `[B, N, Sb]` that sum to 1, and the samples of the last
        `keep` rays, if any.
    """
    batch, num_rays, _ = rays.directions.shape
    samples = sampling.num_background_samples
    even = torch.linspace(-1, 0, samples, device=code.device)
    depths = even.expand(batch, num_rays, samples) * sampling.background_start
    if training:
        depths = volume.jitter_depths(depths, _uniforms(draws.background_jitter, depths))
    unit = rays.directions / rays.directions.norm(dim=-1, keepdim=True)
    points = volume.inverted_sphere_points(rays.origins, unit, -depths)
    hidden, sigma = field.hidden_and_sigma(points.reshape(batch, -1, 4), code)
    sigma = sigma.reshape(batch, num_rays, samples)
    noise = _noise(draws.sigma_noise_background, sigma, training=training)
    sigma = sigma if noise is None else sigma + noise
    weights = volume.ray_weights(sigma, depths, scale=1.0, last=volume.OPAQUE).weights
    hidden = hidden.reshape(batch, num_rays, samples, -1)
    features = field.features(_composite(weights, hidden), weights.sum(dim=-1))
    if not keep:
        return features, weights, None
    apart = field.features(hidden[:, -keep:].flatten(1, 2))
    return features, weights, RaySamples(_per_ray(apart, keep), weights[:, -keep:])


def render_foreground(
    query: ForegroundQuery,
    *,
    num_samples: int,
    depths: tuple[Tensor, Tensor] | None,
    draws: RenderDraws,
    training: bool,
    keep: int = 0,
) -> tuple[Tensor, volume.RayWeights, tuple[Tensor, Tensor, Tensor], RaySamples | None]:
    """Render the foreground with both passes.

    Args:
        query: The field along the rays.
        num_samples: Samples per ray and pass.
        depths: Injected normalised depths (coarse, fine), or None to choose them.
        draws: Random numbers for training.
        training: Jitter depths and add noise to the density.
        keep: Last rays whose samples are wanted one by one.

    Returns:
        Features `[B, N, 3 + C]`, weights in sorted order, (sorted, coarse, fine) depths, and the
        samples of the last `keep` rays, if any.
    """
    scale = query.rays.directions.norm(dim=-1, keepdim=True)
    if depths is None:
        start = coarse_depths(query.rays, num_samples, jitter=draws.depth_jitter, training=training)
    else:
        start = depths[0]
    noise = _noise(draws.sigma_noise_coarse, start, training=training)
    coarse = query(start, noise)
    if depths is not None:
        chosen = depths[1]
    else:
        even = torch.linspace(0, 1, num_samples, device=start.device).expand_as(start)
        uniforms = _uniforms(draws.importance, start) if training else even
        chosen = fine_depths(coarse, scale, query, uniforms)
    noise = _noise(draws.sigma_noise_fine, chosen, training=training)
    fine = query(chosen, noise)
    merged, order = volume.merge_order(fine.depths, coarse.depths)
    sigma = torch.cat([fine.sigma, coarse.sigma], dim=-1).gather(-1, order)
    along = volume.scene_depths(merged, query.depth_range)
    result = volume.ray_weights(sigma, along, scale=scale, last=0.0)
    unsorted = volume.unsort(result.weights, order)
    fine_weights = unsorted[..., : chosen.shape[-1]]
    coarse_weights = unsorted[..., chosen.shape[-1] :]
    hidden = _composite(fine_weights, fine.hidden) + _composite(coarse_weights, coarse.hidden)
    features = query.field.features(hidden, query.ws, result.weights.sum(dim=-1))
    samples = None
    if keep:
        apart = torch.cat([fine.hidden[:, -keep:], coarse.hidden[:, -keep:]], dim=2)
        where = order[:, -keep:, :, None].expand(-1, -1, -1, apart.shape[-1])
        apart = query.field.features(apart.gather(2, where).flatten(1, 2), query.ws)
        samples = RaySamples(_per_ray(apart, keep), result.weights[:, -keep:])
    return features, result, (merged, start, chosen), samples
