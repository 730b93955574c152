"""Sizes of the networks: plain frozen data, stored as `model.json` of a checkpoint."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from nfs.geometry.warps import DepthWarp
from nfs.stylenerf.field_options import (
    PLAIN_FIELD,
    Density,
    EllipsoidPrior,
    Emptiness,
    FieldOptions,
    InputSpec,
)

_CHANNEL_UNIT = 32768


def channels_at(resolution: int, base: float, maximum: int) -> int:
    """Return the width of a layer: `base * 32768 / resolution`, at most `maximum`."""
    return min(int(base * _CHANNEL_UNIT) // resolution, maximum)


@dataclass(frozen=True)
class CameraPrior:
    """Distribution of cameras that a generator is trained with."""

    yaw_rad: tuple[float, float] = (-0.3, 0.3)
    """Range; the gaussian's mean is its middle and its standard deviation half its width."""
    pitch_rad: tuple[float, float] = (math.pi / 2 - 0.155, math.pi / 2 + 0.155)
    """Range of the polar angle, as for the yaw; pi/2 is level."""
    radius: tuple[float, float] = (1.0, 1.0)
    """Range of the distance in scene units, uniform."""
    gaussian: bool = True
    """Normal instead of uniform yaw and pitch."""
    angular: bool = True
    """False: the two ranges are shares of the sphere, yaw / 2 pi and (1 - cos pitch) / 2."""
    roll_deg: float = 0.0
    """Twice the standard deviation of the images' roll in training."""


@dataclass(frozen=True)
class GeneratorSpec:
    """Architecture of a generator; the defaults are the published FFHQ model at 256 pixels."""

    z_dim: int = 512
    """Size of the latent."""
    w_dim: int = 512
    """Size of a style."""
    img_resolution: int = 256
    """Pixels per side of the image, a power of two."""
    mapping_num_layers: int = 8
    """Layers of the mapping network."""
    w_avg_beta: float = 0.995
    """Decay of the running mean of styles."""
    field_hidden_dim: int = 128
    """Width of the foreground field."""
    field_num_layers: int = 8
    """Hidden layers of the foreground field."""
    background_dim: int = 32
    """Size of the background code."""
    background_hidden_dim: int = 64
    """Width of the background field."""
    background_num_layers: int = 4
    """Hidden layers of the background field."""
    feature_dim: int = 256
    """Channels of the rendered feature map."""
    num_frequencies: int = 10
    """Octaves of the positional encoding."""
    resolution_vol: int = 32
    """Pixels per side of the rendered feature map, a power of two."""
    resolution_start: int = 32
    """First resolution of progressive growth."""
    num_samples: int = 14
    """Foreground samples per ray and pass."""
    num_background_samples: int = 4
    """Background samples per ray."""
    depth_range: tuple[float, float] = (0.88, 1.12)
    """Near and far end of the foreground, scene units."""
    background_start: float = 0.5
    """Largest inverse radius of the background."""
    fov_deg: float = 12.0
    """Field of view."""
    channel_base: float = 1.0
    """Width of the 2-D blocks: `channel_base * 32768 / resolution`."""
    channel_max: int = 1024
    """Largest width of the 2-D blocks."""
    conv_clamp: float | None = 256.0
    """Clamp of activations in the 2-D blocks."""
    magnitude_ema_beta: float | None = 0.999
    """Decay of the running mean square of 2-D inputs."""
    progressive: bool = True
    """Whether alpha selects a growth stage."""
    density_prior: EllipsoidPrior | None = None
    """Shape that the density starts from, or None as in the original."""
    background_num_frequencies: int | None = None
    """Octaves of the background's positional encoding; None: as the foreground's."""
    c_dim: int = 0
    """Size of the label that the mapping network sees beside the latent; 0: none."""
    foreground: FieldOptions = field(default_factory=FieldOptions)
    """Kind of the foreground field."""
    background: FieldOptions | None = PLAIN_FIELD
    """Kind of the background field; None: no background. A styled one has no code."""
    inputs: InputSpec | None = None
    """Planes or volumes instead of a positional encoding in the foreground."""
    emptiness: Emptiness = "opaque"
    """What light meets that passes the foreground where there is no background: a last sample
    that is made opaque, nothing (the original's `white_background`, Q26), or a white wall."""
    density: Density = "relu"
    """Turns the raw density of the foreground into a density."""
    hierarchical: bool = True
    """Second pass at importance samples."""
    samples_without_curriculum: int | None = None
    """Samples at alpha -1 instead of `num_samples`; the original takes 20 there (Q17)."""
    depth_warp: DepthWarp = "linear"
    """Spacing of depths between near and far."""
    normalized_distances: bool = False
    """Gaps between samples in normalised depths instead of scene units."""
    corner_aligned: bool = False
    """Outermost pixels on the border of the image, instead of half a pixel inside."""
    rectangle: tuple[int, int] | None = None
    """Height and width of the part of the image that is kept; -1 (black) around it."""
    grow_field: bool = False
    """Growth enlarges the field's map alone; all 2-D blocks are active from the start."""
    kernel_size: int = 1
    """Kernel of the 2-D blocks, 1 or 3."""
    upsample_mode: str = "nn_cat"
    """How 2-D blocks double features, see `nfs.stylenerf.upsampling`."""
    architecture: str = "skip"
    """`skip`, `orig` or `resnet` 2-D blocks."""
    use_noise: bool = False
    """Noise in the 2-D blocks."""
    single_layer: bool = False
    """One layer per 2-D block instead of two."""
    shared_rgb_style: bool = False
    """Colour layers of the 2-D blocks share the last style."""
    residual_image: bool = True
    """Colours of the 2-D blocks are added to the volume-rendered image."""
    flip_up_kernel: bool = False
    """Larger kernels of learned doublings are flipped, as in the original (Q25)."""
    camera_head: tuple[int, int, int] | None = None
    """Sizes (input, hidden, output) of a network that predicts cameras from a style."""
    cameras: CameraPrior = field(default_factory=CameraPrior)
    """Cameras of training."""

    def __post_init__(self) -> None:
        """Refuse a meaning of empty rays where there is a background."""
        if self.background is not None and self.emptiness != "opaque":
            raise ValueError(f"emptiness={self.emptiness!r} needs background=None")

    @property
    def block_resolutions(self) -> list[int]:
        """Output resolutions of the 2-D blocks, ascending."""
        resolution, found = self.resolution_vol * 2, []
        while resolution <= self.img_resolution:
            found.append(resolution)
            resolution *= 2
        return found

    def channels(self, resolution: int) -> int:
        """Width of the 2-D block at `resolution`."""
        return channels_at(resolution, self.channel_base, self.channel_max)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for `model.json`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, tree: dict[str, Any]) -> "GeneratorSpec":
        """Read what `to_dict` wrote; unknown keys raise."""
        values = dict(tree)
        prior = dict(values.pop("cameras"))
        for key in ("yaw_rad", "pitch_rad", "radius"):
            prior[key] = tuple(prior[key])
        for key, make in _NESTED.items():
            if values.get(key) is not None:
                values[key] = make(**_tuples(values[key]))
        return cls(cameras=CameraPrior(**prior), **_tuples(values))


_NESTED = {
    "density_prior": EllipsoidPrior,
    "foreground": FieldOptions,
    "background": FieldOptions,
    "inputs": InputSpec,
}


def _tuples(tree: dict[str, Any]) -> dict[str, Any]:
    """JSON has lists where the specs have tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in tree.items()}


@dataclass(frozen=True)
class DiscriminatorSpec:
    """Architecture of a discriminator; the defaults are the published FFHQ model at 256 pixels."""

    img_resolution: int = 256
    """Pixels per side of the full image."""
    channel_base: float = 0.5
    """Width of a block: `channel_base * 32768 / resolution`."""
    channel_max: int = 512
    """Largest width."""
    conv_clamp: float | None = 256.0
    """Clamp of activations."""
    mbstd_group_size: int = 4
    """Samples per group of the minibatch statistics."""
    mbstd_num_channels: int = 1
    """Channels of the minibatch statistics."""
    progressive: bool = True
    """Whether alpha selects the first active block."""
    lowres_head: int | None = 32
    """Resolution of the first active block at alpha 0, and of the low-resolution blocks."""
    architecture: str = "skip"
    """`skip`, `orig` or `resnet`; growth needs `skip`."""
    fade: bool = False
    """Blend a new block in while the generator blends its own in; False: at once, as the original
    does in fact (Q2)."""
    c_dim: int = 0
    """Size of the condition (labels), or 0."""
    cmap_dim: int | None = None
    """Size that conditions are mapped to; None: the width at 4x4."""
    mapping_num_layers: int = 8
    """Layers of that mapping."""
    dual_discriminator: bool = False
    """Judge the low-resolution images too, with blocks of their own."""
    dual_input_ratio: int | None = None
    """Show the low-resolution image as three more channels; real ones are reduced by this."""
    camera: str | None = None
    """Predict the camera: `matrix`, `pose9` or `uvr`; see `discriminator_head`."""
    separate_camera: bool = False
    """Predict it with low-resolution blocks of its own."""
    camera_condition: bool = True
    """Whether the predicted camera conditions the logits."""
    num_frozen_layers: int = 0
    """Layers, counted from the image, that are not trained (Mo et al. 2020)."""

    @property
    def input_channels(self) -> int:
        """Channels of the image that the blocks see."""
        return 6 if self.dual_input_ratio else 3

    @property
    def condition_dim(self) -> int:
        """Size of what conditions the logits: labels or the predicted camera; 0 for nothing."""
        if self.camera is not None and self.camera_condition:
            return 3 if self.camera == "uvr" else 16
        return self.c_dim

    @property
    def cmap_features(self) -> int:
        """Size that conditions are mapped to; 0 without conditions."""
        if not self.condition_dim:
            return 0
        return self.cmap_dim or self.channels(4)

    def resolutions(self, resolution: int) -> list[int]:
        """Return the blocks' resolutions from `resolution` down to 8."""
        found = []
        while resolution > 4:
            found.append(resolution)
            resolution //= 2
        return found

    def check(self) -> None:
        """Raise ValueError if options exclude each other."""
        low, camera = self.lowres_head, self.camera
        needs_low = self.dual_discriminator or self.separate_camera or self.fade
        wrong = {
            f"architecture={self.architecture!r} is not skip, orig or resnet": (
                self.architecture not in ("skip", "orig", "resnet")
            ),
            f"camera={camera!r} is not matrix, pose9, uvr or null": (
                camera not in (None, "matrix", "pose9", "uvr")
            ),
            f"progressive growth needs architecture 'skip', not {self.architecture!r}": (
                self.progressive and self.architecture != "skip"
            ),
            "dual_discriminator, separate_camera and fade need lowres_head": (
                needs_low and low is None
            ),
            f"lowres_head={low} is not a power of two from 8 to {self.img_resolution}": (
                low is not None
                and (self.progressive or needs_low)
                and low not in self.resolutions(self.img_resolution)
            ),
            "separate_camera and camera_condition=false need a camera": (
                camera is None and (self.separate_camera or not self.camera_condition)
            ),
            "choose one of dual_discriminator, dual_input_ratio and separate_camera": (
                sum(map(bool, (self.dual_discriminator, self.dual_input_ratio)))
                + self.separate_camera
                > 1
            ),
            "labels (c_dim) and a predicted camera cannot both condition the logits": (
                self.c_dim > 0 and camera is not None and self.camera_condition
            ),
        }
        for message, found in wrong.items():
            if found:
                raise ValueError(f"discriminator: {message}")

    def channels(self, resolution: int) -> int:
        """Width of the block at `resolution`."""
        return channels_at(resolution, self.channel_base, self.channel_max)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for `model.json`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, tree: dict[str, Any]) -> "DiscriminatorSpec":
        """Read what `to_dict` wrote; unknown keys raise."""
        return cls(**tree)
