"""Saving and loading everything a run needs to go on as if it had never stopped."""

from __future__ import annotations

import copy
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nfs.errors import ArtifactError

STATE = "state.pt"


@dataclass(frozen=True)
class TrainState:
    """A committed moment of a run.

    Attributes:
        samples_seen: The clock.
        task: What `TrainTask.state_dict` returned.
        history: Last evaluation metrics.
    """

    samples_seen: int
    task: dict[str, Any]
    history: dict[str, float]


def snapshot(tree: Any) -> Any:
    """Return a copy of a state on the CPU that later training steps do not change.

    Containers are copied with their attributes (the versions in a module's state dict).
    """
    if isinstance(tree, torch.Tensor):
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, dict):
        copied = copy.copy(tree)
        for name, value in tree.items():
            copied[name] = snapshot(value)
        return copied
    if isinstance(tree, list | tuple):
        return type(tree)([snapshot(value) for value in tree])
    return tree


def save_state(state: TrainState, directory: Path) -> None:
    """Write a state into a directory (the caller makes it appear atomically)."""
    tree = {"samples_seen": state.samples_seen, "task": state.task, "history": state.history}
    torch.save(tree, directory / STATE)


def load_state(directory: Path) -> TrainState:
    """Read a state without executing pickled code.

    Raises:
        ArtifactError: If the file is missing or damaged.
    """
    file = directory / STATE
    try:
        if not zipfile.is_zipfile(file):  # what torch.save writes; anything else is not ours
            raise ValueError("missing or torn")
        tree = torch.load(file, map_location="cpu", weights_only=True)
        return TrainState(**tree)
    except (OSError, RuntimeError, pickle.UnpicklingError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{file}: not a readable training state ({error}); delete this directory to go on "
            "from the one before it"
        ) from error
