"""Errors of fitted landmarks. Legend: T frames."""

from __future__ import annotations

import torch
from torch import Tensor

RIGHT_EYE, LEFT_EYE = slice(36, 42), slice(42, 48)
MOUTH = slice(48, 68)
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
