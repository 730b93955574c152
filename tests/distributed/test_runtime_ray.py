"""The floors on a real Ray cluster: per-unit stages and training with one and two ranks."""

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

from nfs.artifacts import write_manifest
from nfs.artifacts.tables import read_table
from nfs.config.base import LaunchConfig
from nfs.errors import InputError, NfsError, NonFiniteError
from nfs.runtime import run_function, run_training, run_units
from nfs.tracking.jsonl import JsonlTracker
from nfs.tracking.null import NullTracker
from nfs.training.checkpoint import read_weights
from tests.toy import EchoWork, line_worker, state_worker

pytestmark = [pytest.mark.ray, pytest.mark.distributed, pytest.mark.usefixtures("ray_cluster")]
TWO = LaunchConfig(kind="ray", num_workers=2)


def items(*paths, **extra):
    return [{"key": f"{i:04d}", "path": p, **extra} for i, p in enumerate(paths)]


def curve(directory: Path) -> list[tuple[int, float]]:
    rows = JsonlTracker(directory / "tracking", "r").read()
    return [(r["step"], r["metrics"]["loss/line"]) for r in rows if "loss/line" in r["metrics"]]


def fit(directory: Path, launch: LaunchConfig, **tree):
    tracker = JsonlTracker(directory / "tracking", "r")
    return run_training(line_worker, {"total_samples": 96, **tree}, launch, directory, tracker)


@pytest.mark.timeout(180)
def test_units_on_two_actors(tmp_path):
    uri = str(tmp_path / "out")
    work = items("a", "bad", "flaky", "broken", "b", "poison", once=str(tmp_path / "once"))
    seen = []
    report = run_units(
        work, partial(EchoWork, str(tmp_path / "log")), uri, TWO, seen.append, primary="rows"
    )
    assert sorted(report.ok) == ["0000", "0002", "0004"]
    assert report.failed["0001"].startswith("no_face")
    assert report.failed["0003"].startswith("error")
    assert report.failed["0005"].startswith("worker_died")
    assert sorted(r["key"] for r in seen) == [f"{i:04d}" for i in range(6)]
    write_manifest(uri, kind="rows", config={})
    assert read_table(uri, "rows").num_rows == 6


@pytest.mark.timeout(180)
def test_several_units_share_a_task_when_there_are_many(tmp_path, monkeypatch):
    monkeypatch.setattr("nfs.runtime.ray_backend._MAX_TASKS", 2)
    uri, log = str(tmp_path / "out"), tmp_path / "log"
    work = items("a", "bad", "b", "poison", "c", "d", "e", once=str(tmp_path / "once"))
    seen = []
    report = run_units(work, partial(EchoWork, str(log)), uri, TWO, seen.append, primary="rows")
    assert sorted(r["key"] for r in seen) == [f"{i:04d}" for i in range(7)]
    assert report.failed["0003"].startswith("worker_died")
    write_manifest(uri, kind="rows", config={})
    status = read_table(uri, "rows").to_pylist()
    assert len(status) == 7
    assert {row["clip_id"]: row["status"] for row in status} == {
        **dict.fromkeys("abcde", "ok"), "bad": "no_face", "poison": "worker_died",
    }  # fmt: skip
    paths = log.read_text().split()
    assert all(paths.count(path) == 1 for path in "abcde"), "committed units are not done again"


@pytest.mark.timeout(400)
def test_two_ranks_interrupted_half_way_equal_one_rank(tmp_path):
    # The noise of a step depends on the rank; without it ranks must add up to the whole batch.
    local = fit(tmp_path / "local", LaunchConfig(kind="local"), noise=0.0)
    half = fit(tmp_path / "two", TWO, noise=0.0, total_samples=48)
    assert half["train/samples_seen"] == 48
    two = fit(tmp_path / "two", TWO, noise=0.0)
    assert two["train/samples_seen"] == local["train/samples_seen"] == 96
    a, b = (read_weights(tmp_path / n / "checkpoint") for n in ("local", "two"))
    torch.testing.assert_close(b, a, atol=1e-6, rtol=1e-5)
    ours, theirs = curve(tmp_path / "two"), curve(tmp_path / "local")
    assert [step for step, _ in ours] == [step for step, _ in theirs] == list(range(8, 97, 8))
    assert [v for _, v in ours] == pytest.approx([v for _, v in theirs], rel=1e-5, abs=1e-7)


@pytest.mark.timeout(240)
@pytest.mark.fault
def test_killed_rank_restarts_and_the_curve_is_the_same(tmp_path):
    whole = fit(tmp_path / "whole", LaunchConfig(kind="ray"))
    tree = {"crash_file": str(tmp_path / "crashed"), "crash_at": 56}
    cut = fit(tmp_path / "cut", LaunchConfig(kind="ray", max_failures=1), **tree)
    assert (tmp_path / "crashed").exists()
    assert cut == whole
    assert sorted(curve(tmp_path / "cut")) == sorted(curve(tmp_path / "whole"))
    assert len(curve(tmp_path / "cut")) == 12


@pytest.mark.timeout(120)
def test_own_errors_survive_ray(tmp_path):
    with pytest.raises(NonFiniteError, match="loss/line is nan"):
        fit(tmp_path, LaunchConfig(kind="ray", max_failures=0), poison_at=8)


@pytest.mark.timeout(240)
def test_states_are_written_while_the_training_goes_on(tmp_path):
    def run(max_failures=0, **tree):
        launch = LaunchConfig(kind="ray", num_workers=2, max_failures=max_failures)
        (tmp_path / "went-on").unlink(missing_ok=True)
        return run_training(state_worker, tree, launch, tmp_path, NullTracker())

    with pytest.raises(NfsError, match="the disk is full"):
        run(fails=True)
    # Killed in the middle of the write; the second attempt finds nothing of it.
    died = tmp_path / "died"
    first = run(max_failures=1, text="first", dies=str(died))
    assert first == {"before": [], "text": "", "committed": True}
    assert died.exists()
    torn = tmp_path / "states" / "checkpoint_torn"
    torn.mkdir()
    parts = ["part-0", "part-1", "whole"]
    assert run(text="second") == {"before": parts, "text": "first", "committed": True}
    assert not torn.exists()
    whole = (tmp_path / "states").glob("checkpoint_*/whole")
    assert sorted(p.read_text() for p in whole) == ["first", "second"]


def test_impossible_request_is_refused_at_once(tmp_path):
    launch = LaunchConfig(kind="ray", num_workers=500)
    with pytest.raises(InputError, match=r"launch asks for 500 worker"):
        run_training(line_worker, {}, launch, tmp_path, NullTracker())


def test_function_as_a_task():
    assert run_function(shutil.which, ("sh",), LaunchConfig()) is not None
