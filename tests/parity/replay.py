"""Replay recorded outputs of an original project: `python -m tests.parity.replay FAMILY FOLDER`.

A family's checks live in `tests/parity/<family>_checks.py`: `checks(folder: Path)` returns
{name: Check}.
"""

import argparse
import importlib
import importlib.util
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

FAMILIES = ("stylenerf", "arcface", "morphable", "audio", "inversion")


class Check(TypedDict):
    """Outcome of one comparison with a recorded value."""

    error: float
    tolerance: float
    ok: bool


def check(error: float, tolerance: float) -> Check:
    """Return a check that passes when `error <= tolerance`; NaN fails."""
    error = float(error)
    return {"error": error, "tolerance": tolerance, "ok": bool(error <= tolerance)}


def load_checks(family: str) -> Callable[[Path], Mapping[str, Check]]:
    """Import a family's checks lazily.

    Raises:
        LookupError: If this project has no checks for the family.
    """
    module = f"tests.parity.{family}_checks"
    if importlib.util.find_spec(module) is None:
        raise LookupError(f"no checks for family {family!r}: {module} does not exist yet")
    return importlib.import_module(module).checks


def replay(family: str, folder: Path) -> tuple[dict[str, Check], int]:
    """Run a family's checks on a folder; return them with the exit code (0 all passed, else 1)."""
    results = dict(load_checks(family)(folder))
    passed = bool(results) and all(result["ok"] for result in results.values())
    return results, 0 if passed else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one JSON object {check: {error, tolerance, ok}} and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity.replay", description=__doc__)
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument(
        "folder", type=Path, help="fixtures in the format of ../shared/parity/<family>"
    )
    options = parser.parse_args(arguments)
    if not options.folder.is_dir():
        sys.stderr.write(f"{options.folder}: no such folder\n")
        return 2
    try:
        results, code = replay(options.family, options.folder)
    except LookupError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(
        json.dumps({name: _plain(result) for name, result in results.items()}, indent=1) + "\n"
    )
    return code


def _plain(result: Check) -> dict[str, float | bool | str]:
    # JSON has no NaN or infinity; a string keeps the output parseable.
    error = result["error"]
    return {**result, "error": error if math.isfinite(error) else str(error)}


if __name__ == "__main__":
    sys.exit(main())
