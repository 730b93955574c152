"""The StyleNeRF generator: mapping network, radiance fields and the 2-D stack.

Legend: B batch, N rays, S samples per ray and pass, C feature channels, h/w size of the feature
map, H/W size of the image. Reference: Gu et al. 2022 (StyleNeRF), spec/stylenerf.md section 2.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nfs.geometry import volume
from nfs.geometry.cameras import orbit_cameras
from nfs.geometry.rays import camera_rays, pixel_grid
from nfs.stylenerf.field import RGB_CHANNELS, BackgroundField, ForegroundField
from nfs.stylenerf.mapping import MappingNetwork
from nfs.stylenerf.path_regularizer import StridedPixels, path_loss, strided_pixels
from nfs.stylenerf.rendering import (
    ForegroundQuery,
    PointWarp,
    RayResult,
    RaySamples,
    RenderDraws,
    Sampling,
    render_background,
    render_foreground,
)
from nfs.stylenerf.schedule import Stage, stage
from nfs.stylenerf.spec import GeneratorSpec
from nfs.stylenerf.synthesis import LayerOptions
from nfs.stylenerf.upsampler import Upsampler

FeatureEdit = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""`(features [B, C, h, w], image_low [B, 3, h, w]) -> (features, image_low)`."""

_FROZEN_BACKGROUND_PITCH_RAD = math.pi / 2 + 0.2


@dataclass(frozen=True)
class RenderOptions:
    """What a rendering changes from the plain image of a camera."""

    alpha: float = 1.0
    """Growth stage in [0, 1], or -1: everything active, no curriculum."""
    background_cam2world: Tensor | None = None
    """`[B, 4, 4]` camera of the background alone, e.g. `Generator.frozen_background_camera`."""
    point_warp: PointWarp | None = None
    """Moves foreground samples before the field is queried; gets coarse and fine points."""
    depths: tuple[Tensor, Tensor] | None = None
    """Normalised depths (coarse, fine), each `[B, N, S]`, instead of chosen ones."""
    edit_features: FeatureEdit | None = None
    """Changes the feature map and the low-resolution image just before the 2-D blocks."""
    num_samples: int | None = None
    """Foreground samples per ray and pass, instead of the generator's number."""
    path_pixels: int = 0
    """Pixels per side of the path regulariser in training; 0: no regulariser."""
    path_fade: bool = False
    """Fade the regulariser's colours as the image fades; the original does not (Q13)."""


@dataclass(frozen=True)
class Rendering:
    """A batch of images and what they were made of."""

    image: Tensor
    """`[B, 3, H, W]`, nominally in [-1, 1], not clamped."""
    image_low: Tensor
    """`[B, 3, h, w]` volume-rendered image, after `edit_features`."""
    features: Tensor
    """`[B, C, h, w]` feature map as the 2-D blocks saw it, after `edit_features`."""
    depth: Tensor
    """`[B, 1, h, w]` expected depth in scene units; rays that hit nothing count as far."""
    opacity: Tensor
    """`[B, 1, h, w]` share of the foreground in [0, 1]."""
    weights: Tensor
    """`[B, N, 2 S]` foreground weights in the order of `depths`."""
    transmittance: Tensor
    """`[B, N]` factor of the background."""
    background_weights: Tensor
    """`[B, N, Sb]`."""
    depths: Tensor
    """`[B, N, 2 S]` normalised depths of both passes, ascending."""
    depths_coarse: Tensor
    """`[B, N, S]` normalised."""
    depths_fine: Tensor
    """`[B, N, S]` normalised."""
    ws: Tensor
    """`[B, num_ws, w_dim]` the styles."""
    path_loss: Tensor | None = None
    """`[B]` path regulariser, where asked for and more than the first resolution is active."""


class Generator(nn.Module):
    """From latents and cameras to images.

    In evaluation mode the same inputs give the same image; the ambient grad mode is followed.

    Args:
        spec: Sizes and camera model.
    """

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__()
        self.spec = spec
        self.foreground = ForegroundField(
            spec.w_dim,
            hidden_dim=spec.field_hidden_dim,
            num_layers=spec.field_num_layers,
            feature_dim=spec.feature_dim,
            num_frequencies=spec.num_frequencies,
            prior=spec.density_prior,
        )
        self.background = BackgroundField(
            spec.background_dim,
            hidden_dim=spec.background_hidden_dim,
            num_layers=spec.background_num_layers,
            feature_dim=spec.feature_dim,
            num_frequencies=spec.num_frequencies,
        )
        self.upsampler = Upsampler(
            spec.feature_dim,
            LayerOptions(
                w_dim=spec.w_dim,
                clamp=spec.conv_clamp,
                magnitude_beta=spec.magnitude_ema_beta,
            ),
            resolutions=spec.block_resolutions,
            channels=[spec.channels(resolution) for resolution in spec.block_resolutions],
        )
        self.mapping_network = MappingNetwork(
            spec.z_dim,
            spec.w_dim,
            self.foreground.num_ws + self.upsampler.num_ws,
            num_layers=spec.mapping_num_layers,
            w_avg_beta=spec.w_avg_beta,
        )

    @classmethod
    def from_checkpoint(cls, directory: str | Path, *, ema: bool = True) -> "Generator":
        """Return the generator of a checkpoint directory, in eval mode on the CPU."""
        from nfs.stylenerf.export import load_generator

        return load_generator(directory, ema=ema)

    @property
    def z_dim(self) -> int:
        """Size of the latent."""
        return self.spec.z_dim

    @property
    def w_dim(self) -> int:
        """Size of a style."""
        return self.spec.w_dim

    @property
    def num_ws(self) -> int:
        """Rows of `ws`."""
        return self.mapping_network.num_ws

    @property
    def num_field_ws(self) -> int:
        """First rows of `ws`, which drive the radiance field."""
        return self.foreground.num_ws

    @property
    def img_resolution(self) -> int:
        """Pixels per side of the full image."""
        return self.spec.img_resolution

    @property
    def background_dim(self) -> int:
        """Size of the background code."""
        return self.spec.background_dim

    @property
    def w_avg(self) -> Tensor:
        """Running mean of the styles `[w_dim]`."""
        return self.mapping_network.w_avg

    def mapping(
        self,
        z: Tensor,
        *,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        update_average: bool = False,
    ) -> Tensor:
        """Return the styles `ws [B, num_ws, w_dim]` of `z [B, z_dim]`; see `MappingNetwork`."""
        ws: Tensor = self.mapping_network(
            z,
            truncation_psi=truncation_psi,
            truncation_cutoff=truncation_cutoff,
            update_average=update_average,
        )
        return ws

    def frozen_background_camera(self, batch_size: int) -> Tensor:
        """Return the fixed camera `[B, 4, 4]` that keeps a background still while heads turn."""
        like = self.w_avg
        return orbit_cameras(
            like.new_zeros(batch_size),
            like.new_full((batch_size,), _FROZEN_BACKGROUND_PITCH_RAD),
            sum(self.spec.cameras.radius) / 2,
        )

    def synthesis(
        self,
        ws: Tensor,
        cam2world: Tensor,
        *,
        background_code: Tensor,
        options: RenderOptions | None = None,
        draws: RenderDraws | None = None,
    ) -> Rendering:
        """Render images.

        Args:
            ws: Styles `[B, num_ws, w_dim]`.
            cam2world: Cameras `[B, 4, 4]`, OpenCV axes.
            background_code: Latent of the background `[B, background_dim]`.
            options: Changes to the plain image.
            draws: Random numbers for training mode; missing ones come from torch's generator.

        Raises:
            ValueError: If a shape does not fit; the message names the argument.
        """
        options = options or RenderOptions()
        self._check(ws, cam2world, background_code)
        active = self.stage(options.alpha)
        size, draws = active.field_resolution, draws or RenderDraws()
        batch = len(ws)
        strided = self._strided_pixels(options, draws, batch, active)
        result = self._render_rays(
            ws,
            cam2world,
            background_code,
            pixels=self._pixels(size, strided),
            keep=0 if strided is None else strided.index.shape[1],
            options=options,
            draws=draws,
        )
        samples, result = result.samples, result.first(size * size)
        maps = result.features.transpose(1, 2).reshape(batch, -1, size, size)
        image_low, features = maps[:, :RGB_CHANNELS], maps[:, RGB_CHANNELS:]
        if options.edit_features is not None:
            features, image_low = options.edit_features(features, image_low)
        image = self._upsample(features, image_low, ws[:, self.num_field_ws :], active)
        near, far = self.spec.depth_range
        opacity = result.weights.sum(dim=-1)
        along = volume.scene_depths(result.depths, (near, far))
        depth = (result.weights * along).sum(dim=-1) + (1 - opacity) * far
        return Rendering(
            image=image,
            image_low=image_low,
            features=features,
            depth=depth.reshape(batch, 1, size, size),
            opacity=opacity.reshape(batch, 1, size, size),
            weights=result.weights,
            transmittance=result.transmittance,
            background_weights=result.background_weights,
            depths=result.depths,
            depths_coarse=result.depths_coarse,
            depths_fine=result.depths_fine,
            ws=ws,
            path_loss=self._path_loss(samples, ws, (image, strided), active, options),
        )

    def forward(
        self,
        z: Tensor,
        cam2world: Tensor,
        *,
        background_code: Tensor,
        mixing: tuple[Tensor, int] | None = None,
        options: RenderOptions | None = None,
        draws: RenderDraws | None = None,
    ) -> Rendering:
        """Render `z [B, z_dim]` with untruncated styles; the training entry (`DDP` wraps it).

        Args:
            z: Latents.
            cam2world: Cameras `[B, 4, 4]`.
            background_code: `[B, background_dim]`.
            mixing: Second latents `[B, z_dim]` and the first row of `ws` they drive, or None.
            options: See `synthesis`.
            draws: See `synthesis`.
        """
        ws = self.mapping(z, update_average=self.training)
        if mixing is not None:
            other, cutoff = mixing
            ws = torch.cat([ws[:, :cutoff], self.mapping(other)[:, cutoff:]], dim=1)
        return self.synthesis(
            ws, cam2world, background_code=background_code, options=options, draws=draws
        )

    def stage(self, alpha: float) -> Stage:
        """Return the resolutions in use at `alpha`."""
        return stage(
            alpha,
            resolution_start=self.spec.resolution_start,
            resolution_vol=self.spec.resolution_vol,
            img_resolution=self.spec.img_resolution,
            progressive=self.spec.progressive,
        )

    def _check(self, ws: Tensor, cam2world: Tensor, background_code: Tensor) -> None:
        expected = {
            "ws": (ws, (len(ws), self.num_ws, self.w_dim)),
            "cam2world": (cam2world, (len(ws), 4, 4)),
            "background_code": (background_code, (len(ws), self.background_dim)),
        }
        for name, (value, shape) in expected.items():
            if tuple(value.shape) != shape:
                raise ValueError(f"{name} must be {list(shape)}, got {list(value.shape)}")

    def _render_rays(
        self,
        ws: Tensor,
        cam2world: Tensor,
        background_code: Tensor,
        *,
        pixels: Tensor,
        keep: int,
        options: RenderOptions,
        draws: RenderDraws,
    ) -> RayResult:
        spec = self.spec
        rays = camera_rays(pixels, cam2world, fov_deg=spec.fov_deg)
        point_warp = options.point_warp
        query = ForegroundQuery(
            self.foreground,
            rays,
            ws[:, : self.num_field_ws],
            depth_range=spec.depth_range,
            warp=None if point_warp is None else lambda points: point_warp(points, cam2world),
        )
        features, weights, (merged, coarse, fine), samples = render_foreground(
            query,
            num_samples=options.num_samples or spec.num_samples,
            depths=self._injected_depths(options, len(ws), pixels.shape[-2]),
            draws=draws,
            training=self.training,
            keep=keep,
        )
        if options.background_cam2world is not None:
            rays = camera_rays(pixels, options.background_cam2world, fov_deg=spec.fov_deg)
        behind, background_weights, behind_samples = render_background(
            self.background,
            rays,
            background_code,
            sampling=Sampling(
                num_samples=spec.num_samples,
                num_background_samples=spec.num_background_samples,
                depth_range=spec.depth_range,
                background_start=spec.background_start,
            ),
            draws=draws,
            training=self.training,
            keep=keep,
        )
        if samples is not None and behind_samples is not None:
            samples = samples.followed_by(behind_samples, weights.transmittance[:, -keep:])
        return RayResult(
            features=features + weights.transmittance[..., None] * behind,
            weights=weights.weights,
            transmittance=weights.transmittance,
            background_weights=background_weights,
            depths=merged,
            depths_coarse=coarse,
            depths_fine=fine,
            samples=samples,
        )

    def _strided_pixels(
        self, options: RenderOptions, draws: RenderDraws, batch: int, active: Stage
    ) -> StridedPixels | None:
        wanted = self.training and options.path_pixels > 0
        if not wanted or active.image_resolution == self.spec.resolution_start:
            return None
        uniforms = draws.path_offsets
        if uniforms is None:
            uniforms = torch.rand(batch, 2, device=self.w_avg.device)
        return strided_pixels(active.image_resolution, options.path_pixels, uniforms)

    def _pixels(self, size: int, strided: StridedPixels | None) -> Tensor:
        pixels = pixel_grid(size, device=self.w_avg.device)
        if strided is None:
            return pixels
        everywhere = pixels.expand(len(strided.index), -1, 2)
        return torch.cat([everywhere, strided.coordinates], dim=1)

    def _path_loss(
        self,
        samples: RaySamples | None,
        ws: Tensor,
        target: tuple[Tensor, StridedPixels | None],
        active: Stage,
        options: RenderOptions,
    ) -> Tensor | None:
        image, strided = target
        if samples is None or strided is None:
            return None
        ws = ws[:, self.num_field_ws :]
        fade = active.fade if options.path_fade else None
        return path_loss(self.upsampler, samples, ws, (image, strided), fade=fade)

    @staticmethod
    def _injected_depths(
        options: RenderOptions, batch: int, num_rays: int
    ) -> tuple[Tensor, Tensor] | None:
        if options.depths is None:
            return None
        for name, depths in zip(("coarse", "fine"), options.depths, strict=True):
            if depths.ndim != 3 or depths.shape[0] not in (1, batch) or depths.shape[1] != num_rays:
                raise ValueError(
                    f"{name} depths must be [{batch}, {num_rays}, S], got {list(depths.shape)}"
                )
        coarse, fine = options.depths
        return coarse.expand(batch, -1, -1), fine.expand(batch, -1, -1)

    def _upsample(self, features: Tensor, image_low: Tensor, ws: Tensor, active: Stage) -> Tensor:
        images = self.upsampler(features, image_low, ws, limit=active.image_resolution)
        newest = images[-1] if images else image_low
        if active.fade is None or not images:
            return newest
        previous = ([image_low, *images])[-2]
        size = newest.shape[-2:]
        previous = F.interpolate(previous, size=size, mode="bilinear", align_corners=False)
        return previous * (1 - active.fade) + newest * active.fade
