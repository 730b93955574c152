"""ArcFace on Ray Train: a worker is killed mid-epoch; one rank goes on from two ranks' shards."""

from pathlib import Path

import pytest
import torch

from nfs.arcface.export import join_shards
from nfs.config.base import LaunchConfig
from nfs.errors import NfsError
from nfs.runtime import run_training
from nfs.runtime.local import LocalContext
from nfs.tracking.null import NullTracker
from tests.arcface_ranks import worker

pytestmark = [
    pytest.mark.ray,
    pytest.mark.distributed,
    pytest.mark.fault,
    pytest.mark.usefixtures("ray_cluster"),
]
TREE = {"num_images": 96, "total_samples": 192}


def fit(directory: Path, launch: LaunchConfig, **tree):
    directory.mkdir(exist_ok=True)
    return run_training(worker, {**TREE, **tree}, launch, directory, NullTracker())


def centres(directory: Path) -> torch.Tensor:
    states = sorted(p for p in directory.glob("states/checkpoint_*") if p.is_dir())
    return join_shards(states[-1])


@pytest.mark.timeout(580)
def test_killed_worker_and_another_world_size_goes_on(tmp_path):
    fit(tmp_path / "whole", LaunchConfig(kind="local"))
    whole = join_shards(LocalContext(tmp_path / "whole", NullTracker()).latest())

    stop = LaunchConfig(kind="ray", num_workers=2, max_failures=0)
    with pytest.raises(NfsError, match="Ray run failed"):
        fit(tmp_path / "cut", stop, kill_rank=1, kill_after=33)
    one = LaunchConfig(kind="ray", num_workers=1)
    assert fit(tmp_path / "cut", one)["train/samples_seen"] == 192
    torch.testing.assert_close(centres(tmp_path / "cut"), whole, rtol=0, atol=2e-5)
