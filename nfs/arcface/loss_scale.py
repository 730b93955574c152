"""Loss scaling for fp16 whose decision is the same on all ranks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

_FIRST, _GROWTH, _BACKOFF, _INTERVAL = 65536.0, 2.0, 0.5, 100


class LossScale:
    """A factor of the loss that halves at a non-finite gradient and doubles after 100 good steps.

    Args:
        enabled: When false the factor is 1 and never changes.
    """

    patience = 20
    """Skipped steps in a row after which no scale can be to blame (65536 / 2^16 = 1)."""

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self.value = _FIRST if enabled else 1.0
        self._good_steps = 0

    @torch.no_grad()
    def unscale(self, parameters: Iterable[nn.Parameter], rows: Tensor) -> None:
        """Divide gradients by the factor in place."""
        if not self.enabled:
            return
        grads = [p.grad for p in parameters if p.grad is not None]
        torch._foreach_mul_([*grads, rows], 1 / self.value)

    def update(self, finite: bool) -> None:
        """Adapt the factor to the step's outcome (reduced over ranks)."""
        if not self.enabled:
            return
        if not finite:
            self.value, self._good_steps = self.value * _BACKOFF, 0
            return
        self._good_steps += 1
        if self._good_steps == _INTERVAL:
            self.value, self._good_steps = self.value * _GROWTH, 0

    def state_dict(self) -> dict[str, float]:
        """Return factor and count."""
        return {"value": self.value, "good_steps": self._good_steps}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore what `state_dict` returned."""
        self.value, self._good_steps = state["value"], int(state["good_steps"])
