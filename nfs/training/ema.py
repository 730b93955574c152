"""Exponential moving average of a module, with the half-life counted in samples."""

from __future__ import annotations

import copy

import torch
from torch import nn


def ema_beta(batch_size: int, ema_kimg: float) -> float:
    """Return the decay per step, `0.5 ** (batch_size / (1000 * ema_kimg))`; 0 for no average."""
    return 0.5 ** (batch_size / (1000 * ema_kimg)) if ema_kimg > 0 else 0.0


class Ema:
    """A frozen copy of a module whose parameters follow it slowly; buffers are copied.

    Args:
        module: The module to follow, not wrapped.
    """

    def __init__(self, module: nn.Module):
        self.module = copy.deepcopy(module).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, module: nn.Module, beta: float) -> None:
        """Move the copy towards `module`: `ema <- beta * ema + (1 - beta) * module`."""
        ours = [p.data for p in self.module.parameters()]
        torch._foreach_lerp_(ours, [p.data for p in module.parameters()], 1 - beta)
        for mine, other in zip(self.module.buffers(), module.buffers(), strict=True):
            mine.copy_(other)
