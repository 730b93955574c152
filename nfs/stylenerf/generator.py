"""The StyleNeRF generator: mapping network, radiance fields and the 2-D stack.

Legend: B batch, N rays, S samples per ray and pass, C feature channels, h/w size of the feature
map, H/W size of the image. Reference: Gu et al. 2022 (StyleNeRF), spec/stylenerf.md section 2.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nfs.geometry import volume
from nfs.geometry.cameras import orbit_cameras
from nfs.geometry.rays import corner_pixel_grid, pixel_grid, rolled_pixels
from nfs.stylenerf.cameras import CameraHead
from nfs.stylenerf.encodings import PointEncoding
from nfs.stylenerf.field import RGB_CHANNELS, RadianceField
from nfs.stylenerf.inputs import PlaneInput, foreground_inputs, point_encoding
from nfs.stylenerf.mapping import MappingNetwork
from nfs.stylenerf.path_regularizer import StridedPixels, path_loss, strided_pixels
from nfs.stylenerf.rendering import FieldQuery, Lookup, RaySamples, RenderDraws
from nfs.stylenerf.renderings import FeatureEdit, Rendering, RenderOptions
from nfs.stylenerf.scene import Scene, render_rays, with_code
from nfs.stylenerf.schedule import Stage, stage
from nfs.stylenerf.spec import GeneratorSpec
from nfs.stylenerf.synthesis import LayerOptions, Noise
from nfs.stylenerf.upsampler import Upsampler, framed

__all__ = ["FeatureEdit", "Generator", "RenderOptions", "Rendering"]

_FROZEN_BACKGROUND_PITCH_RAD = math.pi / 2 + 0.2


class Generator(nn.Module):
    """From latents and cameras to images.

    In evaluation mode the same inputs give the same image; the ambient grad mode is followed.

    Args:
        spec: Sizes and camera model.
    """

    recompute_field = False
    """Compute the fields' hidden states again in the backward pass instead of keeping them."""
    alpha = 1.0
    """Growth stage that is rendered where `RenderOptions` names none: that of the checkpoint."""

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__()
        self.spec = spec
        w_dim = spec.w_dim
        self.inputs: PointEncoding | PlaneInput = foreground_inputs(spec)
        self.foreground = RadianceField(
            self.inputs.dim,
            hidden_dim=spec.field_hidden_dim,
            num_layers=spec.field_num_layers,
            feature_dim=spec.feature_dim,
            w_dim=w_dim,
            options=spec.foreground,
        )
        self.background: RadianceField | None = None
        self.background_encoding: PointEncoding | None = None
        if spec.background is not None:
            octaves = spec.background_num_frequencies or spec.num_frequencies
            self.background_encoding = point_encoding(spec.background, 4, octaves)
            self.background = RadianceField(
                self.background_encoding.dim + self.background_dim,
                hidden_dim=spec.background_hidden_dim,
                num_layers=spec.background_num_layers,
                feature_dim=spec.feature_dim,
                w_dim=w_dim,
                options=spec.background,
            )
        self.upsampler = Upsampler(
            spec.feature_dim,
            LayerOptions(
                w_dim=w_dim,
                kernel_size=spec.kernel_size,
                upsample_mode=spec.upsample_mode,
                use_noise=spec.use_noise,
                clamp=spec.conv_clamp,
                magnitude_beta=spec.magnitude_ema_beta,
                flip_up_kernel=spec.flip_up_kernel,
            ),
            resolutions=spec.block_resolutions,
            channels=[spec.channels(resolution) for resolution in spec.block_resolutions],
            architecture=spec.architecture,
            single_layer=spec.single_layer,
            shared_rgb_style=spec.shared_rgb_style,
            residual_image=spec.residual_image,
        )
        self.camera_head = None if spec.camera_head is None else CameraHead(*spec.camera_head)
        self.mapping_network = MappingNetwork(
            spec.z_dim,
            w_dim,
            sum(self._rows),
            num_layers=spec.mapping_num_layers,
            w_avg_beta=spec.w_avg_beta,
            c_dim=spec.c_dim,
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
        """First rows of `ws`, which drive planes and radiance fields."""
        return sum(self._rows[:3])

    @property
    def img_resolution(self) -> int:
        """Pixels per side of the full image."""
        return self.spec.img_resolution

    @property
    def background_dim(self) -> int:
        """Size of the background code; 0 without a background or with a styled one."""
        background = self.spec.background
        return 0 if background is None or background.styled else self.spec.background_dim

    @property
    def _rows(self) -> list[int]:
        """Rows of `ws` of planes, foreground, background, 2-D blocks and camera, in this order."""
        return [
            self.inputs.num_ws,
            self.foreground.num_ws,
            0 if self.background is None else self.background.num_ws,
            self.upsampler.num_ws,
            0 if self.camera_head is None else 1,
        ]

    @property
    def w_avg(self) -> Tensor:
        """Running mean of the styles `[w_dim]`."""
        return self.mapping_network.w_avg

    def mapping(
        self,
        z: Tensor,
        c: Tensor | None = None,
        *,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        update_average: bool = False,
    ) -> Tensor:
        """Return the styles `ws [B, num_ws, w_dim]` of `z [B, z_dim]`; see `MappingNetwork`."""
        ws: Tensor = self.mapping_network(
            z,
            c,
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
        if options.alpha is None:
            options = replace(options, alpha=self.alpha)
        assert options.alpha is not None
        self._check(ws, cam2world, background_code)
        active = self.stage(options.alpha)
        if active.fade is not None and options.fade is not None:
            active = replace(active, fade=options.fade)
        size, draws = active.field_resolution, draws or RenderDraws()
        batch = len(ws)
        strided = self._strided_pixels(options, draws, batch, active)
        noise = options.noise if draws.layer_noise is None else iter(draws.layer_noise)
        rows = ws.split(self._rows, dim=1)
        pixels = self._pixels(size, strided)
        result = render_rays(
            self._scene(rows, background_code, noise),
            self._rolled(pixels, options, draws, batch),
            cam2world,
            options=options,
            draws=draws,
            training=self.training,
            keep=0 if strided is None else strided.index.shape[1],
        )
        samples, result = result.samples, result.first(size * size)
        image_low, features = self._maps(result.features, size, options)
        image = self._upsample(features, image_low, rows[3], active, noise)
        opacity = result.weights.sum(dim=-1)
        along = volume.scene_depths(result.depths, self.spec.depth_range, self.spec.depth_warp)
        depth = (result.weights * along).sum(dim=-1) + (1 - opacity) * self.spec.depth_range[1]
        return Rendering(
            image=framed(image, self.spec.rectangle, self.img_resolution),
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
            path_loss=self._path_loss(samples, rows[3], (image, strided), active, options),
        )

    def forward(
        self,
        z: Tensor,
        cam2world: Tensor,
        *,
        background_code: Tensor,
        c: Tensor | None = None,
        mixing: tuple[Tensor, int | Tensor] | None = None,
        options: RenderOptions | None = None,
        draws: RenderDraws | None = None,
    ) -> Rendering:
        """Render `z [B, z_dim]` with untruncated styles; the training entry (`DDP` wraps it).

        Args:
            z: Latents.
            cam2world: Cameras `[B, 4, 4]`.
            background_code: `[B, background_dim]`.
            c: Labels `[B, c_dim]`, where the generator has them.
            mixing: Second latents `[B, z_dim]` and the first row of `ws` they drive, or None.
            options: See `synthesis`.
            draws: See `synthesis`.
        """
        ws = self.mapping(z, c, update_average=self.training)
        if mixing is not None:
            other, cutoff = mixing
            rows = torch.arange(self.num_ws, device=ws.device)[:, None]
            ws = torch.where(rows < cutoff, ws, self.mapping(other, c))
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
            grow_field=self.spec.grow_field,
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

    def _scene(self, rows: Sequence[Tensor], background_code: Tensor, noise: Noise) -> Scene:
        lookup: Lookup = self.inputs
        if isinstance(self.inputs, PlaneInput):
            lookup = self.inputs.prepare(rows[0], noise=noise)
        behind = None
        if self.background is not None:
            assert self.background_encoding is not None
            encoding: Lookup = self.background_encoding
            if background_code.shape[1]:
                encoding = with_code(encoding, background_code)
            behind = FieldQuery(self.background, encoding, rows[2], recompute=self.recompute_field)
        front = FieldQuery(self.foreground, lookup, rows[1], recompute=self.recompute_field)
        return Scene(self.spec, front, behind)

    def _strided_pixels(
        self, options: RenderOptions, draws: RenderDraws, batch: int, active: Stage
    ) -> StridedPixels | None:
        wanted = self.training and options.path_pixels > 0
        if not wanted or active.image_resolution == self.spec.resolution_start:
            return None
        uniforms = draws.path_offsets
        if uniforms is None:
            uniforms = torch.rand(batch, 2, device=self.w_avg.device)
        strided = strided_pixels(active.image_resolution, options.path_pixels, uniforms)
        grid = self._pixel_grid(active.image_resolution)
        return replace(strided, coordinates=grid[strided.index])

    def _pixel_grid(self, size: int) -> Tensor:
        device = self.w_avg.device
        if self.spec.corner_aligned:
            return corner_pixel_grid(size, self.img_resolution, device=device)
        return pixel_grid(size, device=device)

    def _pixels(self, size: int, strided: StridedPixels | None) -> Tensor:
        pixels = self._pixel_grid(size)
        if strided is None:
            return pixels
        everywhere = pixels.expand(len(strided.index), -1, 2)
        return torch.cat([everywhere, strided.coordinates], dim=1)

    def _rolled(
        self, pixels: Tensor, options: RenderOptions, draws: RenderDraws, batch: int
    ) -> Tensor:
        roll_rad, spread = options.roll_rad, self.spec.cameras.roll_deg
        if roll_rad is None and self.training and spread > 0:
            normal = draws.roll
            if normal is None:
                normal = torch.randn(batch, device=pixels.device)
            roll_rad = normal * math.radians(spread / 2)
        return pixels if roll_rad is None else rolled_pixels(pixels, roll_rad)

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
        fade = active.fade if options.path_fade else None
        # The original's rays that stay empty are black in images and white here (Q26).
        white = self.spec.emptiness != "opaque"
        target = (image, strided)
        return path_loss(self.upsampler, samples, ws, target, fade=fade, white=white)

    def _maps(self, features: Tensor, size: int, options: RenderOptions) -> tuple[Tensor, Tensor]:
        """Return image and features `[B, 3 or C, h, w]` of rays as the 2-D blocks see them."""
        maps = features.transpose(1, 2).reshape(len(features), -1, size, size)
        if self.spec.grow_field and size != self.spec.resolution_vol:
            full = (self.spec.resolution_vol, self.spec.resolution_vol)
            maps = F.interpolate(maps, size=full, mode="bilinear", align_corners=False)
        image_low, features = maps[:, :RGB_CHANNELS], maps[:, RGB_CHANNELS:]
        if options.edit_features is not None:
            features, image_low = options.edit_features(features, image_low)
        return image_low, features

    def _upsample(
        self, features: Tensor, image_low: Tensor, ws: Tensor, active: Stage, noise: Noise
    ) -> Tensor:
        images = self.upsampler(features, image_low, ws, limit=active.image_resolution, noise=noise)
        image = images[-1] if images else image_low
        if active.fade is not None and images:
            previous = ([image_low, *images])[-2]
            size = image.shape[-2:]
            previous = F.interpolate(previous, size=size, mode="bilinear", align_corners=False)
            image = previous * (1 - active.fade) + image * active.fade
        return image
