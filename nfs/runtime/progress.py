"""How far a run is, and what is odd: small files that a worker writes and the launcher shows."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

PROGRESS = "progress.json"
WARNINGS = "warnings.log"


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
    """Forget how far an earlier launch of the run reported to be."""
    (directory / PROGRESS).unlink(missing_ok=True)


def report_warning(directory: Path, text: str) -> None:
    """Append a line to `warnings.log` of the run; the launcher shows those of remote workers."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / WARNINGS).open("a", encoding="utf-8") as stream:
        stream.write(" ".join(text.split()) + "\n")


def read_warnings(directory: Path) -> list[str]:
    """Return the reported lines of all launches of the run, in order."""
    try:
        return (directory / WARNINGS).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
