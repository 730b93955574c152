"""What the rest of nfs knows about experiment tracking."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

Status = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True)
class TrackerSpec:
    """Everything needed to go on recording the same run in another process."""

    kind: str
    run_id: str
    uri: str
    directory: str
    started_ms: int = 0
    parts: tuple[TrackerSpec, ...] = ()


class Tracker(Protocol):
    """One run. Metric keys are `area/name_unit`; a step is a count of samples seen."""

    @property
    def run_id(self) -> str:
        """Return the id of the run in its store."""
        ...

    def spec(self) -> TrackerSpec:
        """Return a picklable description for `attach_tracker`."""
        ...

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record settings; those already recorded are kept."""
        ...

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers at a step. Recording the same step again after a resume adds nothing."""
        ...

    def log_image(self, name: str, image: np.ndarray, step: int | None = None) -> None:
        """Record a picture, uint8 `[H, W, 3]` RGB."""
        ...

    def log_file(self, path: str | Path, folder: str = "") -> None:
        """Record a copy of a local file or folder."""
        ...

    def log_text(self, text: str, name: str) -> None:
        """Record a text file."""
        ...

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Record tags."""
        ...

    def link(self, *, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> None:
        """Record lineage: artifact directory -> artifact id, of what the run read and wrote."""
        ...

    def flush(self) -> None:
        """Write what is buffered."""
        ...

    def finish(self, status: Status) -> None:
        """Flush and close the run; only the driver calls this."""
        ...
