"""Volume rendering of the two fields: coarse pass, importance samples, background.

Legend: B batch, N rays, S samples per ray and pass, H hidden size, C channels of the features.
Steps: spec/stylenerf.md 2.5.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from nfs.geometry import volume
from nfs.geometry.rays import Rays
from nfs.geometry.warps import contracted_points
from nfs.stylenerf.field import RGB_CHANNELS, RadianceField, ellipsoid_density
from nfs.stylenerf.field_options import Density
from nfs.stylenerf.layers import at_least_single
from nfs.stylenerf.spec import GeneratorSpec

PointWarp = Callable[[Tensor, Tensor], Tensor]
"""`(points [B, N, S, 3], cam2world [B, 4, 4]) -> points`, before the foreground is queried."""
Lookup = Callable[[Tensor], Tensor]
"""`points [B, P, D] -> numbers [B, P, I]` that a field is given: an encoding, or planes."""

_EXPONENT_LIMIT = 5.0


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
    layer_noise: tuple[Tensor, ...] | None = None
    """Standard normal maps `[B, 1, R, R]` of all noisy layers, planes first, in their order."""
    roll: Tensor | None = None
    """`[B]` standard normal of the images' roll."""
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
class _Pass:
    """Samples of one pass through the foreground."""

    depths: Tensor
    """`[B, N, S]` normalised."""
    values: Tensor
    """`[B, N, S, H]` what is composited: hidden states, or features where heads are not linear."""
    sigma: Tensor
    """`[B, N, S]`."""


def density(raw: Tensor, kind: Density) -> Tensor:
    """Turn raw densities into densities; negative ones count as 0 later on."""
    if kind == "relu":
        return F.relu(raw)
    if kind == "softplus":
        return F.softplus(raw - 1)
    if kind == "truncated_exponential":
        return torch.exp(_EXPONENT_LIMIT - F.relu(_EXPONENT_LIMIT - (raw - 1)))
    return raw


class FieldQuery:
    """A field with its styles and inputs: from points to what is composited, and to features.

    Args:
        field: The field.
        lookup: Turns points into the field's inputs.
        ws: Styles of the field `[B, num_ws, w_dim]`.
        recompute: Compute hidden states again in the backward pass instead of keeping them.
    """

    def __init__(
        self, field: RadianceField, lookup: Lookup, ws: Tensor, *, recompute: bool = False
    ) -> None:
        self.field, self.lookup, self.ws, self.recompute = field, lookup, ws, recompute

    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Query `points [B, N, S, D]`: values `[B, N, S, H]` and raw densities `[B, N, S]`.

        Under autocast the values are in its precision; encoding and densities are single.
        """
        if not self.recompute or not torch.is_grad_enabled():
            return self._query(points)
        values, sigma = checkpoint(
            self._query, points, use_reentrant=False, preserve_rng_state=False
        )
        return values, sigma

    def _query(self, points: Tensor) -> tuple[Tensor, Tensor]:
        batch, rays, samples, _ = points.shape
        with torch.autocast(points.device.type, enabled=False):
            encoded = self.lookup(points.reshape(batch, rays * samples, -1))
        values, sigma = self.field.hidden_and_sigma(encoded, self.ws)
        if not self.field.linear_heads:
            values = self.field.features(values, self.ws)
        values = values.reshape(batch, rays, samples, -1)
        if self.field.options.normalization == "rows":
            values = _normalized_rows(values)
        return values, at_least_single(sigma).reshape(batch, rays, samples)

    def composite(self, weights: Tensor, values: Tensor) -> Tensor:
        """Sum `values [B, N, S, H]` with `weights [B, N, S]`: features `[B, N, 3 + C]`."""
        return self.features(_composite(weights, values), weights.sum(dim=-1))

    def features(self, values: Tensor, total: Tensor | None = None) -> Tensor:
        """Turn values `[B, N, H]` of total weight `[B, N]` (None: 1) into `[B, N, 3 + C]`."""
        if not self.field.linear_heads:
            return values
        with torch.autocast(values.device.type, enabled=False):
            return self.field.features(at_least_single(values), self.ws, total)


class ForegroundQuery:
    """The foreground along a set of rays: from normalised depths to values and densities.

    Args:
        query: The field.
        rays: Rays.
        spec: Depths, density and prior.
        warp: Moves points before they are queried, or None; called with points only.
    """

    def __init__(
        self,
        query: FieldQuery,
        rays: Rays,
        spec: GeneratorSpec,
        *,
        warp: Callable[[Tensor], Tensor] | None,
    ) -> None:
        self.query, self.rays, self.spec, self.warp = query, rays, spec, warp

    def along(self, depths: Tensor) -> Tensor:
        """Return scene-unit depths of normalised ones."""
        return volume.scene_depths(depths, self.spec.depth_range, self.spec.depth_warp)

    def weights(self, sigma: Tensor, depths: Tensor) -> volume.RayWeights:
        """Return the compositing weights of densities at normalised `depths`, both `[B, N, S]`."""
        closed = self.spec.background is None and self.spec.emptiness == "opaque"
        return volume.ray_weights(
            sigma,
            depths if self.spec.normalized_distances else self.along(depths),
            scale=self.rays.directions.norm(dim=-1, keepdim=True),
            last=volume.OPAQUE if closed else 0.0,
        )

    def __call__(self, depths: Tensor, noise: Tensor | None) -> _Pass:
        """Query normalised `depths [B, N, S]`; `noise` is added to the density."""
        points = self.rays.at(self.along(depths))
        if self.warp is not None:
            moved = self.warp(points)
            if moved.shape != points.shape:
                raise ValueError(
                    f"point_warp returned {list(moved.shape)} for points {list(points.shape)}"
                )
            points = moved
        spec = self.spec
        values, sigma = self.query(contracted_points(points, spec.depth_range, spec.depth_warp))
        if spec.density_prior is not None:
            sigma = sigma + ellipsoid_density(points, spec.density_prior)
        if noise is not None:
            sigma = sigma + noise
        return _Pass(depths, values, density(sigma, spec.density))


def _normalized_rows(values: Tensor) -> Tensor:
    """Scale features `[B, R * R, S, 3 + C]` to unit length along each row of pixels."""
    rays = values.shape[1]
    side = math.isqrt(rays)
    if side * side != rays:
        raise ValueError(
            f"normalization='rows' needs all pixels of a square image, got {rays} rays; "
            "use 'channels' with the path regulariser"
        )
    features = F.normalize(values[..., RGB_CHANNELS:].unflatten(1, (side, side)), dim=2)
    return torch.cat([values[..., :RGB_CHANNELS], features.flatten(1, 2)], dim=-1)


def _per_ray(values: Tensor, num_rays: int) -> Tensor:
    """Reshape `[B, K * S, C]` to `[B, K, S, C]`."""
    return values.reshape(len(values), num_rays, -1, values.shape[-1])


def _composite(weights: Tensor, hidden: Tensor) -> Tensor:
    """Weighted sum over samples: `[B, N, S]` and `[B, N, S, H]` to `[B, N, H]`."""
    with torch.autocast(weights.device.type, enabled=False):
        return (weights[..., None, :] @ at_least_single(hidden))[..., 0, :]


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


def fine_depths(coarse: _Pass, query: ForegroundQuery, uniforms: Tensor) -> Tensor:
    """Return importance samples `[B, N, S]` of the coarse pass, normalised; no gradient."""
    with torch.no_grad():
        weights = query.weights(coarse.sigma, coarse.depths).weights
        return volume.importance_depths(coarse.depths, weights, uniforms)


def render_background(
    query: FieldQuery,
    rays: Rays,
    spec: GeneratorSpec,
    *,
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
    samples = spec.num_background_samples
    even = torch.linspace(-1, 0, samples, device=rays.directions.device)
    depths = even.expand(batch, num_rays, samples) * spec.background_start
    if training:
        depths = volume.jitter_depths(depths, _uniforms(draws.background_jitter, depths))
    unit = rays.directions / rays.directions.norm(dim=-1, keepdim=True)
    values, sigma = query(volume.inverted_sphere_points(rays.origins, unit, -depths))
    noise = _noise(draws.sigma_noise_background, sigma, training=training)
    sigma = sigma if noise is None else sigma + noise
    weights = volume.ray_weights(sigma, depths, scale=1.0, last=volume.OPAQUE).weights
    features = query.composite(weights, values)
    if not keep:
        return features, weights, None
    apart = query.features(values[:, -keep:].flatten(1, 2))
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
    """Render the foreground, with both passes where the generator is hierarchical.

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
    if depths is None:
        start = coarse_depths(query.rays, num_samples, jitter=draws.depth_jitter, training=training)
    else:
        start = depths[0]
    coarse = query(start, _noise(draws.sigma_noise_coarse, start, training=training))
    passes = [coarse]
    if query.spec.hierarchical:
        if depths is not None:
            chosen = depths[1]
        else:
            even = torch.linspace(0, 1, num_samples, device=start.device).expand_as(start)
            uniforms = _uniforms(draws.importance, start) if training else even
            chosen = fine_depths(coarse, query, uniforms)
        noise = _noise(draws.sigma_noise_fine, chosen, training=training)
        passes.insert(0, query(chosen, noise))
    else:
        chosen = start[..., :0]
    merged, order = torch.cat([each.depths for each in passes], dim=-1).sort(dim=-1)
    sigma = torch.cat([each.sigma for each in passes], dim=-1).gather(-1, order)
    result = query.weights(sigma, merged)
    sizes = [each.depths.shape[-1] for each in passes]
    unsorted = volume.unsort(result.weights, order).split(sizes, dim=-1)
    parts = [_composite(w, each.values) for w, each in zip(unsorted, passes, strict=True)]
    total = result.weights.sum(dim=-1)
    features = query.query.features(parts[0] if len(parts) == 1 else parts[0] + parts[1], total)
    if query.spec.emptiness == "white":
        white = F.pad(
            (1 - total)[..., None].expand(-1, -1, RGB_CHANNELS),
            (0, features.shape[-1] - RGB_CHANNELS),
        )
        features = features + white
    samples = None
    if keep:
        apart = torch.cat([each.values[:, -keep:] for each in passes], dim=2)
        where = order[:, -keep:, :, None].expand(-1, -1, -1, apart.shape[-1])
        apart = query.query.features(apart.gather(2, where).flatten(1, 2))
        samples = RaySamples(_per_ray(apart, keep), result.weights[:, -keep:])
    return features, result, (merged, start, chosen), samples
