"""A Ray training whose states lie outside the run directory."""

import shutil

import pytest

from nfs.config.base import LaunchConfig
from nfs.runtime import run_training
from nfs.tracking.jsonl import JsonlTracker
from tests.toy import line_worker

pytestmark = [pytest.mark.ray, pytest.mark.distributed, pytest.mark.usefixtures("ray_cluster")]


def fit(directory, states, **tree):
    tracker = JsonlTracker(directory / "tracking", "r")
    launch = LaunchConfig(kind="ray", max_failures=1)
    tree = {"total_samples": 96, **tree}
    metrics = run_training(line_worker, tree, launch, directory, tracker, states)
    rows = [row for row in tracker.read() if "loss/line" in row["metrics"]]
    return metrics, {row["step"]: row["metrics"]["loss/line"] for row in rows}


@pytest.mark.timeout(240)
@pytest.mark.fault
def test_lost_run_directory_goes_on_from_its_states(tmp_path):
    whole, curve = fit(tmp_path / "whole", None)
    states = f"file://{tmp_path}/states/run"
    crash = {"crash_file": str(tmp_path / "crashed"), "crash_at": 24}
    _, first = fit(tmp_path / "first", states, total_samples=48, **crash)
    assert (tmp_path / "crashed").exists()
    assert not (tmp_path / "first" / "states").exists()
    shutil.rmtree(tmp_path / "first")
    metrics, second = fit(tmp_path / "second", states)
    assert metrics == whole
    assert min(second) > 48
    assert first | second == curve
