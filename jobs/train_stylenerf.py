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

    read_manifest(config.clips, kind="clips")
    paths = {"clips": absolute(config.clips)}
    if config.cameras.kind == "fits":
        read_manifest(config.cameras.path, kind="fits")
        paths["cameras.path"] = absolute(config.cameras.path)
    return train_job(
        train_worker, config.override(paths), job, model="stylenerf", parents=list(paths.values())
    )


if __name__ == "__main__":
    job_main("train_stylenerf", "nfs.config.train_stylenerf:TrainStylenerfConfig")
