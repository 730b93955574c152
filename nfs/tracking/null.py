"""A tracker that records nothing: ranks above 0, tests, `tracking.kind=null`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nfs.tracking.protocol import Status, TrackerSpec


class NullTracker:
    """Accepts everything, keeps nothing."""

    run_id = ""

    def spec(self) -> TrackerSpec:
        """Return a spec that attaches to another null tracker."""
        return TrackerSpec("null", "", "", "")

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Ignore."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Ignore."""

    def log_image(self, name: str, image: np.ndarray, step: int | None = None) -> None:
        """Ignore."""

    def log_file(self, path: str | Path, folder: str = "") -> None:
        """Ignore."""

    def log_text(self, text: str, name: str) -> None:
        """Ignore."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Ignore."""

    def link(self, *, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> None:
        """Ignore."""

    def flush(self) -> None:
        """Nothing is buffered."""

    def finish(self, status: Status) -> None:
        """Nothing to close."""
