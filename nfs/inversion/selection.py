"""Choosing the frames of a clip that an identity is fitted to.

Legend: N usable frames of a clip, T chosen ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# 68-point layout (iBUG): inner lips 60-67, eyes 36-41 and 42-47.
_INNER_LIP_PAIRS = ((61, 67), (62, 66), (63, 65))
_EYES = ((36, 37, 38, 39, 40, 41), (42, 43, 44, 45, 46, 47))
_OUTER_EYE_CORNERS = (36, 45)
MIN_GAP_FRAMES = 5


@dataclass(frozen=True)
class Candidates:
    """Usable frames of one clip.

    Attributes:
        landmarks_px: `[N, 68, 2]`.
        rotation_rad: `[N, 3]` BFM Euler angles (pitch, yaw, roll).
        frame_index: `[N]` frame numbers, ascending.
    """

    landmarks_px: NDArray[np.float64]
    rotation_rad: NDArray[np.float64]
    frame_index: NDArray[np.int64]


def neutral_cost(candidates: Candidates) -> NDArray[np.float64]:
    """Return how far each frame is from a closed mouth and open eyes `[N]`, >= 0.

    Mouth opening in units of the distance between the outer eye corners, plus the loss of eye
    opening relative to the clip's median.
    """
    points = candidates.landmarks_px
    a, b = _OUTER_EYE_CORNERS
    width = np.linalg.norm(points[:, a] - points[:, b], axis=1).clip(1e-6)
    gaps = [np.linalg.norm(points[:, i] - points[:, j], axis=1) for i, j in _INNER_LIP_PAIRS]
    mouth = np.mean(gaps, axis=0) / width
    eyes = np.mean([_eye_opening(points[:, list(eye)]) for eye in _EYES], axis=0)
    closed = np.clip(1 - eyes / max(float(np.median(eyes)), 1e-6), 0, None)
    return 4 * mouth + closed


def choose_reference(candidates: Candidates) -> int:
    """Return the row of the most frontal frame with a closed mouth and open eyes."""
    rotation = np.abs(candidates.rotation_rad)
    turned = 2 * rotation[:, 1] + rotation[:, 0] + rotation[:, 2]
    return int(np.argmin(neutral_cost(candidates) + turned))


def choose_frames(candidates: Candidates, count: int, *, exclude: Sequence[int] = ()) -> list[int]:
    """Return up to `count` rows, the reference first, the others spread over yaw.

    Of the frames near each wanted yaw the most neutral one is taken; chosen frames are at least
    `MIN_GAP_FRAMES` apart in time where the clip is long enough.

    Args:
        candidates: Usable frames.
        count: T, >= 1.
        exclude: Rows that must not be used (frames of another choice); without them the reference
            comes first.
    """
    rows = set(range(len(candidates.frame_index))) - set(exclude)
    chosen: list[int] = [] if exclude else [choose_reference(candidates)]
    rows -= set(chosen)
    yaw, cost = candidates.rotation_rad[:, 1], neutral_cost(candidates)
    low, high = np.quantile(yaw, [0.02, 0.98])
    spread = max(float(high - low), 1e-6)
    wanted = _outside_in(float(low), float(high), count - len(chosen))
    for target in wanted:
        if not rows:
            break
        taken = candidates.frame_index[[*chosen, *exclude]]
        free = [r for r in rows if _gap(candidates.frame_index[r], taken) >= MIN_GAP_FRAMES]
        pool = np.array(sorted(free or rows))
        score = 3 * np.abs(yaw[pool] - target) / spread + cost[pool]
        best = int(pool[np.argmin(score)])
        chosen.append(best)
        rows.discard(best)
    return chosen


def _outside_in(low: float, high: float, count: int) -> list[float]:
    """Return `count` values of an even grid on [low, high], the ends first."""
    if count <= 0:
        return []
    if count == 1:
        return [high]
    grid = list(np.linspace(low, high, count))
    return sorted(grid, key=lambda value: -abs(value - (low + high) / 2))


def _gap(frame: int, others: NDArray[np.int64]) -> int:
    return int(np.abs(others - frame).min()) if len(others) else MIN_GAP_FRAMES


def _eye_opening(eye: NDArray[np.float64]) -> NDArray[np.float64]:
    vertical = np.linalg.norm(eye[:, 1] - eye[:, 5], axis=1)
    vertical = vertical + np.linalg.norm(eye[:, 2] - eye[:, 4], axis=1)
    across = np.linalg.norm(eye[:, 0] - eye[:, 3], axis=1).clip(1e-6)
    return vertical / (2 * across)
