"""The Ray Tune driver that all searches share: Optuna proposes, ASHA stops, MLflow nests."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nfs.config.base import Config
from nfs.config.tuning import Choice, Integer, LogUniform, SearchConfig, Uniform
from nfs.errors import ConfigError, NfsError
from tuning._trial import SUMMARY_FILE, TrialPlan, open_trial_tracker, run_trial, trial_name

if TYPE_CHECKING:
    from ray.tune import ResultGrid

    from jobs._launch import JobRun

_EXPERIMENT = "tune"
_POLL_S = 1.0


def run_search(config: SearchConfig, job: JobRun, plan: TrialPlan) -> list[dict[str, Any]]:
    """Run or continue the search and return one row per trial, best first.

    Raises:
        ConfigError: If `launch.kind` is not `ray`.
        NfsError: If no trial succeeded.
    """
    if config.launch.kind != "ray":
        raise ConfigError("launch.kind=local: a search needs Ray; set launch.kind=ray")
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = str(config.snapshot_s)
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    from nfs.runtime.ray_backend import ensure_ray

    ensure_ray()
    with _progress(job, Path(plan.root), config.num_trials):
        grid = _tuner(config, plan).fit()
    rows = _rows(grid, config.mode, Path(plan.root))
    _close_runs(plan, rows)
    if not rows or rows[0]["status"] not in ("finished", "stopped"):
        problems = "; ".join(sorted({str(error).splitlines()[-1] for error in grid.errors}))
        raise NfsError(f"no trial succeeded: {problems or 'all diverged'}; see {plan.root}/trials")
    return rows


def make_plan(
    config: SearchConfig, job: JobRun, *, base: Config, schema: str, function: str, max_clock: int
) -> TrialPlan:
    """Return the plan of a search over `base` with trials run by `function`."""
    return TrialPlan(
        root=str(job.directory),
        storage=str(Path(config.storage).absolute()),
        tree=base.tree(),
        schema=schema,
        function=function,
        objective=config.objective,
        mode=config.mode,
        clock=config.clock,
        max_clock=config.scheduler.max_clock or max_clock,
        tracking=config.tracking.tree(),
        parent_run_id=job.tracker.run_id if config.tracking.kind == "mlflow" else None,
    )


def finish_search(config: SearchConfig, job: JobRun, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Write the best configuration and the table of trials; return the job's result."""
    import yaml

    best = rows[0]
    best_config = job.directory / "best.yaml"
    tree = config.base.override(best["sample"]).tree()
    best_config.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    table = job.directory / "trials.json"
    table.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    job.tracker.log_file(best_config)
    job.tracker.log_file(table)
    job.tracker.log_text(trials_markdown(rows), "trials.md")
    by_name = sorted(rows, key=lambda row: str(row["trial"]))
    for number, row in enumerate(by_name, start=1):
        job.tracker.log_metrics({"search/objective": row["objective"]}, step=number)
    artifacts = {"best_config": str(best_config), "trials": str(table)}
    folder = job.directory / "trials" / str(best["trial"])
    if (folder / "checkpoint").is_dir():
        artifacts["checkpoint"] = str(folder / "checkpoint")
    if not config.keep_all_checkpoints:
        for row in rows[1:]:
            for name in ("states", "checkpoint"):
                shutil.rmtree(job.directory / "trials" / row["trial"] / name, ignore_errors=True)
    metrics = {
        "search/best_objective": best["objective"],
        "search/trials": float(len(rows)),
        "search/stopped_early": float(sum(row["status"] == "stopped" for row in rows)),
        "search/failed": float(sum(row["status"] not in ("finished", "stopped") for row in rows)),
    }
    return {"metrics": metrics, "artifacts": artifacts}


def trials_markdown(rows: list[dict[str, Any]]) -> str:
    """Return the trials as a Markdown table, best first."""
    keys = sorted({key for row in rows for key in row["sample"]})
    lines = ["| trial | status | clock | objective | " + " | ".join(keys) + " |"]
    lines.append("|" + "---|" * (4 + len(keys)))
    for row in rows:
        values = [_short(row["sample"].get(key)) for key in keys]
        head = [row["trial"], row["status"], _short(row["clock"]), _short(row["objective"])]
        lines.append("| " + " | ".join([*map(str, head), *values]) + " |")
    return "\n".join(lines) + "\n"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _tuner(config: SearchConfig, plan: TrialPlan) -> Any:
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    resources = {"cpu": config.launch.cpus_per_worker}
    if config.launch.gpus_per_worker:
        resources["gpu"] = config.launch.gpus_per_worker
    trainable = tune.with_resources(_trainable(plan), resources)
    place = f"{plan.root}/{_EXPERIMENT}"
    if tune.Tuner.can_restore(place):
        return tune.Tuner.restore(place, trainable=trainable, resume_unfinished=True)
    grace = min(config.scheduler.grace, plan.max_clock)
    return tune.Tuner(
        trainable,
        param_space={key: _domain(value) for key, value in config.space.items()},
        tune_config=tune.TuneConfig(
            metric="objective",
            mode=config.mode,
            num_samples=config.num_trials,
            max_concurrent_trials=config.launch.num_workers,
            search_alg=OptunaSearch(seed=config.seed),
            scheduler=ASHAScheduler(
                time_attr="clock",
                max_t=plan.max_clock,
                grace_period=grace,
                reduction_factor=config.scheduler.reduction_factor,
            ),
        ),
        run_config=tune.RunConfig(
            name=_EXPERIMENT,
            storage_path=plan.root,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=config.launch.max_failures),
        ),
    )


def _trainable(plan: TrialPlan) -> Any:
    def trial(config: dict[str, Any]) -> None:
        from ray import tune

        run_trial(config, tune.get_context().get_trial_id(), plan, tune.report)

    return trial


def _domain(dimension: LogUniform | Uniform | Integer | Choice) -> Any:
    from ray import tune

    if dimension.kind == "loguniform":
        return tune.loguniform(dimension.low, dimension.high)
    if dimension.kind == "uniform":
        return tune.uniform(dimension.low, dimension.high)
    if dimension.kind == "int":
        return tune.randint(dimension.low, dimension.high + 1)
    return tune.choice(list(dimension.values))


def _rows(grid: ResultGrid, mode: str, root: Path) -> list[dict[str, Any]]:
    rows = []
    for result in grid:
        sample = dict(result.config or {})
        metrics = result.metrics or {}
        trial_id = metrics.get("trial_id")
        name = trial_name(str(trial_id), sample) if trial_id else Path(result.path).name
        file = root / "trials" / name / SUMMARY_FILE
        summary = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        status = str(summary.get("status", "failed"))
        if result.error is not None:
            status = f"failed: {str(result.error).splitlines()[-1]}"
        elif status == "running":
            status = "stopped"
        rows.append(
            {
                "trial": name,
                "status": status,
                "objective": summary.get("objective"),
                "clock": summary.get("clock"),
                "sample": sample,
                "metrics": summary.get("metrics", {}),
            }
        )
    sign = 1.0 if mode == "min" else -1.0

    def rank(row: dict[str, Any]) -> tuple[bool, float]:
        usable = row["status"] in ("finished", "stopped")
        return (not usable, sign * row["objective"] if usable else 0.0)

    return sorted(rows, key=rank)


def _close_runs(plan: TrialPlan, rows: list[dict[str, Any]]) -> None:
    """Set the final status of stopped trials' runs: their processes could not."""
    for row in rows:
        directory = Path(plan.root) / "trials" / row["trial"]
        if row["status"] == "stopped" and directory.is_dir():
            tracker = open_trial_tracker(plan, directory)
            tracker.set_tags({"nfs.stopped": f"early, at {row['clock']}"})
            tracker.finish("FINISHED")


@contextmanager
def _progress(job: JobRun, root: Path, num_trials: int) -> Iterator[None]:
    """Show how many trials have ended, from the files they leave."""
    stop = threading.Event()

    def ended() -> int:
        texts = [file.read_text(encoding="utf-8") for file in root.glob(f"trials/*/{SUMMARY_FILE}")]
        return sum('"status": "running"' not in text for text in texts)

    with job.progress(num_trials, unit="trials") as bar:

        def watch() -> None:
            while not stop.wait(_POLL_S):
                bar.update(ended() - bar.n)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            bar.update(ended() - bar.n)
