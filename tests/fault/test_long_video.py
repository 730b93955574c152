"""Memory of preprocessing does not grow with the length of a video."""

import json
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def facts(repository, folder, minutes: float) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.long_video", str(minutes), str(folder)],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_twelve_minutes_take_no_more_than_two(repository, tmp_path):
    short = facts(repository, tmp_path / "short", 2)
    long = facts(repository, tmp_path / "long", 12)
    assert (short["code"], long["code"]) == (0, 0)
    assert long["frames"] > 5.5 * short["frames"]
    assert long["peak_mb"] < short["peak_mb"] + 100
    assert long["peak_mb"] < 2000
