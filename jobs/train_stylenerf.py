"""Train StyleNeRF: `python -m jobs.train_stylenerf CONFIG.yaml [key.path=value ...]`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobs._launch import job_main
from jobs._run_directory import absolute
from jobs._training import train_job

if TYPE_CHECKING:
    from jobs._launch import JobRun
    from nfs.config.train_stylenerf import TrainStylenerfConfig


def run(config: TrainStylenerfConfig, job: JobRun) -> dict[str, Any]:
    """Train and return metrics and the checkpoint's directory."""
    from nfs.artifacts import read_manifest
    from nfs.stylenerf.builders import train_worker

    parents: list[str] = []
    paths = {"data.path": absolute(config.data.path)}
    if config.data.kind == "clips":
        read_manifest(config.data.path, kind="clips")
        parents.append(paths["data.path"])
    if config.data.exclude is not None:
        paths["data.exclude"] = absolute(config.data.exclude)
    if config.cameras.kind == "fits":
        read_manifest(config.cameras.path, kind="fits")
        paths["cameras.path"] = absolute(config.cameras.path)
        parents.append(paths["cameras.path"])
    if config.init is not None:
        read_manifest(config.init, kind="checkpoint")
        paths["init"] = absolute(config.init)
        parents.append(paths["init"])
    return train_job(train_worker, config.override(paths), job, model="stylenerf", parents=parents)


if __name__ == "__main__":
    job_main("train_stylenerf", "nfs.config.train_stylenerf:TrainStylenerfConfig")
