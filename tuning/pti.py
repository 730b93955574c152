"""Search for inversion settings: `python -m tuning.pti CONFIG.yaml [key.path=value ...]`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs._launch import job_main

if TYPE_CHECKING:
    from jobs._launch import JobRun
    from nfs.config.tuning import Dimension, TunePtiConfig
    from nfs.tracking import Tracker
    from tuning._trial import Report

_SCHEMA = "nfs.config.invert:InvertConfig"


def run(config: TunePtiConfig, job: JobRun) -> dict[str, Any]:
    """Search and return the best trial's metrics and configuration."""
    from tuning._search import finish_search, make_plan, run_search

    base = config.base
    plan = make_plan(
        config,
        job,
        base=base,
        schema=_SCHEMA,
        function="tuning.pti:trial",
        max_clock=_longest_trial(config),
    )
    return finish_search(config, job, run_search(config, job, plan))


def trial(tree: dict[str, Any], report: Report, directory: Path, tracker: Tracker) -> None:
    """Invert with one configuration; `tracker` gets the reported metrics from the driver."""
    from nfs.inversion import search_trial

    del tracker
    search_trial(tree, report, directory)


def _longest_trial(config: TunePtiConfig) -> int:
    """Return the most steps, of projection and tuning together, that a trial can have."""
    base = {
        "project.num_steps": config.base.project.num_steps,
        "tune.num_steps": config.base.tune.num_steps,
    }
    return sum(_largest(config.space.get(key), steps) for key, steps in base.items())


def _largest(dimension: Dimension | None, default: int) -> int:
    if dimension is None:
        return default
    values = dimension.values if dimension.kind == "choice" else (dimension.high,)
    return max(int(value or 0) for value in values)


if __name__ == "__main__":
    job_main("tuning.pti", "nfs.config.tuning:TunePtiConfig")
