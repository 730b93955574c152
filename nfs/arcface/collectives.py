"""The exchanges of Partial-FC between ranks: one process, or torch.distributed's default group.

Gathers travel as bytes, so any dtype works on gloo and nccl alike. P ranks, B rows per rank.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor


class Ranks(Protocol):
    """What the head needs of its peers."""

    rank: int
    size: int

    def gather(self, rows: Tensor) -> Tensor:
        """Return `[P * B, ...]` in rank order; every rank gives the same shape."""
        ...

    def sum_(self, values: Tensor) -> Tensor:
        """Sum over ranks in place."""
        ...

    def max_(self, values: Tensor) -> Tensor:
        """Take the maximum over ranks in place."""
        ...

    def sum_part(self, rows: Tensor) -> Tensor:
        """Sum `[P * B, ...]` over ranks and return this rank's `[B, ...]`."""
        ...


class OneRank:
    """A single process."""

    rank = 0
    size = 1

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows."""
        return rows

    def sum_(self, values: Tensor) -> Tensor:
        """Return the values."""
        return values

    def max_(self, values: Tensor) -> Tensor:
        """Return the values."""
        return values

    def sum_part(self, rows: Tensor) -> Tensor:
        """Return the rows."""
        return rows


class ProcessGroupRanks:
    """The default process group (gloo or nccl)."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._scatters = dist.get_backend() == "nccl"

    def gather(self, rows: Tensor) -> Tensor:
        """Return `[P * B, ...]` in rank order."""
        sent = rows.detach().contiguous().reshape(len(rows), -1).view(torch.uint8)
        received = sent.new_empty((self.size * len(rows), sent.shape[1]))
        dist.all_gather_into_tensor(received, sent)
        return received.view(rows.dtype).view(-1, *rows.shape[1:])

    def sum_(self, values: Tensor) -> Tensor:
        """Sum over ranks in place."""
        dist.all_reduce(values, dist.ReduceOp.SUM)
        return values

    def max_(self, values: Tensor) -> Tensor:
        """Take the maximum over ranks in place."""
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return values

    def sum_part(self, rows: Tensor) -> Tensor:
        """Sum over ranks and return this rank's part."""
        count = len(rows) // self.size
        if self._scatters:
            part = rows.new_empty((count, *rows.shape[1:]))
            dist.reduce_scatter_tensor(part, rows.contiguous())
            return part
        return self.sum_(rows.contiguous())[self.rank * count : (self.rank + 1) * count]


def default_ranks() -> Ranks:
    """Return the default process group where there is one, else a single rank."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return ProcessGroupRanks()
    return OneRank()


class _GatherEmbeddings(torch.autograd.Function):
    """Gather with the gradient of the global loss, times P (DDP divides by P afterwards)."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        ranks: Ranks,
        dtype: torch.dtype | None,
    ) -> Tensor:
        ctx.ranks, ctx.dtype = ranks, rows.dtype
        return ranks.gather(rows if dtype is None else rows.to(dtype)).to(rows.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        part = ctx.ranks.sum_part(grads[0].clone())
        return part.mul_(ctx.ranks.size).to(ctx.dtype), None, None


def gather_embeddings(rows: Tensor, ranks: Ranks, dtype: torch.dtype | None = None) -> Tensor:
    """Return the embeddings of all ranks `[P * B, D]`, differentiable.

    Args:
        rows: This rank's `[B, D]`.
        ranks: Peers.
        dtype: Precision in which they travel; None keeps theirs.
    """
    if ranks.size == 1 and dtype is None:
        return rows
    return _GatherEmbeddings.apply(rows, ranks, dtype)  # type: ignore[no-untyped-call] # torch
