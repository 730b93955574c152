"""Fixed faces from chosen cameras: what evaluations and previews show.

Legend: B batch, R image side in pixels, h and w of the depth map, K latents, F frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nfs.runtime.seeding import derive_seed
from nfs.stylenerf.cameras import prior_cameras, uniform_cameras
from nfs.stylenerf.generator import Generator, Rendering, RenderOptions
from nfs.stylenerf.spec import CameraPrior

VIEW_YAWS = (0.0, 0.5, 1.0)
MIDDLE_VIEW = 1
_ORBIT_PITCH = 0.25
_NEAREST_SHARE = 0.01


@dataclass(frozen=True)
class Subject:
    """Who is shown."""

    z: Tensor
    """`[B, z_dim]`."""
    background_code: Tensor
    """`[B, background_dim]`."""
    cam2world: Tensor
    """`[B, 4, 4]` cameras drawn from the prior, for those who want one."""
    c: Tensor | None = None
    """Labels `[B, c_dim]`, or None."""


@dataclass(frozen=True)
class Gallery:
    """A generator and the subjects that it has been asked for; subject i is always the same.

    Args:
        generator: In eval mode.
        seed: Another seed, other subjects.
        alpha: Growth stage; None: the generator's.
        labels: `[M, c_dim]` labels that the subjects get in turn, for a conditional generator.
    """

    generator: Generator
    seed: int = 0
    alpha: float | None = None
    labels: Tensor | None = None

    def subjects(self, indices: range) -> Subject:
        """Return the subjects of these numbers."""
        drawn = [self._draw(index) for index in indices]
        z, code, yaw, pitch, radius = (torch.stack(column) for column in zip(*drawn, strict=True))
        prior = self.generator.spec.cameras
        place = prior_cameras if prior.gaussian else uniform_cameras
        device = self.generator.w_avg.device
        labels = None
        if self.labels is not None:
            labels = self.labels[[index % len(self.labels) for index in indices]].to(device)
        return Subject(
            z.to(device), code.to(device), place(prior, yaw, pitch, radius).to(device), labels
        )

    @torch.no_grad()
    def render(self, subject: Subject, cam2world: Tensor) -> Rendering:
        """Render every subject from its camera `[B, 4, 4]`."""
        return self.generator.synthesis(
            self.generator.mapping(subject.z, subject.c),
            cam2world,
            background_code=subject.background_code,
            options=RenderOptions(alpha=self.alpha),
        )

    def samples(self, indices: range) -> Tensor:
        """Return pictures uint8 `[B, 3, R, R]` of subjects from cameras of the prior."""
        subject = self.subjects(indices)
        return quantised(self.render(subject, subject.cam2world).image)

    def views(self, index: int) -> Rendering:
        """Render one subject from the left, the middle and the right: a batch of 3."""
        generator = self.generator
        cameras = view_cameras(generator.spec.cameras, generator.w_avg)
        return self.render(_repeated(self.subjects(range(index, index + 1)), 3), cameras)

    def orbit(self, positions: Sequence[int], *, num_subjects: int, num_frames: int) -> Rendering:
        """Render pictures of an orbit; position p is subject `p % K` in frame `p // K`."""
        numbers = [p % num_subjects for p in positions]
        subjects = [self.subjects(range(number, number + 1)) for number in numbers]
        cameras = orbit_path(self.generator.spec.cameras, num_frames, self.generator.w_avg)
        return self.render(_joined(subjects), cameras[[p // num_subjects for p in positions]])

    def _draw(self, index: int) -> tuple[Tensor, ...]:
        random = torch.Generator().manual_seed(derive_seed("subject", self.seed, index))
        z = torch.randn(self.generator.z_dim, generator=random)
        code = torch.randn(self.generator.background_dim, generator=random)
        if self.generator.spec.cameras.gaussian:
            yaw, pitch = torch.randn(2, generator=random)
        else:
            yaw, pitch = torch.rand(2, generator=random)
        return z, code, yaw, pitch, torch.rand((), generator=random)


def view_cameras(prior: CameraPrior, like: Tensor) -> Tensor:
    """Return cameras `[3, 4, 4]`: one half-range left, middle, one half-range right."""
    yaw = like.new_tensor(VIEW_YAWS)
    half = torch.full_like(yaw, 0.5)
    return uniform_cameras(prior, yaw, half, half)


def orbit_path(prior: CameraPrior, num_frames: int, like: Tensor) -> Tensor:
    """Return cameras `[F, 4, 4]` on a closed loop through the prior's range of yaw.

    An ellipse, or a full turn where the prior has one.
    """
    turn = torch.arange(num_frames, device=like.device, dtype=like.dtype) / num_frames
    half = torch.full_like(turn, 0.5)
    low, high = prior.yaw_rad
    full = 2 * math.pi if prior.angular else 1.0
    if high - low >= full - 1e-6:
        return uniform_cameras(prior, (turn + 0.5) % 1.0, half, half)
    angle = 2 * math.pi * turn
    return uniform_cameras(prior, 0.5 + 0.5 * angle.sin(), 0.5 + _ORBIT_PITCH * angle.cos(), half)


def quantised(images: Tensor) -> Tensor:
    """Turn images `[B, 3, R, R]` in [-1, 1] into uint8, on their device."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def depth_levels(depth: Tensor, depth_range: tuple[float, float]) -> Tensor:
    """Turn depths `[B, 1, h, w]` into uint8 greys `[B, 1, h, w]`.

    The nearest surface of each map is white, half of the depth range behind it is black.
    """
    near, far = depth_range
    span = 0.5 * (far - near)
    first = depth.flatten(1).float().quantile(_NEAREST_SHARE, dim=1).clamp_max(far - span)
    levels = 1 - (depth - first[:, None, None, None]) / span
    return (levels * 255).round().clamp(0, 255).to(torch.uint8)


def _repeated(subject: Subject, count: int) -> Subject:
    return _joined([subject] * count)


def _joined(subjects: list[Subject]) -> Subject:
    labels = [subject.c for subject in subjects if subject.c is not None]
    return Subject(
        torch.cat([subject.z for subject in subjects]),
        torch.cat([subject.background_code for subject in subjects]),
        torch.cat([subject.cam2world for subject in subjects]),
        torch.cat(labels) if labels else None,
    )
