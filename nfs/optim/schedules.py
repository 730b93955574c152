"""Learning-rate and noise schedules of per-sample optimisation, as factors in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int], float]


def constant() -> Schedule:
    """Return a schedule that is 1 at every step."""
    return lambda _: 1.0


def ramp(num_steps: int, *, up_fraction: float = 0.05, down_fraction: float = 0.25) -> Schedule:
    """Return a linear ramp-up and a cosine ramp-down.

    With t = step / num_steps: `min(1, t / up) * (0.5 - 0.5 cos(pi min(1, (1 - t) / down)))`, the
    schedule of the StyleGAN2 projector (Karras et al. 2020, appendix D). It is 0 at step 0 when
    `up_fraction` > 0.

    Args:
        num_steps: Steps of the run.
        up_fraction: Part of the run that ramps up, in [0, 1]; 0 = none.
        down_fraction: Part of the run that ramps down, in [0, 1]; 0 = none.
    """

    def factor(step: int) -> float:
        t = step / num_steps
        down = min(1.0, (1 - t) / down_fraction) if down_fraction > 0 else 1.0
        up = min(1.0, t / up_fraction) if up_fraction > 0 else 1.0
        return up * (0.5 - 0.5 * math.cos(math.pi * down))

    return factor


def fading_noise(num_steps: int, *, fraction: float = 0.75) -> Schedule:
    """Return `max(0, 1 - t / fraction)^2` with t = step / num_steps: noise added to w."""
    return lambda step: max(0.0, 1 - step / num_steps / fraction) ** 2
