"""Optimisers that touch only the sampled rows of a matrix and of its moments (spec 2.8).

C rows, D columns, n rows of a step. Rows outside the step keep their value and their moments.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

# Rows worked on at once when all rows move: 1 MB at D = 512, so the operands stay in cache.
_CHUNK_ROWS = 512


@dataclass(frozen=True)
class RowGradient:
    """Gradient `[n, D]` of some rows (sorted, unique); None means all rows."""

    rows: Tensor | None
    values: Tensor

    def norm(self) -> Tensor:
        """Return the L2 norm."""
        return self.values.norm()


def merge_gradients(parts: Sequence[RowGradient]) -> RowGradient:
    """Add gradients of several micro-batches over the union of their rows."""
    if len(parts) == 1:
        return parts[0]
    chosen = [part.rows for part in parts if part.rows is not None]
    rows, inverse = torch.unique(torch.cat(chosen), return_inverse=True)
    values = parts[0].values.new_zeros((len(rows), parts[0].values.shape[1]))
    values.index_add_(0, inverse, torch.cat([part.values for part in parts]))
    return RowGradient(rows, values)


class RowOptimizer(Protocol):
    """Updates rows of a matrix in place."""

    moments: dict[str, Tensor]
    """Tensors `[C, D]` by name, sharded as the matrix is."""
    steps: int
    """Updates made."""

    def step(self, gradient: RowGradient, lr: float) -> None:
        """Update the rows; `gradient.values` may be overwritten."""
        ...


class RowSGD:
    """SGD with momentum and weight decay on the rows of a step.

    Args:
        weight: `[C, D]`.
        momentum: Factor of the previous update of a row.
        weight_decay: L2 penalty, on the rows of the step only.
        update: `dense` lets all rows decay and coast each step, as the 2023 original (quirk Q4).
    """

    def __init__(
        self,
        weight: Tensor,
        *,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        update: str = "sparse",
    ) -> None:
        self.weight = weight.detach()
        self.momentum, self.weight_decay, self.update = momentum, weight_decay, update
        # Zero pages are not resident until written: memory grows with the rows ever sampled.
        self.moments = {"momentum": torch.zeros_like(self.weight)}
        self.steps = 0

    @torch.no_grad()
    def step(self, gradient: RowGradient, lr: float) -> None:
        """Update the rows of the step."""
        momentum = self.moments["momentum"]
        if self.update == "dense":
            gradient = _dense(gradient, self.weight)
        for rows, part in _parts(gradient):
            weight, moment = _take(self.weight, rows), _take(momentum, rows)
            part.add_(weight, alpha=self.weight_decay)
            moment.mul_(self.momentum).add_(part)
            weight.add_(moment, alpha=-lr)
            _put(self.weight, rows, weight)
            _put(momentum, rows, moment)
        self.steps += 1


class RowAdamW:
    """AdamW on the rows of a step, with one step count for all rows.

    Args:
        weight: `[C, D]`.
        betas: Decay rates of the moments.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled decay, on the rows of the step only.
        update: As in `RowSGD`.
        extra_count: Added to the count in the bias correction; 1 reproduces the 2022 original,
            whose counter advances twice before the first update.
    """

    def __init__(
        self,
        weight: Tensor,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        update: str = "sparse",
        extra_count: int = 0,
    ) -> None:
        self.weight = weight.detach()
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.update, self.extra_count = update, extra_count
        self.moments = {
            "exp_avg": torch.zeros_like(self.weight),
            "exp_avg_sq": torch.zeros_like(self.weight),
        }
        self.steps = 0

    @torch.no_grad()
    def step(self, gradient: RowGradient, lr: float) -> None:
        """Update the rows of the step."""
        first, second = self.moments["exp_avg"], self.moments["exp_avg_sq"]
        self.steps += 1
        count = self.steps + self.extra_count
        size = lr / (1 - self.betas[0] ** count)
        root = (1 - self.betas[1] ** count) ** 0.5
        if self.update == "dense":
            gradient = _dense(gradient, self.weight)
        for rows, part in _parts(gradient):
            weight, m, v = (_take(t, rows) for t in (self.weight, first, second))
            weight.mul_(1 - lr * self.weight_decay)
            m.lerp_(part, 1 - self.betas[0])
            v.mul_(self.betas[1]).addcmul_(part, part, value=1 - self.betas[1])
            weight.addcdiv_(m, v.sqrt().div_(root).add_(self.eps), value=-size)
            for whole, changed in ((self.weight, weight), (first, m), (second, v)):
                _put(whole, rows, changed)


def _dense(gradient: RowGradient, weight: Tensor) -> RowGradient:
    if gradient.rows is None:
        return gradient
    whole = torch.zeros_like(weight)
    return RowGradient(None, whole.index_copy_(0, gradient.rows, gradient.values))


def _parts(gradient: RowGradient) -> Iterator[tuple[Tensor | slice, Tensor]]:
    """Yield (rows, gradient) in pieces that fit the cache."""
    count = len(gradient.values)
    size = _CHUNK_ROWS if gradient.values.device.type == "cpu" else max(1, count)
    for start in range(0, count, size):
        piece = slice(start, start + size)
        yield (piece if gradient.rows is None else gradient.rows[piece]), gradient.values[piece]


def _take(matrix: Tensor, rows: Tensor | slice) -> Tensor:
    """Return a view of consecutive rows, or a copy of scattered ones."""
    return matrix[rows] if isinstance(rows, slice) else matrix.index_select(0, rows)


def _put(matrix: Tensor, rows: Tensor | slice, values: Tensor) -> None:
    if not isinstance(rows, slice):
        matrix.index_copy_(0, rows, values)
