"""What the training jobs share: run the ranks, then complete the checkpoint artifact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobs._launch import JobRun
    from nfs.config.base import TrainingConfig
    from nfs.runtime.dispatch import Worker


def train_job(
    worker: Worker, config: TrainingConfig, job: JobRun, *, model: str, parents: Sequence[str]
) -> dict[str, Any]:
    """Train and return metrics and the checkpoint artifact, with `best` the best model's too.

    Args:
        worker: Training worker of the family.
        config: Settings; paths absolute, because ranks run in other directories.
        job: The run.
        model: Name of the family, recorded in the manifest.
        parents: Artifacts that the training reads.
    """
    from jobs._launch import torchrun_rank
    from jobs._run_directory import absolute
    from nfs.artifacts import write_manifest
    from nfs.runtime import run_training
    from nfs.training.best import BEST

    states = None
    if config.states is not None:
        # The settings are in the name: states of another configuration are never taken up.
        states = f"{absolute(config.states).rstrip('/')}/{job.name}-{job.config_hash}"
    metrics = run_training(worker, config.tree(), config.launch, job.directory, job.tracker, states)
    if torchrun_rank() > 0:
        return {"metrics": metrics}
    artifacts = {"checkpoint": job.output("checkpoint")}
    if config.best is not None and (job.directory / BEST).is_dir():
        artifacts[BEST] = job.output(BEST)
    for uri in artifacts.values():
        write_manifest(
            uri, kind="checkpoint", config=config.tree(), parents=parents, extra={"model": model}
        )
    return {"metrics": metrics, "artifacts": artifacts}
