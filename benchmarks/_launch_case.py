"""One training of `bench_launch.py`, in a process of its own: `_launch_case.py KIND DIRECTORY`.

The configuration is `DIRECTORY/config.json`. Each recorded row also gets `time/step_cpu_s`: what
the rank's process used per step, all its threads together.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nfs.config.base import LaunchConfig
from nfs.runtime.context import WorkerContext
from nfs.runtime.dispatch import run_training
from nfs.stylenerf.builders import train_worker
from nfs.tracking.jsonl import JsonlTracker


class CpuMeter(JsonlTracker):
    """The run's tracker with CPU-seconds per step beside the wall-clock seconds."""

    def __init__(self, tracker: Any, batch_size: int) -> None:
        spec = tracker.spec()
        super().__init__(spec.directory, spec.run_id)
        self._batch_size = batch_size
        self._last: tuple[float, int] | None = None

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Add the CPU-seconds since the row before; the first row of a run is left out."""
        if "time/step_s" not in metrics:
            return
        now = (time.process_time(), step)
        if self._last is not None:
            steps = (step - self._last[1]) / self._batch_size
            used = (now[0] - self._last[0]) / steps
            super().log_metrics({**metrics, "time/step_cpu_s": used}, step)
        self._last = now


def metered_worker(tree: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    """Train as a job does, with the meter."""
    context.tracker = CpuMeter(context.tracker, tree["batch_size"])
    return train_worker(tree, context)


def main() -> None:
    kind, directory = sys.argv[1], Path(sys.argv[2])
    tree = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    tracker = JsonlTracker(directory / "tracking", kind)
    # Under this file's own name, so that a Ray worker can import it.
    from _launch_case import metered_worker as worker

    run_training(worker, tree, LaunchConfig.from_tree(tree["launch"]), directory, tracker)


if __name__ == "__main__":
    main()
