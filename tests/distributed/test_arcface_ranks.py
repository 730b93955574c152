"""Partial-FC on two gloo ranks: equal to one rank; killed and resumed on another world size."""

import json
import multiprocessing
import signal
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from nfs.arcface.export import join_shards
from nfs.runtime.local import LocalContext
from nfs.tracking.jsonl import JsonlTracker
from nfs.tracking.null import NullTracker
from nfs.training.state import load_state
from tests import arcface_ranks

pytestmark = pytest.mark.distributed
TOLERANCE = 2e-5
LOSS = "loss/arcface"


def test_two_ranks_equal_one(tmp_path):
    mp.spawn(arcface_ranks.all_checks, (2, tmp_path), nprocs=2)
    for rank in range(2):
        found = json.loads((tmp_path / f"found-{rank}.json").read_text())
        assert len(found) >= 12
        assert {k: v for k, v in found.items() if not v <= TOLERANCE} == {}


def run_ranks(place: Path, size: int, **tree: object) -> list[int | None]:
    """Train on `size` processes; when one dies the others are ended, as a launcher would."""
    start = multiprocessing.get_context("spawn")
    tree = {"meeting": f"meeting-{size}", "num_images": 96, "total_samples": 192, **tree}
    ranks = [
        start.Process(target=arcface_ranks.train_rank, args=(r, size, place, tree))
        for r in range(size)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks[::-1]:
        rank.join(120)
        if rank.exitcode:
            for other in ranks:
                other.kill()
                other.join()
    return [rank.exitcode for rank in ranks]


def test_killed_on_two_ranks_goes_on_with_one(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        (folder / "run").mkdir(parents=True)
    assert run_ranks(whole, 1, log=str(whole / "seen")) == [0]
    # Rank 1 dies inside the first epoch (96 images), after the state at 48 and its 33rd own image.
    codes = run_ranks(cut, 2, kill_rank=1, kill_after=33, log=str(cut / "first"))
    assert codes[1] == -signal.SIGKILL
    state = load_state(LocalContext(cut / "run", NullTracker()).latest())
    assert 0 < state.samples_seen < 96
    assert run_ranks(cut, 1, log=str(cut / "second")) == [0]
    a, b = (LocalContext(f / "run", NullTracker()).latest() for f in (whole, cut))
    torch.testing.assert_close(join_shards(b), join_shards(a), rtol=0, atol=TOLERANCE)
    end_a, end_b = load_state(a), load_state(b)
    assert end_a.samples_seen == end_b.samples_seen == 192
    for name, value in end_a.task["backbone"].items():
        torch.testing.assert_close(end_b.task["backbone"][name], value, rtol=0, atol=TOLERANCE)
    assert seen_once(cut, state.samples_seen)
    # The curve of two ranks up to the state and of one rank from there is that of an unbroken run.
    first, second, unbroken = curve(cut, 2), curve(cut, 1), curve(whole, 1)
    assert min(second) == state.samples_seen + arcface_ranks.B
    joined = {k: v for k, v in first.items() if k <= state.samples_seen} | second
    assert joined.keys() == unbroken.keys()
    assert len(unbroken) == 192 // arcface_ranks.B
    for samples, loss in unbroken.items():
        assert joined[samples] == pytest.approx(loss, abs=TOLERANCE), samples


def curve(folder: Path, size: int) -> dict[int, float]:
    """Losses of every step by the clock, as `size` ranks recorded them."""
    rows = JsonlTracker(folder / f"curve-{size}", "run").read()
    return {r["step"]: r["metrics"][LOSS] for r in rows if LOSS in r["metrics"]}


def seen_once(folder: Path, samples_seen: int) -> bool:
    """Images of the state by two ranks, then those of one: each once in the first epoch."""
    ranks = [(folder / f"first.{r}").read_text().split() for r in range(2)]
    before = [i for r in ranks for i in r[: samples_seen // 2]]
    after = (folder / "second.0").read_text().split()[: 96 - samples_seen]
    return sorted(map(int, before + after)) == list(range(96))
