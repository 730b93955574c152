"""The per-sample optimiser loop and its schedules."""

from nfs.optim.loop import LoopResult, LoopSettings, below, minimise, step_generator
from nfs.optim.schedules import constant, fading_noise, ramp

__all__ = [
    "LoopResult",
    "LoopSettings",
    "below",
    "constant",
    "fading_noise",
    "minimise",
    "ramp",
    "step_generator",
]
