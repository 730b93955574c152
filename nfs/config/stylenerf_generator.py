"""Architecture of StyleNeRF's generator; the defaults are the published FFHQ model at 256 pixels.

The names are those of `nfs.stylenerf.spec`, which describes the mathematics.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from nfs.config.base import Config

UpsampleMode = Literal[
    "default",
    "bilinear", "bilinear_all", "bilinear_ada", "bilinear_ada_blur",
    "nearest", "nearest_ada", "nearest_ada_blur",
    "bicubic", "bicubic_ada", "bicubic_ada_blur",
    "pixelshuffle", "pixelshuffle_noblur",
    "nn_cat", "nn_cat_noblur",
    "liif",
]  # fmt: skip


class DensityPriorConfig(Config):
    """Solid ellipsoid that the density starts from, so that a short run has a head to paint."""

    radii: tuple[float, float, float] = (0.10, 0.08, 0.11)
    """Half axes towards the frontal camera, to the image's right, and up; scene units."""
    strength: float = Field(100.0, gt=0)
    """Raw density at the centre, per scene unit."""


class FieldConfig(Config):
    """Kind of a radiance field."""

    styled: bool = True
    """Layers modulated by styles; a background without styles has a latent code instead."""
    encoding: Literal["fourier", "gaussian", "none"] = "fourier"
    """Positional encoding of the points."""
    append_position: bool = False
    """The point itself joins its encoding."""
    position_scale: float = Field(1.0, gt=0)
    """Points are divided by it before they are encoded."""
    skip: bool = False
    """The encoding joins the hidden state again at half of the depth."""
    colour: Literal["features", "separate"] = "features"
    """Colour as a linear map of the features, or as separate outputs beside them."""
    merged_density: bool = False
    """Density and features from one head."""
    sigmoid_colour: bool = False
    """Colours pass a sigmoid; heads then run once per sample instead of once per ray."""
    normalization: Literal["none", "channels", "rows"] = "none"
    """Features of a sample have unit length over channels, or over image rows (original)."""


class InputConfig(Config):
    """Planes or volumes that the foreground looks points up in."""

    kind: Literal["tri_plane", "tri_plane_concat", "multi_plane", "volume", "multiscale_volume"] = (
        "tri_plane"
    )
    """Three planes, made as one image or apart; parallel planes; one volume or several."""
    resolution: int = Field(256, ge=8)
    """Pixels per side of a plane, voxels per side of a volume; a power of two."""
    start_resolution: int = Field(4, ge=2)
    """Resolution that the stack doubles from, a power of two."""
    channels: int = Field(32, ge=1)
    """Numbers that a point gets."""
    num_planes: int = Field(64, ge=2)
    """Parallel planes of `multi_plane`."""
    append_octaves: int | None = Field(None, ge=0, le=16)
    """Encode the point in so many octaves and append it; 0 appends the point alone."""
    channel_base: float = Field(1.0, gt=0)
    """Width of a block: `channel_base * 32768 / resolution`."""
    channel_max: int = Field(512, ge=4)
    """Largest width of a block."""
    bound: float | None = Field(None, gt=0)
    """Half the side of the covered region, scene units; null: the length of the depth range."""
    num_levels: int = Field(16, ge=1)
    """Volumes of `multiscale_volume`; each gives `channels / num_levels` numbers."""
    level_frequencies: tuple[int, int] = (16, 512)
    """Cells per side of the coarsest and the finest level."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _power_of_two(self, "resolution", "start_resolution")
        if self.start_resolution >= self.resolution:
            raise ValueError(
                f"start_resolution={self.start_resolution} must be below "
                f"resolution={self.resolution}: the stack doubles at least once"
            )
        if self.kind == "multiscale_volume" and self.channels % self.num_levels:
            raise ValueError(
                f"channels={self.channels} is not a multiple of num_levels={self.num_levels}"
            )
        _idle(self, {"num_planes"}, self.kind == "multi_plane", "kind: multi_plane")
        levels = {"num_levels", "level_frequencies"}
        _idle(self, levels, self.kind == "multiscale_volume", "kind: multiscale_volume")
        return self


class GeneratorConfig(Config):
    """Architecture of the generator."""

    z_dim: int = Field(512, ge=1)
    """Size of the latent."""
    w_dim: int = Field(512, ge=1)
    """Size of a style."""
    img_resolution: int = Field(256, ge=8)
    """Pixels per side of the image, a power of two."""
    mapping_num_layers: int = Field(8, ge=1)
    """Layers of the mapping network."""
    w_avg_beta: float = Field(0.995, ge=0, lt=1)
    """Decay of the running mean of styles per step; faster for short runs."""
    foreground: FieldConfig = FieldConfig()
    """Kind of the foreground field."""
    field_hidden_dim: int = Field(128, ge=1)
    """Width of the foreground field."""
    field_num_layers: int = Field(8, ge=0)
    """Hidden layers of the foreground field; 0 and 1 both make one (they differ in styles)."""
    inputs: InputConfig | None = None
    """Planes or volumes instead of a positional encoding in the foreground."""
    background: FieldConfig | None = FieldConfig(styled=False)
    """Kind of the background field; null: no background."""
    background_dim: int = Field(32, ge=1)
    """Size of the background code."""
    background_hidden_dim: int = Field(64, ge=1)
    """Width of the background field."""
    background_num_layers: int = Field(4, ge=0)
    """Hidden layers of the background field."""
    background_num_frequencies: int | None = Field(None, ge=1, le=16)
    """Octaves of the background's positional encoding; null: as the foreground's."""
    feature_dim: int = Field(256, ge=4)
    """Channels of the rendered feature map."""
    num_frequencies: int = Field(10, ge=1, le=16)
    """Octaves of the positional encoding."""
    resolution_vol: int = Field(32, ge=8)
    """Pixels per side of the rendered feature map, a power of two."""
    resolution_start: int = Field(32, ge=8)
    """First resolution of progressive growth, a power of two."""
    grow_field: bool = False
    """Growth enlarges the field's map alone; all 2-D blocks are active from the start."""
    num_samples: int = Field(14, ge=4)
    """Foreground samples per ray and pass."""
    hierarchical: bool = True
    """Second pass at importance samples."""
    num_background_samples: int = Field(4, ge=2)
    """Background samples per ray."""
    density: Literal["relu", "softplus", "truncated_exponential", "raw"] = "relu"
    """Turns the raw density of the foreground into a density."""
    emptiness: Literal["opaque", "open", "white"] = "opaque"
    """Without a background: the last sample is opaque, rays may stay empty, or end on white."""
    depth_range: tuple[float, float] = (0.88, 1.12)
    """Near and far end of the foreground, scene units; the camera is 1 away."""
    depth_warp: Literal["linear", "log", "inverse"] = "linear"
    """Spacing of depths between near and far."""
    normalized_distances: bool = False
    """Gaps between samples in normalised depths instead of scene units."""
    background_start: float = Field(0.5, gt=0, le=1)
    """Largest inverse radius of the background."""
    fov_deg: float = Field(12.0, gt=0, lt=120)
    """Field of view, degrees."""
    corner_aligned: bool = False
    """Outermost pixels on the border of the image, instead of half a pixel inside."""
    rectangle: tuple[int, int] | None = None
    """Height and width of the part of the image that is kept; black around it."""
    kernel_size: Literal[1, 3] = 1
    """Kernel of the 2-D blocks."""
    upsample_mode: UpsampleMode = "nn_cat"
    """How 2-D blocks double features."""
    architecture: Literal["skip", "orig", "resnet"] = "skip"
    """Kind of the 2-D blocks."""
    use_noise: bool = False
    """Noise in the 2-D blocks."""
    single_layer: bool = False
    """One layer per 2-D block instead of two."""
    shared_rgb_style: bool = False
    """Colour layers of the 2-D blocks share the last style."""
    residual_image: bool = True
    """Colours of the 2-D blocks are added to the volume-rendered image."""
    channel_base: float = Field(1.0, gt=0)
    """Width of a 2-D block: `channel_base * 32768 / resolution`."""
    channel_max: int = Field(1024, ge=4)
    """Largest width of a 2-D block."""
    conv_clamp: float | None = Field(256.0, gt=0)
    """Clamp of activations in the 2-D blocks; null for none."""
    magnitude_ema_beta: float | None = Field(0.999, ge=0, lt=1)
    """Decay of the running mean square of 2-D inputs per step, faster for short runs; null: off."""
    density_prior: DensityPriorConfig | None = None
    """Shape that the density starts from; null as published."""

    @model_validator(mode="after")
    def _sizes(self) -> Self:
        _power_of_two(self, "img_resolution", "resolution_vol", "resolution_start")
        if not self.resolution_start <= self.resolution_vol <= self.img_resolution:
            raise ValueError("need resolution_start <= resolution_vol <= img_resolution")
        if not 0 < self.depth_range[0] < self.depth_range[1]:
            raise ValueError(f"depth_range={self.depth_range}: need 0 < near < far")
        if self.rectangle is not None:
            for side in self.rectangle:
                if not 0 < side <= self.img_resolution or side % 2:
                    raise ValueError(
                        f"rectangle={self.rectangle}: sides must be even and at most "
                        f"img_resolution={self.img_resolution}"
                    )
        return self

    @model_validator(mode="after")
    def _fields(self) -> Self:
        has_background = self.background is not None
        names = {name for name in type(self).model_fields if name.startswith("background_")}
        _idle(self, names | {"num_background_samples"}, has_background, "a background")
        coded = self.background is not None and not self.background.styled
        _idle(self, {"background_dim"}, coded, "a background without styles")
        _idle(self, {"emptiness"}, not has_background, "background: null")
        encoding = {"encoding", "append_position", "position_scale"}
        _idle(self.foreground, encoding, self.inputs is None, "foreground without inputs")
        _idle(self, {"num_frequencies"}, self.inputs is None or has_background, "an encoding")
        for field, layers in ((self.foreground, "field"), (self.background, "background")):
            count = getattr(self, f"{layers}_num_layers")
            if field is not None and field.skip and count < 2:
                raise ValueError(f"skip needs {layers}_num_layers of 2 or more, got {count}")
        if self.img_resolution == self.resolution_vol:
            names = {"kernel_size", "upsample_mode", "architecture", "use_noise", "single_layer"}
            names |= {"shared_rgb_style", "residual_image"}
            _idle(self, names, False, "img_resolution above resolution_vol (2-D blocks)")
        return self


def _power_of_two(config: Config, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value & (value - 1):
            raise ValueError(f"{name}={value} is not a power of two")


def _idle(config: Config, names: set[str], used: bool, where: str) -> None:
    """Refuse settings that were given and have no effect."""
    idle = sorted(names & config.model_fields_set)
    fields = type(config).model_fields
    changed = [name for name in idle if getattr(config, name) != fields[name].default]
    if changed and not used:
        raise ValueError(f"{', '.join(changed)}: has an effect only with {where}")
