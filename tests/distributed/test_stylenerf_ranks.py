"""StyleNeRF on several ranks: exact resume, other world sizes, the same numbers under Ray."""

import json
import math
import multiprocessing
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from nfs.config.base import LaunchConfig
from nfs.runtime import run_training
from nfs.runtime.local import LocalContext
from nfs.tracking.jsonl import JsonlTracker
from nfs.tracking.null import NullTracker
from nfs.training.state import load_state
from tests.stylenerf_tiny import BATCH, curve, r1_rank, r1_step, train_rank, worker

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]
TOTAL = 18 * BATCH


def spawn(target: Callable[..., None], size: int, *arguments: object) -> Sequence[int | None]:
    """Run ranks as processes; when one dies the others are ended, as a launcher would."""
    start = multiprocessing.get_context("spawn")
    ranks = [start.Process(target=target, args=(r, size, *arguments)) for r in range(size)]
    for rank in ranks:
        rank.start()
    for rank in ranks[::-1]:
        rank.join(150)
        if rank.exitcode:
            for other in ranks:
                other.kill()
                other.join()
    return [rank.exitcode for rank in ranks]


def fit(directory: Path, size: int, total: int = TOTAL, **tree: Any) -> Sequence[int | None]:
    directory.mkdir(parents=True, exist_ok=True)
    tree = {"total_samples": total, "meeting": f"meeting-{total}-{len(tree)}", **tree}
    return spawn(train_rank, size, directory, tree)


def final_state(directory: Path) -> dict[str, Any]:
    latest = LocalContext(directory, NullTracker()).latest()
    assert latest is not None
    return load_state(latest).task


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run on two ranks."""
    directory = tmp_path_factory.mktemp("whole")
    assert fit(directory, 2) == [0, 0]
    return directory


def test_ranks_agree_on_running_means_and_strength(whole):
    first, second = (json.loads((whole / f"rank-{r}.json").read_text()) for r in range(2))
    assert first == second
    assert any(value != 0 for value in first)
    assert first[-1] != pytest.approx(0.2), "the strength of the augmentation never moved"


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run whose rank 1 was killed; and the clock of its last state."""
    directory = tmp_path_factory.mktemp("killed")
    # A rank reads two images a step and a few batches ahead.
    codes = fit(directory, 2, die_rank=1, die_after=17)
    assert codes[1] == -signal.SIGKILL
    latest = LocalContext(directory, NullTracker()).latest()
    assert latest is not None
    return directory, load_state(latest).samples_seen


def test_a_killed_run_ends_like_the_uninterrupted_one(whole, killed, tmp_path):
    shutil.copytree(killed[0], tmp_path, dirs_exist_ok=True)
    assert 0 < killed[1] < TOTAL
    assert fit(tmp_path, 2) == [0, 0]
    assert curve(tmp_path) == curve(whole)
    ours, theirs = final_state(tmp_path), final_state(whole)
    for name in ("G", "D", "G_ema", "D_ema"):
        assert all(torch.equal(ours[name][k], v) for k, v in theirs[name].items()), name
    for name in ("G_optimizer", "D_optimizer"):
        for index, state in theirs[name]["state"].items():
            assert all(torch.equal(ours[name]["state"][index][k], v) for k, v in state.items())
    assert torch.equal(ours["pl_mean"], theirs["pl_mean"])
    assert ours["augment"] == theirs["augment"]


def test_two_ranks_then_one_then_two_go_on_statistically(whole, killed, tmp_path):
    shutil.copytree(killed[0], tmp_path, dirs_exist_ok=True)
    alone_until = killed[1] + (TOTAL - killed[1]) // (2 * BATCH) * BATCH
    assert fit(tmp_path, 1, alone_until) == [0]
    assert fit(tmp_path, 2) == [0, 0]
    mixed, straight = curve(tmp_path), curve(whole)
    assert list(mixed) == list(straight)
    # Up to the kill it is the same run; then one rank draws other latents for the same images.
    assert all(mixed[step] == straight[step] for step in mixed if step <= killed[1])
    assert mixed[alone_until] != straight[alone_until]
    for name in ("loss/g", "loss/d", "score/path_length_mean", "augment/p"):
        ours, theirs = (
            [c[step][name] for step in c if step > killed[1]] for c in (mixed, straight)
        )
        spread = max(theirs) - min(theirs)
        gap = abs(sum(ours) / len(ours) - sum(theirs) / len(theirs))
        assert math.isfinite(sum(ours))
        assert gap <= 0.5 * spread, name
    steps = {float(s["step"]) for s in final_state(tmp_path)["D_optimizer"]["state"].values()}
    assert steps == {float(s["step"]) for s in final_state(whole)["D_optimizer"]["state"].values()}


def test_ranks_and_passes_add_up_to_the_whole_batch(tmp_path):
    assert spawn(r1_rank, 2, tmp_path) == [0, 0]
    alone = r1_step(LocalContext(tmp_path, NullTracker()), None)
    for rank in range(2):
        for found in torch.load(tmp_path / f"r1-{rank}.pt", weights_only=True):
            torch.testing.assert_close(found, alone, rtol=0, atol=2e-5)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_ray_gives_the_numbers_of_the_plain_launch(whole, tmp_path):
    tracker = JsonlTracker(tmp_path / "tracking", "r")
    launch = LaunchConfig(kind="ray", num_workers=2)
    run_training(worker, {"total_samples": TOTAL}, launch, tmp_path, tracker)
    found, expected = curve(tmp_path), curve(whole)
    assert list(found) == list(expected)
    assert found == expected
