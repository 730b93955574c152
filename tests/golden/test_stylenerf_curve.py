"""Twenty steps of the tiny StyleNeRF training: every phase, growth, augmentation.

`python -m tests.golden.test_stylenerf_curve` writes the file anew; say why in the commit.
"""

import json
from pathlib import Path

import pytest

from nfs.runtime.local import LocalContext
from nfs.tracking.jsonl import JsonlTracker
from tests.stylenerf_tiny import BATCH, curve, worker

FILE = Path(__file__).with_name("stylenerf_curve.json")
STEPS = 20
# Rounding differs between processors and grows with the steps.
RELATIVE, ABSOLUTE = 2e-3, 2e-5


def run(directory: Path) -> dict[int, dict[str, float]]:
    tracker = JsonlTracker(directory / "tracking", "r")
    worker({"total_samples": STEPS * BATCH}, LocalContext(directory, tracker))
    tracker.flush()
    return curve(directory)


def test_the_curve_of_twenty_steps_is_unchanged(tmp_path):
    recorded = json.loads(FILE.read_text())
    found = run(tmp_path)
    assert [str(step) for step in found] == list(recorded)
    for step, values in found.items():
        assert values == pytest.approx(recorded[str(step)], rel=RELATIVE, abs=ABSOLUTE), step
    terms = {name for values in found.values() for name in values}
    assert {"loss/g", "loss/g_path", "loss/g_path_length", "loss/d", "loss/d_r1"} <= terms


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        FILE.write_text(json.dumps(run(Path(folder)), indent=1))
