"""Drawing cameras from a generator's prior (spec/stylenerf.md 2.4)."""

import torch
from torch import Tensor

from nfs.geometry.cameras import orbit_cameras
from nfs.stylenerf.spec import CameraPrior


def _within(limits: tuple[float, float], fraction: Tensor) -> Tensor:
    low, high = limits
    return low + fraction * (high - low)


def _around(limits: tuple[float, float], deviation: Tensor) -> Tensor:
    low, high = limits
    middle = (low + high) / 2
    return middle + (middle - low) * deviation


def uniform_cameras(prior: CameraPrior, yaw: Tensor, pitch: Tensor, radius: Tensor) -> Tensor:
    """Return `cam2world [B, 4, 4]` at fractions in [0, 1] of the prior's ranges, each `[B]`."""
    return orbit_cameras(
        _within(prior.yaw_rad, yaw),
        _within(prior.pitch_rad, pitch),
        _within(prior.radius, radius),
    )


def prior_cameras(prior: CameraPrior, yaw: Tensor, pitch: Tensor, radius: Tensor) -> Tensor:
    """Return `cam2world [B, 4, 4]` half-ranges away from the middle.

    Args:
        prior: Ranges.
        yaw: Deviation in half widths of the range, e.g. standard normal, `[B]`.
        pitch: As `yaw`.
        radius: Fraction in [0, 1] of the range, `[B]`.
    """
    return orbit_cameras(
        _around(prior.yaw_rad, yaw), _around(prior.pitch_rad, pitch), _within(prior.radius, radius)
    )


def draw_cameras(
    prior: CameraPrior, batch_size: int, *, device: torch.device | None = None
) -> Tensor:
    """Draw `cam2world [B, 4, 4]` from the prior with torch's global generator."""
    draw = torch.randn if prior.gaussian else torch.rand
    yaw, pitch = draw(batch_size, device=device), draw(batch_size, device=device)
    radius = torch.rand(batch_size, device=device)
    make = prior_cameras if prior.gaussian else uniform_cameras
    return make(prior, yaw, pitch, radius)


def middle_camera(prior: CameraPrior, like: Tensor) -> Tensor:
    """Return the camera `[1, 4, 4]` in the middle of the prior's ranges."""
    half = like.new_full((1,), 0.5)
    return uniform_cameras(prior, half, half, half)
