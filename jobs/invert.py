"""Invert one person: frames of a clip or a photo to a latent and a tuned generator.

python -m jobs.invert jobs/configs/invert/demo.yaml checkpoint=... clips=... fits=...
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs._launch import JobRun, job_main

if TYPE_CHECKING:
    from nfs.config.invert import InvertConfig


def run(config: InvertConfig, job: JobRun) -> dict[str, Any]:
    """Project and tune on one worker; the same command continues an interrupted run."""
    from nfs.inversion.builders import invert_worker
    from nfs.runtime import run_training

    config = config.override(_absolute_paths(config))
    return run_training(invert_worker, config.tree(), config.launch, job.directory, job.tracker)


def _absolute_paths(config: InvertConfig) -> dict[str, str]:
    """Return the input paths as Ray workers, which run elsewhere, need them."""
    keys = ("checkpoint", "clips", "fits", "portrait", "arcface")
    found = {key: getattr(config, key) for key in keys}
    return {
        key: str(Path(path).absolute())
        for key, path in found.items()
        if path is not None and "://" not in path
    }


if __name__ == "__main__":
    job_main("invert", "nfs.config.invert:InvertConfig")
