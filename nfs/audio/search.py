"""One trial of an Audio2Exp search: the training job's worker with a hook on its evaluations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nfs.audio.builders import train_worker
from nfs.runtime.local import LocalContext
from nfs.tracking.protocol import Tracker


def search_trial(
    tree: dict[str, Any],
    report: Callable[[Mapping[str, float]], bool],
    directory: Path,
    tracker: Tracker,
) -> dict[str, Any]:
    """Train one configuration in this process and return its final metrics.

    A trial killed at any time continues from the last state in `directory`.

    Args:
        tree: `TrainAudio2expConfig` as plain values, with `face_basis` set.
        report: Called with the metrics of each evaluation and `train/samples_seen`; False stops.
        directory: The trial's own directory.
        tracker: Records the trial.
    """
    directory.mkdir(parents=True, exist_ok=True)
    return train_worker(tree, LocalContext(directory, tracker, report))
