"""kill -9 of the driver in the middle of real jobs on private clusters, then the same command."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from nfs.artifacts import read_manifest, verify
from nfs.artifacts.tables import read_table
from nfs.tracking.jsonl import JsonlTracker
from tests.killing import committed, finish, kill_when, run_directory, start
from tests.media import cut_clips

pytestmark = [pytest.mark.fault, pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def clip_folder(shared_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    cut_clips(shared_dir / "data" / "clips" / "interview_512.mp4", folder, 8)
    return folder


@pytest.fixture(scope="module")
def preprocessed(repository, clip_folder, tmp_path_factory):
    """Preprocess, killed once in the middle; what was committed before the kill and after."""
    storage = tmp_path_factory.mktemp("runs")
    arguments = ("preprocess", storage, f'inputs=["{clip_folder}"]')
    kill_when(start(repository, *arguments), lambda: len(committed(storage, "clips")) >= 2)
    before = committed(storage, "clips")
    finish(start(repository, *arguments))
    return run_directory(storage) / "clips", before, committed(storage, "clips")


def test_preprocess_loses_and_doubles_nothing(preprocessed, clip_folder):
    uri, before, after = preprocessed
    assert 2 <= len(before) < 8, "the kill came too late to prove anything"
    rows = read_table(str(uri), "clips").to_pylist()
    assert Counter(Path(r["source_uri"]).name for r in rows) == Counter(
        p.name for p in clip_folder.iterdir()
    )
    assert {r["status"] for r in rows} == {"ok"}
    frames = read_table(str(uri), "frames", ["clip_id", "frame_index"]).to_pylist()
    assert len({(f["clip_id"], f["frame_index"]) for f in frames}) == len(frames) == 80
    assert {name: after[name] for name in before} == before, "a finished clip was computed again"
    assert verify(str(uri)) == []
    assert read_manifest(str(uri)).quarantined == []


def test_fit_loses_and_doubles_nothing(preprocessed, repository, tmp_path):
    uri, _, _ = preprocessed
    arguments = ("fit_3dmm", tmp_path, f"clips={uri}")
    kill_when(start(repository, *arguments), lambda: len(committed(tmp_path, "fits")) >= 1)
    before = committed(tmp_path, "fits")
    finish(start(repository, *arguments))
    after = committed(tmp_path, "fits")
    fits = str(run_directory(tmp_path) / "fits")
    assert len(after) == 8
    assert {name: after[name] for name in before} == before
    rows = read_table(fits, "fits", ["clip_id", "frame_index"]).to_pylist()
    assert len({(r["clip_id"], r["frame_index"]) for r in rows}) == len(rows) == 80
    assert verify(fits) == []


def curve(storage: Path) -> list[tuple[int, str, float]]:
    rows = JsonlTracker(run_directory(storage) / "tracking", "test").read()
    return sorted(
        (row["step"], key, value)
        for row in rows
        for key, value in row["metrics"].items()
        if key.startswith(("loss/", "val/"))
    )


def samples_seen(storage: Path) -> int:
    files = list(storage.glob("*/progress.json"))
    return json.loads(files[0].read_text())["done"] if files else 0


def test_training_curve_equals_the_uninterrupted_one(preprocessed, repository, tmp_path):
    uri, _, _ = preprocessed
    tiny = [
        f"clips={uri}", "total_samples=48", "batch_size=4", "log_every=4", "checkpoint_every=8",
        "evaluate_every=24", "cameras={kind: prior}",
    ]  # fmt: skip
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    finish(start(repository, "train_stylenerf", whole, *tiny))
    kill_when(start(repository, "train_stylenerf", cut, *tiny), lambda: samples_seen(cut) >= 20)
    assert samples_seen(cut) < 48, "the kill came too late to prove anything"
    finish(start(repository, "train_stylenerf", cut, *tiny))
    assert curve(cut) == curve(whole)
    assert len({step for step, _, _ in curve(whole)}) == 12
