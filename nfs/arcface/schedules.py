"""Learning rates by optimiser step, and the order of images of the original (spec 2.9)."""

from __future__ import annotations

from collections.abc import Iterator

import torch


def polynomial_factor(
    step: int,
    *,
    total_steps: int,
    warmup_steps: int = 0,
    power: float = 1.0,
    full_first_step: bool = False,
) -> float:
    """Return the factor of the base rate at an optimiser step.

    Rises linearly to 1 at `warmup_steps`, falls as `(1 - progress)^power` to 0 at `total_steps`.

    Args:
        step: Optimiser step, from 0.
        total_steps: Steps of the run.
        warmup_steps: Steps of the rise; values below 0 mean 0.
        power: Exponent of the fall.
        full_first_step: Step 0 at the full rate even with a warm-up, as the original (quirk Q15);
            otherwise step 0 has the rate of step 1.
    """
    warmup_steps = max(0, warmup_steps)
    if step == 0 and (full_first_step or not warmup_steps):
        return 1.0
    if step <= warmup_steps:
        return max(1, step) / warmup_steps
    if step >= total_steps:
        return 0.0
    return float(((total_steps - step) / (total_steps - warmup_steps)) ** power)


def legacy_factor(step: int, *, total_steps: int, warmup_steps: int = 0) -> float:
    """Return the factor of the schedule used before April 2023: one step late, power 2."""
    late = max(step - 1, 0)
    if late < warmup_steps:
        return late / warmup_steps
    return float((1 - (late - warmup_steps) / (total_steps - warmup_steps)) ** 2)


def original_order(
    num_items: int, *, seed: int, epoch: int, rank: int, num_ranks: int
) -> Iterator[int]:
    """Yield the items of a rank in the original's order.

    A permutation from `seed + epoch`, repeated up to a multiple of the ranks, dealt in turn. Our
    own order (`nfs.training.sampler`) is another one: it can start anywhere and repeats nothing.
    """
    generator = torch.Generator().manual_seed(seed + epoch)
    order = torch.randperm(num_items, generator=generator).tolist()
    total = -(-num_items // num_ranks) * num_ranks
    for position in range(rank, total, num_ranks):
        yield order[position % num_items]
