"""How far a run is: a small file that a worker writes and the launcher shows."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

PROGRESS = "progress.json"


@dataclass(frozen=True)
class Progress:
    """A moment of a run: `done` of `total` units."""

    done: int
    total: int
    unit: str


def report_progress(directory: Path, done: int, total: int, unit: str) -> None:
    """Write how far the run in `directory` is; cheap enough for once a second."""
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / f".{PROGRESS}.{os.getpid()}.tmp"
    temporary.write_text(json.dumps(asdict(Progress(done, total, unit))), encoding="utf-8")
    temporary.replace(directory / PROGRESS)


def read_progress(directory: Path) -> Progress | None:
    """Return the last reported moment, or None."""
    file = directory / PROGRESS
    try:
        return Progress(**json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def reset_progress(directory: Path) -> None:
    """Forget what an earlier launch of the run reported."""
    (directory / PROGRESS).unlink(missing_ok=True)
