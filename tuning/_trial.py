"""One trial of a search: sample, configuration, family's trial function, reports."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nfs.config.base import Config, TrackingConfig, tree_hash
from nfs.errors import NonFiniteError

if TYPE_CHECKING:
    from nfs.tracking import Tracker

REPORTS_FILE, SUMMARY_FILE, RUN_ID_FILE = "reports.jsonl", "summary.json", "tracking.json"

Report = Callable[[Mapping[str, float]], bool]
Send = Callable[[dict[str, float]], None]
TrialFunction = Callable[[dict[str, Any], Report, Path, "Tracker"], object]


@dataclass(frozen=True)
class TrialPlan:
    """What every trial of a search needs to know; picklable.

    Args:
        root: Directory of the search.
        storage: Folder of all runs (default tracking store).
        tree: Base configuration.
        schema: Its class, `module:Class`.
        function: Runs a trial, `module:function` with the signature `TrialFunction`.
        objective: Metric to optimise.
        mode: Direction.
        clock: Metric that measures progress.
        max_clock: Clock of a whole trial.
        tracking: Tracking settings.
        parent_run_id: Run of the search.
    """

    root: str
    storage: str
    tree: dict[str, Any]
    schema: str
    function: str
    objective: str
    mode: Literal["min", "max"]
    clock: str
    max_clock: int
    tracking: dict[str, Any]
    parent_run_id: str | None


def trial_name(trial_id: str, sample: Mapping[str, Any]) -> str:
    """Return the trial's directory name.

    After a crash Tune may reuse a trial id for another sample, so the id alone names nothing.
    """
    return f"{trial_id}-{tree_hash(dict(sample))}"


def load_object(reference: str) -> Any:
    """Return what `module:name` names."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def run_trial(sample: dict[str, Any], trial_id: str, plan: TrialPlan, send: Send) -> None:
    """Run one sample in this process; a trial that was interrupted continues.

    A diverging trial (non-finite loss) is a result, not a failure: it gets the worst objective.

    Args:
        sample: Values by key path.
        trial_id: Id in the search.
        plan: The search.
        send: Tells the search about an evaluation; may not return when the trial is stopped.
    """
    schema: type[Config] = load_object(plan.schema)
    function: TrialFunction = load_object(plan.function)
    directory = Path(plan.root) / "trials" / trial_name(trial_id, sample)
    directory.mkdir(parents=True, exist_ok=True)
    config = schema.from_tree(plan.tree).override(sample)
    tracker = open_trial_tracker(plan, directory)
    tracker.log_params(sample)
    tracker.set_tags({"nfs.trial": trial_id, "nfs.directory": str(directory)})
    reporter = Reporter(plan, directory, tracker, send)
    try:
        function(config.tree(), reporter, directory, tracker)
    except NonFiniteError as error:
        tracker.set_tags({"nfs.diverged": str(error)})
        reporter.diverged(str(error))
    except Exception:
        tracker.finish("FAILED")
        raise
    tracker.finish("FINISHED")
    reporter.close()


class Reporter:
    """Records each evaluation and passes objective and clock on.

    The report that ends a trial is held back until the trial function has returned: the search may
    stop a trial at any report, and a finished one must have written its model by then.

    Args:
        plan: The search.
        directory: The trial's directory.
        tracker: The trial's run.
        send: Tells the search.
    """

    def __init__(self, plan: TrialPlan, directory: Path, tracker: Tracker, send: Send):
        self._plan, self._directory = plan, directory
        self._tracker, self._send = tracker, send
        self._held: dict[str, float] | None = None

    def __call__(self, metrics: Mapping[str, float]) -> bool:
        """Take the metrics of one evaluation; always True, because the search stops the process."""
        plan = self._plan
        for key in (plan.objective, plan.clock):
            if key not in metrics:
                raise KeyError(f"the trial reported no {key!r}, only {', '.join(sorted(metrics))}")
        clock = int(metrics[plan.clock])
        values = {k: float(v) for k, v in metrics.items()}
        with (self._directory / REPORTS_FILE).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(values) + "\n")
        named = {k if "/" in k else f"trial/{k}": v for k, v in values.items()}
        self._tracker.log_metrics(named, clock)
        self._flush_held()
        message = {"objective": values[plan.objective], "clock": float(clock)}
        self._write_summary(message, values, "running")
        if clock >= plan.max_clock:
            self._held = message
        else:
            self._tracker.flush()
            self._send(message)
        return True

    def diverged(self, reason: str) -> None:
        """Record the worst objective at the end of the clock."""
        worst = math.inf if self._plan.mode == "min" else -math.inf
        self._held = {"objective": worst, "clock": float(self._plan.max_clock)}
        self._write_summary(self._held, {}, f"diverged: {reason}")

    def close(self) -> None:
        """Send what was held back; the trial is over."""
        file = self._directory / SUMMARY_FILE
        if file.exists():
            summary = json.loads(file.read_text(encoding="utf-8"))
            if summary["status"] == "running":
                _write(file, {**summary, "status": "finished"})
        self._flush_held()

    def _flush_held(self) -> None:
        if self._held is not None:
            message, self._held = self._held, None
            self._send(message)

    def _write_summary(
        self, message: Mapping[str, float], metrics: Mapping[str, float], status: str
    ) -> None:
        content = {**message, "status": status, "metrics": dict(metrics)}
        _write(self._directory / SUMMARY_FILE, content)


def open_trial_tracker(plan: TrialPlan, directory: Path) -> Tracker:
    from nfs.tracking import open_tracker

    file = directory / RUN_ID_FILE
    known = json.loads(file.read_text(encoding="utf-8"))["run_id"] if file.exists() else None
    tracking = TrackingConfig.from_tree(plan.tracking)
    tracker = open_tracker(
        tracking,
        storage=plan.storage,
        directory=directory,
        run_name=directory.name,
        run_id=known,
        parent_run_id=plan.parent_run_id,
    )
    if tracking.kind == "mlflow":
        _write(file, {"run_id": tracker.run_id})
    return tracker


def _write(file: Path, content: Mapping[str, Any]) -> None:
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_text(json.dumps(content), encoding="utf-8")
    temporary.replace(file)
