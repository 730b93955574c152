"""Sizes of the networks: plain frozen data, stored as `model.json` of a checkpoint."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

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


@dataclass(frozen=True)
class EllipsoidPrior:
    """Density that a foreground field starts from: a solid ellipsoid around the origin.

    `strength * (1 - |p / radii|)` is added to the raw density. The original has none and lets the
    field find a head in millions of images; a short run would paint the face on the background
    instead.
    """

    radii: tuple[float, float, float]
    """Half axes along world x (towards the frontal camera), y (image right) and z (up)."""
    strength: float
    """Raw density at the centre, per scene unit."""


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
    magnitude_ema_beta: float = 0.999
    """Decay of the running mean square of 2-D inputs."""
    progressive: bool = True
    """Whether alpha selects a growth stage."""
    density_prior: EllipsoidPrior | None = None
    """Shape that the density starts from, or None as in the original."""
    cameras: CameraPrior = field(default_factory=CameraPrior)
    """Cameras of training."""

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
        shape = values.pop("density_prior", None)
        if shape is not None:
            shape = EllipsoidPrior(tuple(shape["radii"]), shape["strength"])
        values["density_prior"] = shape
        values["depth_range"] = tuple(values["depth_range"])
        return cls(cameras=CameraPrior(**prior), **values)


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
    """Resolution of the first active block at alpha 0."""

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
