"""What a training worker knows about the world. The loop is written against this alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from nfs.tracking.protocol import Tracker


class WorkerContext(Protocol):
    """One rank of a training run."""

    rank: int
    world_size: int
    device: torch.device
    directory: Path
    """Directory of the run, the same for all ranks."""
    tracker: Tracker
    """Records the run on rank 0, nothing elsewhere."""

    def wrap(self, module: nn.Module) -> nn.Module:
        """Move a module to the device; synchronise its gradients when there are several ranks."""
        ...

    def mean(self, values: Mapping[str, float | torch.Tensor]) -> dict[str, float]:
        """Return the mean over ranks of each value. Collective: same keys on every rank."""
        ...

    def average(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace each tensor by its mean over ranks. Collective: same shapes on every rank."""
        ...

    def barrier(self) -> None:
        """Wait for all ranks."""
        ...

    def save(
        self,
        write: Callable[[Path], None],
        metrics: Mapping[str, Any],
        write_part: Callable[[Path], None] | None = None,
    ) -> None:
        """Commit a state atomically. Collective; rank 0's `write` fills the directory.

        `write` may run in the background after this returns, so what it writes must not change;
        at most one state is on its way. With `write_part`, every rank adds files of its own to the
        same state before this returns.
        """
        ...

    def settle(self) -> None:
        """Wait until the saved states are written.

        What went wrong with this rank's is raised here, or ends the process as the run's error.
        """
        ...

    def latest(self) -> Path | None:
        """Return the directory of the last committed state, or None."""
        ...

    def report(self, metrics: Mapping[str, float]) -> bool:
        """Tell a supervisor (a search) about an evaluation; False asks the run to stop."""
        ...


def unwrap(module: nn.Module) -> nn.Module:
    """Return the module inside a DDP wrapper, or the module itself."""
    if isinstance(module, nn.parallel.DistributedDataParallel):
        return module.module
    return module


def no_sync(module: nn.Module) -> AbstractContextManager[None]:
    """Return a context in which gradients stay on this rank (all passes but the last of a step)."""
    if isinstance(module, nn.parallel.DistributedDataParallel):
        return module.no_sync()
    return nullcontext()
