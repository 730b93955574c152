"""Pivotal tuning: the generator moves, the latent stays (Roich et al. 2021, section 3.2).

Legend: T frames.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from nfs.inversion.projector import StepHook, check_target
from nfs.inversion.rendering import frames_of_step, render
from nfs.inversion.settings import Trainable, TuneSettings
from nfs.inversion.targets import compare_with
from nfs.optim import LoopResult, LoopSettings, below, minimise, ramp
from nfs.perceptual.protocol import ImageDistance
from nfs.stylenerf.generator import Generator

Regulariser = Callable[[Generator, int], Tensor]
"""(tuned generator, step) -> a scalar that keeps it close to the original elsewhere."""


@dataclass(frozen=True)
class TuneOptions:
    """What a tuning may be given besides its settings.

    Attributes:
        mask: `[1, 1, H, H]`, 1 where pixels count; None = everywhere.
        regulariser: Locality term, evaluated every `settings.locality_interval` steps.
        on_step: Called after each step with its losses.
        inspect: Called after each step with the generator as it is; must not change it.
        state: File of the saved state; an interrupted run continues from it.
    """

    mask: Tensor | None = None
    regulariser: Regulariser | None = None
    on_step: StepHook | None = None
    inspect: Callable[[int, Generator], None] | None = None
    state: Path | None = None


@dataclass(frozen=True)
class Tuning:
    """The result of tuning.

    Attributes:
        generator: A tuned copy in eval mode, without gradients.
        result: Losses of each step, seconds, why it ended.
    """

    generator: Generator
    result: LoopResult

    @property
    def losses(self) -> list[dict[str, float]]:
        """Losses of each step by name."""
        return self.result.history


def trainable_parameters(generator: Generator, which: Trainable) -> dict[str, nn.Parameter]:
    """Return the parameters that tuning moves; the mapping network never does.

    Args:
        generator: The generator.
        which: `all`, `upsampler` (2-D blocks: texture, geometry stays) or `field` (both fields
            and the planes they look up).
    """
    parts = {
        "all": ("inputs.", "foreground.", "background.", "upsampler."),
        "upsampler": ("upsampler.",),
        "field": ("inputs.", "foreground.", "background."),
    }[which]
    return {n: p for n, p in generator.named_parameters() if n.startswith(parts)}


def tune(
    generator: Generator,
    target: Tensor,
    pivot_ws: Tensor,
    *,
    background_code: Tensor,
    cam2world: Tensor,
    distance: ImageDistance,
    settings: TuneSettings,
    options: TuneOptions | None = None,
) -> Tuning:
    """Tune a copy of the generator until its renderings of the pivot match the frames.

    The stop rule is evaluated before the backward pass, on the latest distances of all frames.

    Args:
        generator: The original; not changed.
        target: `[T, 3, H, H]` in [-1, 1].
        pivot_ws: The fixed latent `[1, num_ws, w_dim]`.
        background_code: The fixed background code `[1, background_dim]`.
        cam2world: Cameras of the frames `[T, 4, 4]`.
        distance: Perceptual backend.
        settings: Steps, weights, stop rule.
        options: Mask, locality term, step hook, saved state.

    Raises:
        ValueError: If shapes do not fit.
        NonFiniteError: If a loss is not finite.
    """
    options = options or TuneOptions()
    check_target(generator, target, cam2world)
    tuned = copy.deepcopy(generator).eval().requires_grad_(False)
    moving = trainable_parameters(tuned, settings.trainable)
    for parameter in moving.values():
        parameter.requires_grad_()
    comparison = compare_with(
        target, distance, mask=options.mask, identity=settings.identity_weight > 0
    )
    ws, code = pivot_ws.detach(), background_code.detach()
    regulariser = options.regulariser
    count = len(target)
    per_step = min(settings.frames_per_step or count, count)

    def objective(step: int) -> dict[str, Tensor]:
        frames = frames_of_step(step, num_frames=count, frames_per_step=per_step)
        rendered = render(tuned, ws, cam2world[frames], background_code=code)
        losses = comparison.losses(rendered.image, frames)
        if regulariser is not None and step % settings.locality_interval == 0:
            losses["locality"] = regulariser(tuned, step)
        return losses

    def after_step(step: int, losses: Mapping[str, float]) -> None:
        if options.on_step is not None:
            options.on_step(step, losses)
        if options.inspect is not None:
            options.inspect(step, tuned)

    stop = None
    if settings.stop_threshold is not None:
        stop = below("perceptual", settings.stop_threshold, patience=-(-count // per_step))
    result = minimise(
        objective,
        variables=dict(moving),
        optimizer=torch.optim.Adam(
            moving.values(), lr=settings.learning_rate, betas=settings.betas
        ),
        settings=_loop_settings(settings),
        schedule=ramp(
            settings.num_steps,
            up_fraction=settings.ramp_up_fraction,
            down_fraction=settings.ramp_down_fraction,
        ),
        stop=stop,
        after_step=after_step,
        state=options.state,
    )
    return Tuning(tuned.requires_grad_(False), result)


def _loop_settings(settings: TuneSettings) -> LoopSettings:
    return LoopSettings(
        settings.num_steps,
        time_limit_s=settings.time_limit_s,
        save_every=settings.save_every,
        weights={
            "l2": settings.l2_weight,
            "perceptual": settings.perceptual_weight,
            "identity": settings.identity_weight,
            "locality": settings.locality_weight * settings.locality_interval,
        },
    )
