"""Errors of fitted landmarks. Legend: T frames."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

RIGHT_EYE, LEFT_EYE = slice(36, 42), slice(42, 48)
MOUTH = slice(48, 68)
MIRRORED_LANDMARKS = np.array(
    [
        *range(16, -1, -1),
        *range(26, 16, -1),
        *range(27, 31),
        *range(35, 30, -1),
        *(45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40),
        *range(54, 47, -1),
        *range(59, 54, -1),
        *range(64, 59, -1),
        *(67, 66, 65),
    ]
)
"""Landmark of the other side, for each of the 68 (spec face_and_media 2.7)."""
INNER_LIP_PAIRS = ((61, 67), (62, 66), (63, 65))


def eye_distance_px(landmarks_px: Tensor) -> Tensor:
    """Return the distance between the eye centres `[T]` of `[T, 68, 2]` landmarks."""
    right = landmarks_px[:, RIGHT_EYE].mean(1)
    left = landmarks_px[:, LEFT_EYE].mean(1)
    return (right - left).norm(dim=-1)


def nme_percent(predicted_px: Tensor, target_px: Tensor, *, points: slice = slice(0, 68)) -> Tensor:
    """Return the mean landmark error `[T]` in percent of the distance between the eye centres.

    Args:
        predicted_px: `[T, 68, 2]`.
        target_px: `[T, 68, 2]`.
        points: Landmarks to average over, e.g. `MOUTH`.
    """
    error = (predicted_px - target_px).norm(dim=-1)[:, points].mean(1)
    return 100 * error / eye_distance_px(target_px)


def lip_gap_px(landmarks_px: Tensor) -> Tensor:
    """Return the mean inner-lip opening `[T]` of `[T, 68, 2]` landmarks."""
    gaps = [
        (landmarks_px[:, lower] - landmarks_px[:, upper]).norm(dim=-1)
        for upper, lower in INNER_LIP_PAIRS
    ]
    return torch.stack(gaps).mean(0)
