"""Drawing cameras from a generator's prior (spec/stylenerf.md 2.4)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nfs.geometry.cameras import orbit_cameras
from nfs.stylenerf.layers import EqualLinear
from nfs.stylenerf.spec import CameraPrior


def _within(limits: tuple[float, float], fraction: Tensor) -> Tensor:
    low, high = limits
    return low + fraction * (high - low)


def _around(limits: tuple[float, float], deviation: Tensor) -> Tensor:
    low, high = limits
    middle = (low + high) / 2
    return middle + (middle - low) * deviation


def _orbit(prior: CameraPrior, yaw: Tensor, pitch: Tensor, radius: Tensor) -> Tensor:
    if not prior.angular:
        yaw, pitch = 2 * math.pi * yaw, torch.arccos(1 - 2 * pitch)
    return orbit_cameras(yaw, pitch, radius)


def uniform_cameras(
    prior: CameraPrior, yaw: Tensor, pitch: Tensor, radius: Tensor, *, zoom: float = 1.0
) -> Tensor:
    """Return `cam2world [B, 4, 4]` at fractions in [0, 1] of the prior's ranges, each `[B]`.

    `zoom` multiplies the distance.
    """
    distance = _within(prior.radius, radius) * zoom
    return _orbit(prior, _within(prior.yaw_rad, yaw), _within(prior.pitch_rad, pitch), distance)


def prior_cameras(prior: CameraPrior, yaw: Tensor, pitch: Tensor, radius: Tensor) -> Tensor:
    """Return `cam2world [B, 4, 4]` half-ranges away from the middle.

    Args:
        prior: Ranges.
        yaw: Deviation in half widths of the range, e.g. standard normal, `[B]`.
        pitch: As `yaw`.
        radius: Fraction in [0, 1] of the range, `[B]`.
    """
    yaw, pitch = _around(prior.yaw_rad, yaw), _around(prior.pitch_rad, pitch)
    return _orbit(prior, yaw, pitch, _within(prior.radius, radius))


@dataclass(frozen=True)
class CameraDraw:
    """Cameras and where they stand in their prior."""

    cam2world: Tensor
    """`[B, 4, 4]`."""
    position: Tensor
    """`[B, 3]` yaw, pitch and radius as fractions of their ranges; 0 where a range is empty."""


def draw_positions(
    prior: CameraPrior, batch_size: int, *, device: torch.device | None = None
) -> CameraDraw:
    """Draw cameras from the prior with torch's global generator."""
    draw = torch.randn if prior.gaussian else torch.rand
    yaw, pitch = draw(batch_size, device=device), draw(batch_size, device=device)
    return drawn_cameras(prior, yaw, pitch, torch.rand(batch_size, device=device))


def drawn_cameras(prior: CameraPrior, yaw: Tensor, pitch: Tensor, radius: Tensor) -> CameraDraw:
    """Return the cameras of random numbers `[B]`.

    Args:
        prior: Ranges.
        yaw: Standard normal with a gaussian prior, otherwise uniform in [0, 1].
        pitch: As `yaw`.
        radius: Uniform in [0, 1].
    """
    make = prior_cameras if prior.gaussian else uniform_cameras
    cameras = make(prior, yaw, pitch, radius)
    if prior.gaussian:
        yaw, pitch = (yaw + 1) / 2, (pitch + 1) / 2
    limits = (prior.yaw_rad, prior.pitch_rad, prior.radius)
    known = cameras.new_tensor([float(high > low) for low, high in limits])
    return CameraDraw(cameras, torch.stack([yaw, pitch, radius], dim=1) * known)


def draw_cameras(
    prior: CameraPrior, batch_size: int, *, device: torch.device | None = None
) -> Tensor:
    """Draw `cam2world [B, 4, 4]` from the prior with torch's global generator."""
    return draw_positions(prior, batch_size, device=device).cam2world


class CameraHead(nn.Module):
    """Predict where a camera stands from a style.

    Original checkpoints of camera-predicting generators carry it; an explicit camera always wins.

    Args:
        in_features: Size of the style.
        hidden_features: Width.
        out_features: Predicted numbers.
    """

    def __init__(self, in_features: int, hidden_features: int, out_features: int) -> None:
        super().__init__()
        self.affine1 = EqualLinear(in_features, hidden_features, activation="lrelu")
        self.affine2 = EqualLinear(hidden_features, hidden_features, activation="lrelu")
        self.proj = EqualLinear(hidden_features, out_features)

    def forward(self, w: Tensor) -> Tensor:
        """Map a style `[B, in_features]` to `[B, out_features]`."""
        position: Tensor = self.proj(self.affine2(self.affine1(w)))
        return position


def middle_camera(prior: CameraPrior, like: Tensor) -> Tensor:
    """Return the camera `[1, 4, 4]` in the middle of the prior's ranges."""
    half = like.new_full((1,), 0.5)
    return uniform_cameras(prior, half, half, half)
