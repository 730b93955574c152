"""Training in this process (or under torchrun), with states that persist. No Ray."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from nfs.runtime.collectives import (
    average_over_ranks,
    init_from_environment,
    mean_over_ranks,
    pick_device,
    wrap_ddp,
)
from nfs.runtime.state_mirror import METRICS_FILE, StateMirror
from nfs.tracking.null import NullTracker
from nfs.tracking.protocol import Tracker

KEEP_STATES = 2


class LocalContext:
    """One rank without Ray; states live in `<directory>/states/<number>/`.

    Args:
        directory: Directory of the run.
        tracker: Records the run on rank 0.
        on_report: Called with the metrics of each evaluation; False stops the run.
        states: Folder or URI where copies of the states are kept; a run that finds none in its
            directory goes on from there.
    """

    def __init__(
        self,
        directory: Path,
        tracker: Tracker,
        on_report: Callable[[Mapping[str, float]], bool] | None = None,
        states: str | None = None,
    ):
        self.rank, self.world_size = init_from_environment()
        self.device = pick_device()
        self.directory = directory
        self.tracker: Tracker = tracker if self.rank == 0 else NullTracker()
        self._on_report = on_report
        self._states = directory / "states"
        self._mirror = None if states is None else StateMirror(states)
        self._writing: Future[None] | None = None

    def wrap(self, module: nn.Module) -> nn.Module:
        """Move a module to the device; synchronise gradients when there are several ranks."""
        return wrap_ddp(module, self.device, self.world_size)

    def mean(self, values: Mapping[str, float | torch.Tensor]) -> dict[str, float]:
        """Return the mean over ranks of each value."""
        return mean_over_ranks(values, self.device, self.world_size)

    def average(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace each tensor by its mean over ranks."""
        average_over_ranks(tensors, self.world_size)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier()

    def save(
        self,
        write: Callable[[Path], None],
        metrics: Mapping[str, Any],
        write_part: Callable[[Path], None] | None = None,
    ) -> None:
        """Write a state under a temporary name, rename it, keep the newest few.

        Rank 0 does so in a thread; the previous state is complete before the next one begins.
        """
        self.settle()
        temporary = self._states / f".{uuid.uuid4().hex}.tmp"
        if write_part is not None:
            temporary = self._agreed(temporary)
            temporary.mkdir(parents=True, exist_ok=True)
            write_part(temporary)
            self.barrier()
        if self.rank == 0:
            thread = ThreadPoolExecutor(1, thread_name_prefix="nfs-state")
            self._writing = thread.submit(self._commit, temporary, write, dict(metrics))
            thread.shutdown(wait=False)

    def settle(self) -> None:
        """Wait until the last state is written.

        Raises:
            OSError: If it could not be.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _commit(
        self, temporary: Path, write: Callable[[Path], None], metrics: dict[str, Any]
    ) -> None:
        temporary.mkdir(parents=True, exist_ok=True)
        write(temporary)
        (temporary / METRICS_FILE).write_text(json.dumps(metrics), encoding="utf-8")
        number = self._numbers()[-1] + 1 if self._numbers() else 0
        temporary.rename(self._states / f"{number:06d}")
        if self._mirror is not None:
            self._mirror.put(number, self._states / f"{number:06d}", KEEP_STATES)
        for old in self._numbers()[:-KEEP_STATES]:
            shutil.rmtree(self._states / f"{old:06d}")
        for torn in self._states.glob(".*.tmp"):  # of a killed process
            shutil.rmtree(torn)

    def latest(self) -> Path | None:
        """Return the newest committed state."""
        if self._mirror is not None:
            if self.rank == 0:
                self._fetch(self._mirror)
            self.barrier()
        numbers = self._numbers()
        return self._states / f"{numbers[-1]:06d}" if numbers else None

    def _fetch(self, mirror: StateMirror) -> None:
        """Copy the mirror's newest state into the run directory if it is newer than all there."""
        there, here = mirror.numbers(), self._numbers()
        if there and (not here or there[-1] > here[-1]):
            self._states.mkdir(parents=True, exist_ok=True)
            mirror.get(there[-1], self._states / f"{there[-1]:06d}")

    def report(self, metrics: Mapping[str, float]) -> bool:
        """Pass an evaluation on to the supervisor, if any."""
        return True if self._on_report is None else self._on_report(metrics)

    def _agreed(self, path: Path) -> Path:
        """Return rank 0's path on every rank."""
        if self.world_size == 1:
            return path
        paths = [path]
        dist.broadcast_object_list(paths, device=self.device)
        return paths[0]

    def _numbers(self) -> list[int]:
        if not self._states.is_dir():
            return []
        return sorted(int(p.name) for p in self._states.iterdir() if p.name.isdigit())
