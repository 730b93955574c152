"""Measure an identity embedding: `python -m jobs.verify_arcface CONFIG.yaml [key.path=value ...]`.

Verification sets of pairs (`.bin`) and the template protocol of IJB-B and IJB-C, shared by all
workers of `launch`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobs._launch import job_main
from jobs._run_directory import absolute

if TYPE_CHECKING:
    from jobs._launch import JobRun
    from nfs.config.verify_arcface import VerifyArcfaceConfig


def run(config: VerifyArcfaceConfig, job: JobRun) -> dict[str, Any]:
    """Verify and return the metrics; ROC curves go to the tracker."""
    from nfs.arcface.verify import verify_worker
    from nfs.runtime import run_training

    changes: dict[str, Any] = {
        "checkpoint": absolute(config.checkpoint),
        "sets": [absolute(path) for path in config.sets],
    }
    if config.templates is not None:
        changes["templates.root"] = absolute(config.templates.root)
    config = config.override(changes)
    metrics = run_training(verify_worker, config.tree(), config.launch, job.directory, job.tracker)
    return {"metrics": metrics, "artifacts": {}}


if __name__ == "__main__":
    job_main("verify_arcface", "nfs.config.verify_arcface:VerifyArcfaceConfig")
