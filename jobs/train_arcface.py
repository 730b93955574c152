"""Train an identity embedding: `python -m jobs.train_arcface CONFIG.yaml [key.path=value ...]`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobs._launch import job_main
from jobs._run_directory import absolute
from jobs._training import train_job

if TYPE_CHECKING:
    from jobs._launch import JobRun
    from nfs.config.train_arcface import TrainArcfaceConfig


def run(config: TrainArcfaceConfig, job: JobRun) -> dict[str, Any]:
    """Train and return metrics and the checkpoint's directory."""
    from nfs.arcface.builders import train_worker
    from nfs.artifacts import read_manifest

    parents = []
    changes: dict[str, Any] = {}
    if config.data.kind != "synthetic":
        changes["data.path"] = absolute(config.data.path)
    if config.data.kind == "clips":
        read_manifest(config.data.path, kind="clips")
        parents.append(config.data.path)
    if config.backbone.init is not None:
        changes["backbone.init"] = absolute(config.backbone.init)
    return train_job(train_worker, config.override(changes), job, model="arcface", parents=parents)


if __name__ == "__main__":
    job_main("train_arcface", "nfs.config.train_arcface:TrainArcfaceConfig")
