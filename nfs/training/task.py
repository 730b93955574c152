"""What a model family implements to be trained by the loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from nfs.runtime.context import WorkerContext


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation.

    Attributes:
        metrics: By `area/name_unit`; a function of the state alone (no times).
        images: uint8 `[H, W, 3]` by name.
        files: Other files, e.g. videos, that lie in the run directory.
        warnings: What the user should look at, in words.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    images: dict[str, np.ndarray] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class MapDataset(Protocol):
    """Random access to training items."""

    def __len__(self) -> int:
        """Return the number of items in an epoch."""
        ...

    def get(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return item `index`; augmentation and other choices draw from `rng` only.

        With `loader.workers` above 1 it is called from several threads at once, with
        `loader.ingest=ray_data` on copies in other processes (so the data set must pickle).
        """
        ...


class TrainTask(Protocol):
    """A family's networks, losses and optimisers."""

    def setup(self, context: WorkerContext) -> None:
        """Build networks on `context.device`, wrap them, make optimisers."""
        ...

    def train_step(
        self, batch: dict[str, torch.Tensor], samples_seen: int
    ) -> dict[str, torch.Tensor]:
        """Make one optimisation step on this rank's part of the batch.

        torch's global random state is a function of (seed, rank, samples_seen) on entry.

        Returns:
            Detached scalars by metric key, the same keys on every rank.

        Raises:
            NonFiniteError: Before the optimiser step, naming the term.
        """
        ...

    def evaluate(self, samples_seen: int) -> Evaluation:
        """Measure and draw; called on rank 0 only, without collectives."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on exactly: tensors, numbers, strings, containers."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        ...

    def export(self, directory: Path) -> None:
        """Write the trained model (`nfs.training.checkpoint.write_checkpoint`)."""
        ...


@runtime_checkable
class CollectiveEvaluation(Protocol):
    """A task whose evaluation is work for all ranks."""

    def prepare_evaluation(self, samples_seen: int) -> None:
        """Do the collective part of an evaluation; every rank calls it before `evaluate`."""
        ...


@runtime_checkable
class DistributedTask(TrainTask, CollectiveEvaluation, Protocol):
    """A task whose state or evaluation is spread over the ranks (a sharded class matrix).

    `state_dict` still holds what is the same on all ranks; parts are files beside it, written and
    read by every rank, so that no rank holds the whole and any number of ranks can read them.
    """

    def save_part(self, directory: Path) -> None:
        """Write this rank's files of a state; names must differ between ranks."""
        ...

    def load_parts(self, directory: Path) -> None:
        """Read this rank's share from the files of any number of ranks."""
        ...
