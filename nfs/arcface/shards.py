"""How classes are divided among ranks, and first class centres that do not depend on it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nfs.runtime.seeding import derive_seed

_BLOCK = 256
INIT_STD = 0.01


@dataclass(frozen=True)
class Shard:
    """Classes `start <= class < stop` of one rank."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def local(self, labels: Tensor) -> Tensor:
        """Return positions within the shard, or -1 for classes of other ranks."""
        mine = (labels >= self.start) & (labels < self.stop)
        return torch.where(mine, labels - self.start, -1)


def shard_of(num_classes: int, rank: int, num_ranks: int) -> Shard:
    """Return the rank's classes: equal parts, the first ranks one larger (spec 2.6)."""
    size, extra = divmod(num_classes, num_ranks)
    start = size * rank + min(rank, extra)
    return Shard(start, start + size + (rank < extra))


def initial_centres(shard: Shard, embedding_size: int, seed: int) -> Tensor:
    """Return N(0, 0.01) rows `[len(shard), D]` that depend on (seed, class) only.

    Drawn in blocks of 256 classes, so any division of the classes gives the same matrix.
    """
    rows = torch.empty(len(shard), embedding_size)
    for block in range(shard.start // _BLOCK, -(-shard.stop // _BLOCK)):
        generator = torch.Generator().manual_seed(derive_seed("classes", seed, block))
        drawn = torch.randn(_BLOCK, embedding_size, generator=generator)
        first = max(shard.start, block * _BLOCK)
        last = min(shard.stop, (block + 1) * _BLOCK)
        rows[first - shard.start : last - shard.start] = drawn[
            first - block * _BLOCK : last - block * _BLOCK
        ]
    return rows.mul_(INIT_STD)
