"""The face regressor under Ray's TorchTrainer, two ranks."""

import pytest

from jobs.train_recon import train_worker
from nfs.config.base import LaunchConfig
from nfs.config.train_recon import TrainReconConfig
from nfs.morphable.loading import load_model
from nfs.morphable.recon.checkpoint import load_network
from nfs.runtime import run_training
from nfs.tracking.null import NullTracker
from tests.unit.recon_fakes import write_clips
from tests.unit.test_recon_training import tree_of

pytestmark = [pytest.mark.ray, pytest.mark.distributed, pytest.mark.usefixtures("ray_cluster")]


@pytest.mark.timeout(580)
def test_two_ranks_train_one_network(tmp_path):
    model = load_model()
    artifacts = write_clips(tmp_path, model, {"ann": "", "bob": ""})
    tree = tree_of(artifacts, launch={"kind": "ray", "num_workers": 2}, total_samples=8)
    config = TrainReconConfig.from_tree(tree)
    launch = LaunchConfig(kind="ray", num_workers=2)
    metrics = run_training(train_worker, config.tree(), launch, tmp_path / "run", NullTracker())
    assert metrics["train/samples_seen"] == 8
    assert metrics["val/initial_nme_percent"] > 5
    network = load_network(tmp_path / "run" / "checkpoint")
    moved = [name for name, head in network.final_layers.named_parameters() if head.abs().any()]
    assert len(moved) == 14
