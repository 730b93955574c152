"""Train an identity embedding: `python -m jobs.train_arcface CONFIG.yaml [key.path=value ...]`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs._launch import job_main

if TYPE_CHECKING:
    from jobs._launch import JobRun
    from nfs.config.train_arcface import TrainArcfaceConfig


def run(config: TrainArcfaceConfig, job: JobRun) -> dict[str, Any]:
    """Train and return metrics and the checkpoint's directory."""
    from nfs.arcface.builders import train_worker
    from nfs.artifacts import read_manifest, write_manifest
    from nfs.runtime import run_training

    parents = []
    changes: dict[str, Any] = {}
    if config.data.kind != "synthetic":
        changes["data.path"] = _absolute(config.data.path)
    if config.data.kind == "clips":
        read_manifest(config.data.path, kind="clips")
        parents.append(config.data.path)
    if config.backbone.init is not None:
        changes["backbone.init"] = _absolute(config.backbone.init)
    tree = config.override(changes).tree()
    metrics = run_training(train_worker, tree, config.launch, job.directory, job.tracker)
    checkpoint = job.output("checkpoint")
    write_manifest(
        checkpoint,
        kind="checkpoint",
        config=config.tree(),
        parents=parents,
        extra={"model": "arcface"},
    )
    job.tracker.log_file(Path(checkpoint) / "card.md")
    return {"metrics": metrics, "artifacts": {"checkpoint": checkpoint}}


def _absolute(uri: str) -> str:
    return uri if "://" in uri else str(Path(uri).absolute())


if __name__ == "__main__":
    job_main("train_arcface", "nfs.config.train_arcface:TrainArcfaceConfig")
