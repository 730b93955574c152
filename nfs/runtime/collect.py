"""Work on numbered items shared by the ranks, with a result that does not depend on their number.

Legend: N items in batches, W ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

Compute = Callable[[range], dict[str, Tensor]]
"""Rows of a range of items by name, `[len(range), ...]` each, on the rank's device."""


@dataclass(frozen=True)
class Ranks:
    """Who shares the work."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where collectives want their tensors."""


def collect(
    compute: Compute, count: int, *, batch_size: int, ranks: Ranks
) -> dict[str, Tensor] | None:
    """Return the rows of items 0..N-1 in order on rank 0, None on the others.

    Every batch has the same items whatever W is, so the rows are the same to the last bit. All
    ranks must call it; they do the same number of batches, repeating the first where none is left.

    Args:
        compute: Makes the rows of one batch.
        count: N >= 1.
        batch_size: Items per batch; the last one may be smaller.
        ranks: This rank among all.
    """
    batches = [range(i, min(i + batch_size, count)) for i in range(0, count, batch_size)]
    rounds = -(-len(batches) // ranks.size)
    mine = [(r * ranks.size + ranks.rank) for r in range(rounds)]
    parts = [compute(batches[b if b < len(batches) else 0]) for b in mine]
    if ranks.size == 1:
        return {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}
    found: dict[str, Tensor] = {}
    for name in parts[0]:
        rows = torch.stack([_padded(part[name], batch_size) for part in parts]).to(ranks.device)
        gathered = _gather(rows, ranks)
        if gathered is not None:
            found[name] = torch.stack(gathered, dim=1).flatten(0, 2)[:count].cpu()
    return found if ranks.rank == 0 else None


def agreed(value: bool, ranks: Ranks) -> bool:
    """Return rank 0's value on every rank."""
    if ranks.size == 1:
        return value
    flag = torch.tensor([value], dtype=torch.uint8, device=ranks.device)
    dist.broadcast(flag, src=0)
    return bool(flag.item())


def _padded(rows: Tensor, size: int) -> Tensor:
    if len(rows) == size:
        return rows
    return torch.cat([rows, rows.new_zeros(size - len(rows), *rows.shape[1:])])


def _gather(rows: Tensor, ranks: Ranks) -> list[Tensor] | None:
    """Return the tensors of all ranks on rank 0; they travel as bytes, so any dtype will do."""
    sent = rows.contiguous().flatten().view(torch.uint8)
    received = [torch.empty_like(sent) for _ in range(ranks.size)] if ranks.rank == 0 else None
    dist.gather(sent, received, dst=0)
    if received is None:
        return None
    return [part.view(rows.dtype).view(rows.shape) for part in received]
