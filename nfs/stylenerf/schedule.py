"""Which resolution is active at a growth stage `alpha` (spec/stylenerf.md 2.6)."""

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Stage:
    """What a generator renders at one value of alpha."""

    field_resolution: int
    """Pixels per side of the volume-rendered feature map."""
    image_resolution: int
    """Pixels per side of the output."""
    fade: float | Tensor | None
    """Weight of the newest level against the one before it; None: the newest alone."""


def growth_levels(resolution_start: int, resolution_vol: int, img_resolution: int) -> list[int]:
    """Return the resolutions that growth passes through after the first one, ascending."""
    levels = []
    resolution = resolution_start * 2
    while resolution <= max(resolution_vol, img_resolution):
        levels.append(resolution)
        resolution *= 2
    return levels


def stage(
    alpha: float,
    *,
    resolution_start: int,
    resolution_vol: int,
    img_resolution: int,
    progressive: bool = True,
    grow_field: bool = False,
) -> Stage:
    """Return the active stage.

    Args:
        alpha: Growth in [0, 1]; -1 means no curriculum: everything is active, without a fade.
        resolution_start: First resolution.
        resolution_vol: Highest resolution of the field.
        img_resolution: Final resolution.
        progressive: False: alpha has no effect.
        grow_field: Alpha sets the size of the field's map, linearly, and nothing else.
    """
    if alpha != -1 and not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be -1 or in [0, 1], got {alpha}")
    if grow_field:
        size = resolution_start * (1 - alpha) + resolution_vol * alpha
        field = resolution_vol if alpha == -1 else min(resolution_vol, int(size))
        return Stage(field, img_resolution, None)
    levels = growth_levels(resolution_start, resolution_vol, img_resolution)
    fade = None
    if not progressive or alpha in (-1, 1):
        active = len(levels)
    elif alpha == 0:
        active = 0
    else:
        active = int(alpha * len(levels)) + 1
        fade = math.modf(alpha * len(levels))[0]
    current = levels[active - 1] if active > 0 else resolution_start
    return Stage(min(resolution_vol, current), current, fade)


def whole_stage(alpha: float, num_levels: int) -> tuple[float, float | None]:
    """Return a value that is the same for all alphas of a growth stage, and the fade of this one.

    What is compiled for a value of alpha then serves the whole stage.
    """
    if not 0 < alpha < 1:
        return alpha, None
    fade, full = math.modf(alpha * num_levels)
    return (full + 0.5) / num_levels, fade
