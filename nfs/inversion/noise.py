"""Noise buffers of a generator: regulariser and normalisation (Karras et al. 2020, appendix D)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

SMALLEST_LEVEL_PX = 8


def noise_buffers(generator: nn.Module) -> dict[str, Tensor]:
    """Return the `noise_const` buffers by name; empty for generators without noise layers."""
    return {n: b for n, b in generator.named_buffers() if n.endswith("noise_const")}


def noise_regulariser(buffers: list[Tensor]) -> Tensor:
    """Return the sum of squared autocorrelations at shift 1 over all scales.

    Each level is the 2x2 mean of the one before, down to a height of 8 or less.

    Args:
        buffers: Square noise maps `[N, N]`.
    """
    total = torch.zeros(())
    for buffer in buffers:
        level = buffer[None, None]
        while True:
            for dim in (3, 2):
                total = total + (level * level.roll(1, dim)).mean().square()
            if level.shape[2] <= SMALLEST_LEVEL_PX:
                break
            level = functional.avg_pool2d(level, 2)
    return total


@torch.no_grad()
def normalise_noise(buffers: list[Tensor]) -> None:
    """Give each buffer mean 0 and mean square 1, in place."""
    for buffer in buffers:
        buffer -= buffer.mean()
        buffer *= buffer.square().mean().rsqrt()
