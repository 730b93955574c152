"""One batch of scenes: both fields with their styles, and the rendering of rays through them.

Legend: B batch, N rays, S samples per ray and pass.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nfs.geometry.rays import Rays, camera_rays
from nfs.stylenerf.rendering import (
    FieldQuery,
    ForegroundQuery,
    Lookup,
    RayResult,
    RaySamples,
    RenderDraws,
    render_background,
    render_foreground,
)
from nfs.stylenerf.renderings import RenderOptions
from nfs.stylenerf.spec import GeneratorSpec


@dataclass(frozen=True)
class Scene:
    """The fields of a batch, ready to be queried."""

    spec: GeneratorSpec
    """Sizes and camera model."""
    foreground: FieldQuery
    """The head."""
    background: FieldQuery | None
    """Everything outside the unit sphere."""


def with_code(lookup: Lookup, code: Tensor) -> Lookup:
    """Return a lookup whose every point also carries its sample's latent `code [B, z]`."""

    def encoded(points: Tensor) -> Tensor:
        found = lookup(points)
        return torch.cat([found, code[:, None].expand(-1, found.shape[1], -1)], dim=-1)

    return encoded


def render_rays(
    scene: Scene,
    pixels: Tensor,
    cam2world: Tensor,
    *,
    options: RenderOptions,
    draws: RenderDraws,
    training: bool,
    keep: int = 0,
) -> RayResult:
    """Render the rays through `pixels [N, 2]` or `[B, N, 2]` of cameras `[B, 4, 4]`.

    Args:
        scene: Fields.
        pixels: (x right, y up) in [-1, 1].
        cam2world: Cameras.
        options: Changes to the plain rendering.
        draws: Random numbers of training.
        training: Jitter depths and add noise to densities.
        keep: Last rays whose samples are wanted one by one.
    """
    spec = scene.spec
    rays = camera_rays(pixels, cam2world, fov_deg=spec.fov_deg)
    point_warp = options.point_warp
    query = ForegroundQuery(
        scene.foreground,
        rays,
        spec,
        warp=None if point_warp is None else lambda points: point_warp(points, cam2world),
    )
    features, weights, (merged, coarse, fine), samples = render_foreground(
        query,
        num_samples=_num_samples(spec, options),
        depths=_injected_depths(options, rays),
        draws=draws,
        training=training,
        keep=keep,
    )
    background_weights = weights.weights[..., :0]
    if scene.background is not None:
        if options.background_cam2world is not None:
            rays = camera_rays(pixels, options.background_cam2world, fov_deg=spec.fov_deg)
        behind, background_weights, behind_samples = render_background(
            scene.background, rays, spec, draws=draws, training=training, keep=keep
        )
        features = features + weights.transmittance[..., None] * behind
        samples = _joined(samples, behind_samples, weights.transmittance[:, -keep:])
    return RayResult(
        features=features,
        weights=weights.weights,
        transmittance=weights.transmittance,
        background_weights=background_weights,
        depths=merged,
        depths_coarse=coarse,
        depths_fine=fine,
        samples=samples,
    )


def _joined(
    samples: RaySamples | None, behind: RaySamples | None, transmittance: Tensor
) -> RaySamples | None:
    if samples is None or behind is None:
        return samples
    return samples.followed_by(behind, transmittance)


def _num_samples(spec: GeneratorSpec, options: RenderOptions) -> int:
    if options.num_samples is not None:
        return options.num_samples
    if options.alpha == -1 and spec.samples_without_curriculum is not None:
        return spec.samples_without_curriculum
    return spec.num_samples


def _injected_depths(options: RenderOptions, rays: Rays) -> tuple[Tensor, Tensor] | None:
    if options.depths is None:
        return None
    batch, num_rays, _ = rays.directions.shape
    for name, depths in zip(("coarse", "fine"), options.depths, strict=True):
        if depths.ndim != 3 or depths.shape[0] not in (1, batch) or depths.shape[1] != num_rays:
            raise ValueError(
                f"{name} depths must be [{batch}, {num_rays}, S], got {list(depths.shape)}"
            )
    coarse, fine = options.depths
    return coarse.expand(batch, -1, -1), fine.expand(batch, -1, -1)
