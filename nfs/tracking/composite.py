"""Recording one run in several places, e.g. plain files beside MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nfs.tracking.protocol import Status, Tracker, TrackerSpec


class CompositeTracker:
    """Forwards every call to all its trackers; the first one names the run.

    Args:
        trackers: At least one; order matters only for `run_id`.
    """

    def __init__(self, trackers: Sequence[Tracker]):
        self._trackers = list(trackers)
        self.run_id = self._trackers[0].run_id

    def spec(self) -> TrackerSpec:
        """Return a spec that holds those of all trackers."""
        parts = tuple(t.spec() for t in self._trackers)
        return TrackerSpec("composite", self.run_id, "", "", parts=parts)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Forward."""
        for tracker in self._trackers:
            tracker.log_params(params)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Forward."""
        for tracker in self._trackers:
            tracker.log_metrics(metrics, step)

    def log_image(self, name: str, image: np.ndarray, step: int | None = None) -> None:
        """Forward."""
        for tracker in self._trackers:
            tracker.log_image(name, image, step)

    def log_file(self, path: str | Path, folder: str = "") -> None:
        """Forward."""
        for tracker in self._trackers:
            tracker.log_file(path, folder)

    def log_text(self, text: str, name: str) -> None:
        """Forward."""
        for tracker in self._trackers:
            tracker.log_text(text, name)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Forward."""
        for tracker in self._trackers:
            tracker.set_tags(tags)

    def link(self, *, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> None:
        """Forward."""
        for tracker in self._trackers:
            tracker.link(inputs=inputs, outputs=outputs)

    def flush(self) -> None:
        """Forward."""
        for tracker in self._trackers:
            tracker.flush()

    def finish(self, status: Status) -> None:
        """Forward."""
        for tracker in self._trackers:
            tracker.finish(status)
