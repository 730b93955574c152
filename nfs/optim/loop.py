"""THE per-sample optimiser loop: projection, pivotal tuning, photometric face fitting.

One sample (a photo, a clip) has its own variables and its own short optimisation. The loop knows
steps, the learning-rate schedule, the stop rule, the time limit, the guard against values that are
not finite, and exact continuation. What is optimised is up to `objective`.

Anything random in an objective comes from `step_generator(seed, step)`, so that a run that was
killed and continued draws what the uninterrupted run draws.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from nfs.errors import NonFiniteError
from nfs.optim.schedules import Schedule, constant

Objective = Callable[[int], Mapping[str, Tensor]]
"""step -> named scalar losses (unweighted)."""
StopRule = Callable[[list[dict[str, float]]], bool]
"""History of losses, this step's last -> stop now? Evaluated before the backward pass."""


@dataclass(frozen=True)
class LoopSettings:
    """How long to run and what to keep.

    Attributes:
        num_steps: Most steps to run.
        time_limit_s: Wall-clock limit in seconds over all continuations; None = no limit.
        save_every: Steps between saved states; 0 = never.
        weights: Factor per loss name. A missing name counts with 1; a 0 keeps the loss in the
            history (and for the stop rule) but out of the optimisation.
    """

    num_steps: int
    time_limit_s: float | None = None
    save_every: int = 0
    weights: Mapping[str, float] = field(default_factory=dict)


@dataclass
class LoopResult:
    """What happened.

    Attributes:
        history: Losses of each step by name, plus `total` (weighted) and `lr_factor`.
        num_updates: Optimiser steps done.
        stopped: `steps`, `threshold` (the stop rule) or `time`.
        seconds: Wall-clock time over all continuations.
    """

    history: list[dict[str, float]]
    num_updates: int
    stopped: str
    seconds: float


def step_generator(seed: int, step: int, stream: int = 0) -> torch.Generator:
    """Return a CPU generator that depends on (seed, step, stream) only.

    Args:
        seed: Seed of the run.
        step: Optimiser step, >= 0.
        stream: Distinguishes several uses in one step, < 16.
    """
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + stream) % (1 << 63)
    return torch.Generator().manual_seed(mixed)


def minimise(
    objective: Objective,
    *,
    variables: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    settings: LoopSettings,
    schedule: Schedule | None = None,
    stop: StopRule | None = None,
    after_step: Callable[[int, Mapping[str, float]], None] | None = None,
    state: Path | None = None,
) -> LoopResult:
    """Minimise the weighted sum of the named losses.

    Each step: set the learning rate, evaluate, check that every loss is finite, ask the stop rule,
    then backward and update. The stop rule sees the step that has not been applied: the variables
    returned are those whose loss it accepted.

    Args:
        objective: Losses at a step.
        variables: Everything that changes, by name; saved and restored in place.
        optimizer: Built over `variables`; the schedule multiplies the rate of each group.
        settings: Steps, limits, weights.
        schedule: Factor on the learning rates by step; None = constant.
        stop: Rule to end early; None = never.
        after_step: Called after each update with the step and its losses (logging, projection of
            variables onto a constraint).
        state: File of the saved state. If it exists the run continues from it; it is written
            every `save_every` steps and at the end.

    Raises:
        NonFiniteError: If a loss is NaN or infinite; names it. The variables are not touched.
    """
    schedule = schedule or constant()
    base_rates = [float(group["lr"]) for group in optimizer.param_groups]
    progress = _Progress(variables, optimizer, state)
    started = time.monotonic() - progress.seconds
    while progress.step < settings.num_steps and not progress.stopped:
        if settings.time_limit_s is not None and progress.seconds >= settings.time_limit_s:
            progress.stopped = "time"
            break
        factor = schedule(progress.step)
        for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
            group["lr"] = rate * factor
        losses = objective(progress.step)
        total, row = _weighted(losses, settings.weights, progress.step)
        progress.history.append({**row, "lr_factor": factor})
        progress.seconds = time.monotonic() - started
        if stop is not None and stop(progress.history):
            progress.stopped = "threshold"
            break
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        progress.step += 1
        if after_step is not None:
            after_step(progress.step - 1, row)
        progress.seconds = time.monotonic() - started
        if settings.save_every and progress.step % settings.save_every == 0:
            progress.save()
    optimizer.zero_grad(set_to_none=True)
    progress.stopped = progress.stopped or "steps"
    progress.save()
    return LoopResult(progress.history, progress.step, progress.stopped, progress.seconds)


def below(name: str, threshold: float, *, patience: int = 1) -> StopRule:
    """Return a rule that stops when a loss was at or below a threshold for `patience` steps.

    With mini-batches of frames use the number of batches in one pass over the frames.
    """

    def rule(history: list[dict[str, float]]) -> bool:
        recent = history[-patience:]
        return len(recent) == patience and all(row[name] <= threshold for row in recent)

    return rule


class _Progress:
    """Step, history and clock of a run, with their saved form."""

    def __init__(
        self, variables: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, path: Path | None
    ):
        self.variables = variables
        self.optimizer = optimizer
        self.path = path
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.stopped = ""
        self.seconds = 0.0
        if path is not None and path.is_file():
            self._load(path)

    def save(self) -> None:
        """Write the state atomically; nothing when the run keeps no state."""
        if self.path is None:
            return
        content = {
            "step": self.step,
            "history": self.history,
            "stopped": self.stopped if self.stopped == "threshold" else "",
            "seconds": self.seconds,
            "variables": {name: value.detach().cpu() for name, value in self.variables.items()},
            "optimizer": self.optimizer.state_dict(),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        torch.save(content, temporary)
        temporary.replace(self.path)

    def _load(self, path: Path) -> None:
        content = torch.load(path, map_location="cpu", weights_only=True)
        names = set(content["variables"])
        if names != set(self.variables):
            odd = sorted(names ^ set(self.variables))[:4]
            raise ValueError(f"{path}: saved by a different optimisation (variables {odd})")
        with torch.no_grad():
            for name, value in self.variables.items():
                value.copy_(content["variables"][name])
        self.optimizer.load_state_dict(content["optimizer"])
        self.step = content["step"]
        self.history = content["history"]
        self.stopped = content["stopped"]
        self.seconds = content["seconds"]


def _weighted(
    losses: Mapping[str, Tensor], weights: Mapping[str, float], step: int
) -> tuple[Tensor, dict[str, float]]:
    """Return the weighted sum and all values as numbers, after checking them."""
    row = {name: float(value.detach()) for name, value in losses.items()}
    for name, value in row.items():
        if not math.isfinite(value):
            raise NonFiniteError(f"loss/{name}", value, where=f"step={step}")
    terms = [
        weights.get(name, 1.0) * value for name, value in losses.items() if _used(name, weights)
    ]
    if not terms:
        raise ValueError(f"every loss has weight 0: {sorted(losses)}")
    total = torch.stack(terms).sum()
    return total, {**row, "total": float(total.detach())}


def _used(name: str, weights: Mapping[str, float]) -> bool:
    return weights.get(name, 1.0) != 0
