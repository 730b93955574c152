"""Train StyleNeRF: `python -m jobs.train_stylenerf CONFIG.yaml [key.path=value ...]`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs._launch import job_main

if TYPE_CHECKING:
    from jobs._launch import JobRun
    from nfs.config.train_stylenerf import TrainStylenerfConfig


def run(config: TrainStylenerfConfig, job: JobRun) -> dict[str, Any]:
    """Train and return metrics and the checkpoint's directory."""
    from nfs.artifacts import read_manifest, write_manifest
    from nfs.runtime import run_training
    from nfs.stylenerf.builders import train_worker

    read_manifest(config.clips, kind="clips")
    paths = {"clips": _absolute(config.clips)}
    parents = [config.clips]
    if config.cameras.kind == "fits":
        read_manifest(config.cameras.path, kind="fits")
        paths["cameras.path"] = _absolute(config.cameras.path)
        parents.append(config.cameras.path)
    tree = config.override(paths).tree()
    metrics = run_training(train_worker, tree, config.launch, job.directory, job.tracker)
    checkpoint = job.output("checkpoint")
    write_manifest(
        checkpoint,
        kind="checkpoint",
        config=config.tree(),
        parents=parents,
        extra={"model": "stylenerf"},
    )
    job.tracker.log_file(Path(checkpoint) / "card.md")
    return {"metrics": metrics, "artifacts": {"checkpoint": checkpoint}}


def _absolute(uri: str) -> str:
    return uri if "://" in uri else str(Path(uri).absolute())


if __name__ == "__main__":
    job_main("train_stylenerf", "nfs.config.train_stylenerf:TrainStylenerfConfig")
