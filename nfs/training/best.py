"""The model of the best evaluation, kept beside the last one."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping

from nfs.config.base import BestConfig
from nfs.errors import ConfigError
from nfs.runtime.context import WorkerContext
from nfs.training.task import TrainTask

BEST = "best"
VALUE, WHEN = "best/value", "best/samples_seen"


def keep_best(
    task: TrainTask,
    context: WorkerContext,
    best: BestConfig,
    before: Mapping[str, float],
    found: Mapping[str, float],
    *,
    samples_seen: int,
) -> dict[str, float]:
    """Write the model to `best/` of the run if this evaluation is the best; on rank 0 alone.

    The record is part of the state: a killed run goes on with the record of the state it continues.

    Args:
        task: Just evaluated.
        context: Directory and tracker of the run.
        best: Metric and goal.
        before: Metrics of the evaluation before, with its record.
        found: Metrics of this evaluation.
        samples_seen: The clock.

    Returns:
        The record `best/value` and `best/samples_seen`, for the metrics of this evaluation; empty
        while no evaluation had a finite value.

    Raises:
        ConfigError: If evaluations have no such metric.
    """
    if best.metric not in found:
        raise ConfigError(
            f"best.metric={best.metric}: evaluations have {', '.join(sorted(found)) or 'none'}"
        )
    record = {name: before[name] for name in (VALUE, WHEN) if name in before}
    value, sign = found[best.metric], 1 if best.goal == "min" else -1
    if not math.isfinite(value) or (record and sign * value >= sign * record[VALUE]):
        return record
    record = {VALUE: value, WHEN: float(samples_seen)}
    fresh, kept = context.directory / f".{BEST}.tmp", context.directory / BEST
    shutil.rmtree(fresh, ignore_errors=True)  # of a killed process
    task.export(fresh)
    shutil.rmtree(kept, ignore_errors=True)
    fresh.rename(kept)
    context.tracker.log_metrics(record, samples_seen)
    return record
