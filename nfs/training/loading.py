"""Batches for the loop: read in line, by threads ahead of it, or by Ray Data actors.

All ways give the same numbers in the same order: an item and its noise depend on its position in
the stream only, so that a run may change its loader at a restart.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from nfs.config.base import LoaderConfig
from nfs.runtime.dispatch import stream_on_ray
from nfs.runtime.seeding import derive_seed
from nfs.training.sampler import SeekableSampler
from nfs.training.task import MapDataset

Item = dict[str, NDArray[np.generic]]
Batch = dict[str, torch.Tensor]


class BatchReader:
    """One rank's part of the global batch at a value of the clock; picklable if its dataset is.

    Args:
        dataset: Items.
        seed: Seed of order and augmentation.
        batch_size: Global batch.
        rank: This rank.
        world_size: Ranks.
    """

    def __init__(
        self, dataset: MapDataset, *, seed: int, batch_size: int, rank: int, world_size: int
    ):
        self._dataset, self._seed, self._batch_size = dataset, seed, batch_size
        self._rank, self._world_size = rank, world_size
        self._sampler = SeekableSampler(len(dataset), seed)

    def positions(self, samples_seen: int) -> range:
        """Return the stream positions of this rank's items."""
        return self._sampler.rank_positions(
            samples_seen,
            batch_size=self._batch_size,
            rank=self._rank,
            world_size=self._world_size,
        )

    def item(self, position: int) -> Item:
        """Return the item at a stream position; what is random in it depends on the position."""
        rng = np.random.default_rng(derive_seed("item", self._seed, position))
        return self._dataset.get(self._sampler.item_at(position), rng)

    def __call__(self, samples_seen: int) -> Item:
        """Return the batch that begins at `samples_seen`: arrays `[batch_size / ranks, ...]`."""
        return collate([self.item(position) for position in self.positions(samples_seen)])


def collate(items: list[Item]) -> Item:
    """Stack items of equal shapes."""
    return {name: np.stack([item[name] for item in items]) for name in items[0]}


def read_batches(
    reader: BatchReader, clock: range, loader: LoaderConfig, device: torch.device
) -> Generator[Batch, None, None]:
    """Yield the batch of each value of the clock, on the device.

    Close the generator to stop its threads or actors. What goes wrong while a batch is prepared is
    raised where that batch is due, after the good ones before it.

    Args:
        reader: Reads a batch.
        clock: Values of `samples_seen`, one per step.
        loader: Who reads, and how far ahead.
        device: Where the batches go; for CUDA they pass through pinned memory.
    """
    if loader.ingest == "ray_data":
        arrays = stream_on_ray(
            reader, clock, num_actors=loader.workers, num_ahead=loader.prefetch_batches
        )
        pinned = _map(lambda item: _tensors(item, device), arrays)
    elif loader.prefetch_batches:
        pinned = _read_ahead(reader, clock, loader, device)
    else:
        pinned = (_tensors(reader(samples_seen), device) for samples_seen in clock)
    try:
        for batch in pinned:
            yield {k: v.to(device, non_blocking=True) for k, v in batch.items()}
    finally:
        pinned.close()


def _read_ahead(
    reader: BatchReader, clock: range, loader: LoaderConfig, device: torch.device
) -> Generator[Batch, None, None]:
    pool = ThreadPoolExecutor(loader.workers, thread_name_prefix="nfs-loader")
    waiting: deque[Future[Batch]] = deque()

    def finish(items: list[Future[Item]]) -> Batch:
        return _tensors(collate([item.result() for item in items]), device)

    try:
        for samples_seen in clock:
            # The pool starts jobs in order: when `finish` runs, its items are done or running.
            items = [pool.submit(reader.item, p) for p in reader.positions(samples_seen)]
            waiting.append(pool.submit(finish, items))
            if len(waiting) > loader.prefetch_batches:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _map(
    function: Callable[[Item], Batch], arrays: Generator[Item, None, None]
) -> Generator[Batch, None, None]:
    try:
        for item in arrays:
            yield function(item)
    finally:
        arrays.close()


def _tensors(item: Item, device: torch.device) -> Batch:
    """Return tensors that share memory with the arrays, or pinned copies for a CUDA device."""
    tensors = {name: torch.from_numpy(array) for name, array in item.items()}
    if device.type != "cuda":
        return tensors
    with torch.cuda.device(device):  # threads begin on device 0
        return {name: tensor.pin_memory() for name, tensor in tensors.items()}
