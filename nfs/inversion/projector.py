"""Projection: the latent of a generator that comes closest to the frames of one person.

The procedure is that of the StyleGAN2 projector (Karras et al. 2020, appendix D) as used by PTI,
with the background code as a second variable and one latent for all frames
(spec/inversion_and_talker.md 2.1, 2.4, 4.1).

Legend: T frames, n latents for the statistics.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nfs.inversion.noise import noise_buffers, noise_regulariser, normalise_noise
from nfs.inversion.rendering import frames_of_step, render
from nfs.inversion.settings import ProjectSettings
from nfs.inversion.targets import Comparison, compare_with
from nfs.optim import LoopResult, LoopSettings, fading_noise, minimise, ramp, step_generator
from nfs.perceptual.protocol import ImageDistance
from nfs.stylenerf.generator import Generator

StepHook = Callable[[int, Mapping[str, float]], None]
STATISTICS_SEED = 123
_W_STREAM, _START_STREAM, _BUFFER_STREAM = 0, 1, 2


@dataclass(frozen=True)
class Start:
    """Where a projection starts, and what it may look at.

    Attributes:
        ws: `[1, 1 or num_ws, w_dim]`, e.g. of an encoder or of the frame before; None = mean of w.
        background_code: `[1, background_dim]`; None = zero, the mean of its prior.
        w_std: Scale of w noise; None = measured.
        noise: Initial noise buffers by name; None = standard normal, seeded.
        draw_w_noise: (step, shape) -> standard normal noise; None = seeded by (seed, step).
        mask: `[1, 1, H, H]`, 1 where pixels count; None = everywhere.
    """

    ws: Tensor | None = None
    background_code: Tensor | None = None
    w_std: float | None = None
    noise: Mapping[str, Tensor] | None = None
    draw_w_noise: Callable[[int, torch.Size], Tensor] | None = None
    mask: Tensor | None = None


@dataclass(frozen=True)
class Projection:
    """The result of a projection.

    Attributes:
        ws: `[1, num_ws, w_dim]`.
        background_code: `[1, background_dim]`.
        noise: Optimised noise buffers by name; empty for generators without noise layers.
        result: Losses of each step, seconds, why it ended.
    """

    ws: Tensor
    background_code: Tensor
    noise: dict[str, Tensor]
    result: LoopResult

    @property
    def losses(self) -> list[dict[str, float]]:
        """Losses of each step by name."""
        return self.result.history


@dataclass(frozen=True)
class WStatistics:
    """Statistics of mapped latents.

    Attributes:
        mean: `[1, 1, w_dim]`.
        std: Root mean squared distance from the mean, a number over all dimensions together.
    """

    mean: Tensor
    std: float


@torch.no_grad()
def w_statistics(generator: Generator, num_samples: int = 600) -> WStatistics:
    """Return the mean and spread of w over `num_samples` seeded latents (spec 2.1)."""
    stream = np.random.RandomState(STATISTICS_SEED)  # the published stream
    z = torch.from_numpy(stream.randn(num_samples, generator.z_dim)).float()
    device = generator.w_avg.device
    w = torch.cat([generator.mapping(part.to(device))[:, :1] for part in torch.split(z, 256)])
    mean = w.mean(dim=0, keepdim=True)
    std = ((w - mean).double().square().sum() / num_samples).sqrt().item()
    return WStatistics(mean, std)


def project(
    generator: Generator,
    target: Tensor,
    *,
    cam2world: Tensor,
    distance: ImageDistance,
    settings: ProjectSettings,
    start: Start | None = None,
    on_step: StepHook | None = None,
    state: Path | None = None,
) -> Projection:
    """Find ws and the background code whose renderings come closest to the frames.

    Several frames share one ws and one background code; each has its own camera. The generator is
    not changed.

    Args:
        generator: Any generator; evaluated in eval mode.
        target: `[T, 3, H, H]` in [-1, 1], H = the generator's resolution.
        cam2world: `[T, 4, 4]`.
        distance: Perceptual backend.
        settings: Steps, space, weights.
        start: Starting point.
        on_step: Called after each step with its losses.
        state: File of the saved state; an interrupted run continues from it.

    Raises:
        ValueError: If shapes do not fit.
        NonFiniteError: If a loss is not finite.
    """
    start = start or Start()
    check_target(generator, target, cam2world)
    working = copy.deepcopy(generator).eval().requires_grad_(False)
    noise = noise_buffers(working)
    statistics = w_statistics(working, settings.num_w_samples)
    variables = _variables(working, statistics, settings=settings, start=start, noise=noise)
    optimizer = torch.optim.Adam(
        [
            {"params": [variables["w"], *noise.values()], "lr": settings.learning_rate},
            {"params": [variables["background_code"]], "lr": settings.background_rate},
        ]
    )
    objective = _Objective(
        working,
        compare_with(target, distance, mask=start.mask),
        cam2world,
        variables=variables,
        noise=noise,
        w_std=statistics.std if start.w_std is None else start.w_std,
        settings=settings,
        draw=start.draw_w_noise,
    )

    def after_step(step: int, losses: Mapping[str, float]) -> None:
        normalise_noise(list(noise.values()))
        if on_step is not None:
            on_step(step, losses)

    result = minimise(
        objective,
        variables=variables,
        optimizer=optimizer,
        settings=_loop_settings(settings),
        schedule=ramp(
            settings.num_steps,
            up_fraction=settings.ramp_up_fraction,
            down_fraction=settings.ramp_down_fraction,
        ),
        after_step=after_step,
        state=state,
    )
    ws = _repeat(variables["w"].detach(), generator.num_ws)
    kept = {name: buffer.detach().clone() for name, buffer in noise.items()}
    return Projection(ws.clone(), variables["background_code"].detach().clone(), kept, result)


class _Objective:
    """Losses of one projection step."""

    def __init__(
        self,
        generator: Generator,
        target: Comparison,
        cam2world: Tensor,
        *,
        variables: dict[str, Tensor],
        noise: dict[str, Tensor],
        w_std: float,
        settings: ProjectSettings,
        draw: Callable[[int, torch.Size], Tensor] | None,
    ):
        self.generator, self.target, self.cam2world = generator, target, cam2world
        self.variables, self.noise, self.settings = variables, noise, settings
        self.draw = draw or self._seeded
        self.spread = fading_noise(settings.num_steps, fraction=settings.noise_fraction)
        self.noise_scale = settings.noise_scale * w_std

    def __call__(self, step: int) -> dict[str, Tensor]:
        w = self.variables["w"]
        scale = self.noise_scale * self.spread(step)
        if scale > 0:
            w = w + self.draw(step, w.shape).to(w) * scale
        ws = _repeat(w, self.generator.num_ws)
        count = len(self.cam2world)
        frames = frames_of_step(
            step, num_frames=count, frames_per_step=self.settings.frames_per_step or count
        )
        rendered = render(
            self.generator,
            ws,
            self.cam2world[frames],
            background_code=self.variables["background_code"],
        )
        losses = self.target.losses(rendered.image, frames)
        if self.settings.space == "w_plus":
            centre = self.variables["w"].mean(dim=1, keepdim=True)
            losses["delta"] = (self.variables["w"] - centre).square().mean()
        if self.noise:
            losses["noise"] = noise_regulariser(list(self.noise.values()))
        return losses

    def _seeded(self, step: int, shape: torch.Size) -> Tensor:
        return torch.randn(
            shape, generator=step_generator(self.settings.seed, step, stream=_W_STREAM)
        )


def _variables(
    generator: Generator,
    statistics: WStatistics,
    *,
    settings: ProjectSettings,
    start: Start,
    noise: dict[str, Tensor],
) -> dict[str, Tensor]:
    w = statistics.mean if start.ws is None else start.ws.to(statistics.mean)
    w = _repeat(w, generator.num_ws) if settings.space == "w_plus" else w.mean(1, keepdim=True)
    code = start.background_code
    if code is None:
        code = torch.zeros(1, generator.background_dim)
    variables = {
        "w": w.detach().clone().requires_grad_(),
        "background_code": code.detach().to(w).clone().requires_grad_(),
    }
    draws = step_generator(settings.seed, 0, stream=_BUFFER_STREAM)
    for name, buffer in noise.items():
        given = None if start.noise is None else start.noise[name]
        buffer.copy_(torch.randn(buffer.shape, generator=draws) if given is None else given)
        variables[name] = buffer.requires_grad_()
    return variables


def _loop_settings(settings: ProjectSettings) -> LoopSettings:
    return LoopSettings(
        settings.num_steps,
        time_limit_s=settings.time_limit_s,
        save_every=settings.save_every,
        weights={
            "perceptual": settings.perceptual_weight,
            "l2": settings.l2_weight,
            "delta": settings.delta_weight,
            "noise": settings.noise_weight,
            "identity": 0.0,
        },
    )


def _repeat(w: Tensor, num_ws: int) -> Tensor:
    return w.expand(-1, num_ws, -1) if w.shape[1] == 1 else w


def check_target(generator: Generator, target: Tensor, cam2world: Tensor) -> None:
    """Raise ValueError if frames, cameras and generator do not fit."""
    size = generator.img_resolution
    if target.ndim != 4 or tuple(target.shape[1:]) != (3, size, size):
        raise ValueError(f"target must be [T, 3, {size}, {size}], got {list(target.shape)}")
    if tuple(cam2world.shape) != (len(target), 4, 4):
        raise ValueError(f"cam2world must be [{len(target)}, 4, 4], got {list(cam2world.shape)}")
