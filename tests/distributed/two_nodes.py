"""Two simulated nodes of one CPU each; run as a script because it owns its cluster.

python -m tests.distributed.two_nodes CLIP_FOLDER STORAGE
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from jobs._launch import run_command
from nfs.runtime.context import WorkerContext
from nfs.training import LoopSettings, train
from tests.toy import LineDataset, LineTask


def node_worker(tree: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    """Train the toy and leave a note which node each rank ran on."""
    note = Path(tree["notes"]) / f"rank{context.rank}.json"
    node = ray.get_runtime_context().get_node_id()
    note.write_text(json.dumps({"node": node, "world_size": context.world_size}))
    settings = LoopSettings(
        total_samples=64, batch_size=8, log_every=8, checkpoint_every=16, evaluate_every=64
    )
    return train(LineTask(), LineDataset(), settings, context)


def main(clips: str, storage: str) -> None:
    """Preprocess with two actors and train with two ranks, one per node."""
    head = {"num_cpus": 1, "object_store_memory": 150_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(num_cpus=1, object_store_memory=150_000_000)
    os.environ["RAY_ADDRESS"] = cluster.address
    try:
        arguments = [
            "jobs/configs/preprocess/smoke.yaml", f'inputs=["{clips}"]', f"storage={storage}",
            "tracking.kind=jsonl", "launch.num_workers=2",
        ]  # fmt: skip
        schema = "nfs.config.preprocess:PreprocessConfig"
        code = run_command("preprocess", schema, arguments)
        assert code == 0, code
        assert len(cluster.list_all_nodes()) == 2
        assert ray.cluster_resources()["CPU"] == 2
        _train(Path(storage))
    finally:
        ray.shutdown()
        cluster.shutdown()


def _train(storage: Path) -> None:
    from nfs.config.base import LaunchConfig
    from nfs.runtime import run_training
    from nfs.tracking.jsonl import JsonlTracker

    directory = storage / "line"
    directory.mkdir()
    tracker = JsonlTracker(directory / "tracking", "line")
    launch = LaunchConfig(kind="ray", num_workers=2)
    run_training(node_worker, {"notes": str(storage)}, launch, directory, tracker)


if __name__ == "__main__":
    main(*sys.argv[1:])
