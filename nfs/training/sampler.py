"""A shuffled, endless, seekable order of items that does not depend on the number of ranks."""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

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
        # Batches read ahead may lie in two epochs.
        self._orders: OrderedDict[int, NDArray[np.signedinteger]] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, int]:
        return {"_num_items": self._num_items, "_seed": self._seed}

    def __setstate__(self, state: dict[str, int]) -> None:
        SeekableSampler.__init__(self, state["_num_items"], state["_seed"])

    def item_at(self, position: int) -> int:
        """Return the item at a position of the stream; from any thread."""
        epoch, offset = divmod(position, self._num_items)
        with self._lock:
            order = self._orders.get(epoch)
            if order is None:
                rng = np.random.default_rng(derive_seed("order", self._seed, epoch))
                # Half the memory of 64-bit numbers; the order is the same for both.
                small = self._num_items < 2**31
                order = np.arange(self._num_items, dtype=np.int32 if small else np.int64)
                rng.shuffle(order)
                self._orders[epoch] = order
                while len(self._orders) > 2:
                    self._orders.popitem(last=False)
        return int(order[offset])

    def rank_positions(
        self, samples_seen: int, *, batch_size: int, rank: int, world_size: int
    ) -> range:
        """Return the stream positions of one rank's part of the global batch at `samples_seen`."""
        return range(samples_seen + rank, samples_seen + batch_size, world_size)
