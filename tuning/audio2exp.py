"""Search for Audio2Exp settings: `python -m tuning.audio2exp CONFIG.yaml [key.path=value ...]`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs._launch import job_main

if TYPE_CHECKING:
    from jobs._launch import JobRun
    from nfs.config.tuning import TuneAudio2expConfig
    from nfs.tracking import Tracker
    from tuning._trial import Report

_SCHEMA = "nfs.config.train_audio2exp:TrainAudio2expConfig"


def run(config: TuneAudio2expConfig, job: JobRun) -> dict[str, Any]:
    """Search and return the best trial's metrics, configuration and checkpoint."""
    from jobs.train_audio2exp import with_face_basis
    from tuning._search import finish_search, make_plan, run_search

    ready = with_face_basis(config.base, job.directory)
    plan = make_plan(
        config,
        job,
        base=ready,
        schema=_SCHEMA,
        function="tuning.audio2exp:trial",
        max_clock=ready.total_samples,
    )
    return finish_search(config, job, run_search(config, job, plan))


def trial(tree: dict[str, Any], report: Report, directory: Path, tracker: Tracker) -> None:
    """Train one configuration."""
    from nfs.audio import search_trial

    search_trial(tree, report, directory, tracker)


if __name__ == "__main__":
    job_main("tuning.audio2exp", "nfs.config.tuning:TuneAudio2expConfig")
