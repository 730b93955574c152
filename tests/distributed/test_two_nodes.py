"""The same jobs on two simulated nodes."""

import json
import os
import subprocess
import sys

import pytest

from nfs.artifacts.tables import read_table
from tests.media import cut_clips

pytestmark = [pytest.mark.distributed, pytest.mark.ray, pytest.mark.timeout(400)]


def test_two_workers_on_two_nodes(repository, shared_dir, tmp_path):
    clips, storage = tmp_path / "clips", tmp_path / "runs"
    storage.mkdir()
    cut_clips(shared_dir / "data" / "clips" / "interview_512.mp4", clips, 4)
    out = subprocess.run(
        [sys.executable, "-m", "tests.distributed.two_nodes", str(clips), str(storage)],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        timeout=380,
    )
    assert out.returncode == 0, out.stderr[-3000:]
    notes = [json.loads((storage / f"rank{r}.json").read_text()) for r in (0, 1)]
    assert notes[0]["world_size"] == 2
    assert notes[0]["node"] != notes[1]["node"]
    (uri,) = storage.glob("*/clips")
    rows = read_table(str(uri), "clips").to_pylist()
    assert sorted(r["status"] for r in rows) == ["ok"] * 4
