"""Learning-rate schedules as plain functions of the clock."""

from __future__ import annotations

import math


def cosine(samples_seen: int, total_samples: int, *, start: float, end: float = 0.0) -> float:
    """Return the learning rate of a half cosine from `start` to `end` over the run."""
    done = min(1.0, samples_seen / max(1, total_samples))
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * done))


def warmup(samples_seen: int, warmup_samples: int) -> float:
    """Return a factor that rises linearly from 0 to 1 over the first samples."""
    return 1.0 if warmup_samples <= 0 else min(1.0, (samples_seen + 1) / warmup_samples)
