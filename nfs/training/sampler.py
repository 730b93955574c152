"""A shuffled, endless, seekable order of items that does not depend on the number of ranks."""

from __future__ import annotations

import numpy as np

from nfs.errors import InputError
from nfs.runtime.seeding import derive_seed


class SeekableSampler:
    """Maps a position in the endless sample stream to an item.

    Position p lies in epoch p // n; each epoch is a permutation drawn from (seed, epoch). Rank r of
    R takes every R-th position, so the global batch is the same for any world size.

    Args:
        num_items: Items in an epoch.
        seed: Seed of the order.
    """

    def __init__(self, num_items: int, seed: int):
        if num_items < 1:
            raise InputError("the training set is empty; look at the artifact's status columns")
        self._num_items, self._seed = num_items, seed
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def item_at(self, position: int) -> int:
        """Return the item at a position of the stream."""
        epoch, offset = divmod(position, self._num_items)
        if epoch != self._epoch:
            rng = np.random.default_rng(derive_seed("order", self._seed, epoch))
            self._epoch, self._order = epoch, rng.permutation(self._num_items)
        return int(self._order[offset])

    def rank_positions(
        self, samples_seen: int, *, batch_size: int, rank: int, world_size: int
    ) -> range:
        """Return the stream positions of one rank's part of the global batch at `samples_seen`."""
        return range(samples_seen + rank, samples_seen + batch_size, world_size)
