"""What every job does around its work: arguments, run directory, tracking, result, exit code."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs._bars import Bar, open_bar
from jobs._run_directory import (
    CONFIG_FILE,
    NOT_IDENTITY,
    RESULT_FILE,
    RUN_FILE,
    absolute,
    artifact_ids,
    check_inputs,
    finished_result,
    input_ids,
    open_record,
    run_lock,
    write_atomic,
)
from nfs.config.base import Config, JobConfig, flatten, tree_hash
from nfs.config.jobs import load_schema
from nfs.errors import ConfigError, InputError, NfsError

if TYPE_CHECKING:
    from nfs.tracking import Tracker
    from nfs.tracking.protocol import Status

logger = logging.getLogger("nfs.jobs")

MAX_SHOWN = 20


@dataclass(frozen=True)
class JobRun:
    """One run of one job, as the job's `run` function sees it.

    Attributes:
        job: Job name.
        name: Run name, the directory's name.
        directory: Absolute directory of the run.
        tracker: Records the run.
        config_hash: Identifies the settings that determine the result.
        resumed: Whether the run existed before.
    """

    job: str
    name: str
    directory: Path
    tracker: Tracker
    config_hash: str
    resumed: bool = False
    quiet: bool = field(default=False, repr=False)

    def output(self, name: str, artifacts: str | None = None) -> str:
        """Return the place of an artifact that this run writes.

        Args:
            name: Name of the artifact.
            artifacts: Folder or URI under which runs keep their artifacts; default: the run
                directory.
        """
        if artifacts is None:
            return str(self.directory / name)
        return f"{absolute(artifacts).rstrip('/')}/{self.name}/{name}"

    @contextmanager
    def progress(self, total: int, unit: str = "clips") -> Iterator[Bar]:
        """Show progress on standard error: a bar, or lines where that is no terminal."""
        with closing(open_bar(self.job, total, unit, quiet=self.quiet)) as bar:
            yield bar


def job_main(job: str, schema: str, argv: Sequence[str] | None = None) -> None:
    """Run a job from the command line and exit with its code.

    Args:
        job: Job name (`preprocess`), or a module name (`tuning.pti`).
        schema: `module:Class` of its configuration.
        argv: Arguments; default `sys.argv[1:]`.
    """
    sys.exit(run_command(job, schema, sys.argv[1:] if argv is None else argv))


def run_command(job: str, schema: str, argv: Sequence[str]) -> int:
    """Run a job and return its exit code: 0 done, 2 bad input or configuration, 1 failure."""
    # One torch thread per process unless asked otherwise: two on a busy machine are far slower.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logger.setLevel(logging.INFO)
    try:
        arguments = _parse(job, argv)
        config = load_job_config(schema, arguments)
        if arguments.dry_run:
            sys.stdout.write(config_text(config))
            return 0
        result = launch(job, config, run_name=arguments.run_name or arguments.resume)
    except NfsError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; run the same command again to continue\n")
        return 1
    if torchrun_rank() == 0:
        _print_result(result)
    return 0


def load_job_config(schema: str, arguments: argparse.Namespace) -> JobConfig:
    """Load and validate the configuration that the arguments name.

    With `--resume RUN` and no file, the configuration saved in that run is used.
    """
    cls = load_schema(schema)
    if arguments.config is not None:
        return cls.load(arguments.config, arguments.overrides)
    if arguments.resume is None:
        raise ConfigError("give a configuration file, e.g. jobs/configs/<job>/smoke.yaml")
    storage = "runs"
    for item in arguments.overrides:
        key, _, value = item.partition("=")
        storage = value if key == "storage" else storage
    return cls.load(Path(storage) / arguments.resume / CONFIG_FILE, arguments.overrides)


def launch(
    job: str,
    config: JobConfig,
    *,
    run_name: str | None = None,
    directory: Path | None = None,
    parent_run_id: str | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run a job in this process and return its result.

    The same settings and name find the same run directory, so the same call continues an
    interrupted run and repeats nothing of a finished one.

    Args:
        job: Job name.
        config: Its validated configuration.
        run_name: Name of the run; default `<job>-<hash of the settings>`.
        directory: Run directory, if not `<storage>/<run_name>` (stages of a pipeline).
        parent_run_id: Tracking run under which this one is nested.
        quiet: No progress bar.

    Raises:
        InputError: If the run directory cannot be written or belongs to other settings.
    """
    module = importlib.import_module(job if "." in job else f"jobs.{job}")
    short = job.replace(".", "-")
    identity = {k: v for k, v in config.tree().items() if k not in NOT_IDENTITY}
    digest = tree_hash({"job": job, **identity})
    name = run_name or f"{short}-{digest}"
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and not Path(config.storage).is_absolute():
        raise InputError(
            f"storage={config.storage}: a submitted job runs in a temporary copy of the working "
            "directory; give an absolute path that every node reaches"
        )
    place = (directory or Path(config.storage) / name).absolute()
    incremental = getattr(module, "INCREMENTAL", False)
    if torchrun_rank() > 0:
        from nfs.tracking.null import NullTracker

        return _follow(module, config, JobRun(short, name, place, NullTracker(), digest))
    with run_lock(place):
        record = open_record(place, job, digest, identity)
        inputs = input_ids(config)
        if not incremental:
            check_inputs(place, record, inputs)
            finished = finished_result(place)
            if finished is not None:
                return finished
        write_atomic(place / CONFIG_FILE, config_text(config))
        tracker = _open_tracker(config, place, name, record, parent_run_id)
        tracker.log_params({k: v for k, v in flatten(config.tree()) if v is not None})
        tracker.set_tags({"nfs.job": job, "nfs.directory": str(place), "nfs.config_hash": digest})
        run = JobRun(short, name, place, tracker, digest, record["resumed"], quiet)
        return _run_tracked(module, config, run)


def torchrun_rank() -> int:
    """Return this process's rank under torchrun, 0 elsewhere."""
    return int(os.environ.get("RANK", "0")) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def _follow(module: Any, config: JobConfig, run: JobRun) -> dict[str, Any]:
    """Work on a run that rank 0 holds, and record nothing."""
    finished = finished_result(run.directory)
    if finished is not None:
        return finished
    start = time.monotonic()
    outcome = module.run(config, run)
    return {
        "job": run.job,
        "run": run.name,
        "directory": str(run.directory),
        "metrics": dict(outcome.get("metrics", {})),
        "artifacts": {},
        "seconds": round(time.monotonic() - start, 3),
        "mlflow_run_id": None,
    }


def _run_tracked(module: Any, config: JobConfig, run: JobRun) -> dict[str, Any]:
    start = time.monotonic()
    status: Status = "FAILED"
    try:
        with _watched(run, relay=config.launch.kind == "ray"):
            outcome = module.run(config, run)
        seconds = time.monotonic() - start
        artifacts = dict(outcome.get("artifacts", {}))
        run.tracker.log_metrics({"time/job_s": seconds}, step=0)
        run.tracker.link(inputs=input_ids(config), outputs=artifact_ids(artifacts.values()))
        run.tracker.log_file(run.directory / CONFIG_FILE)
        if "checkpoint" in artifacts:
            run.tracker.log_file(artifacts["checkpoint"])
        result = {
            "job": run.job,
            "run": run.name,
            "directory": str(run.directory),
            "metrics": dict(outcome.get("metrics", {})),
            "artifacts": artifacts,
            "seconds": round(seconds, 3),
            "mlflow_run_id": run.tracker.run_id if config.tracking.kind == "mlflow" else None,
            "tracking_uri": _tracking_uri(config),
            "reused": False,
        }
        write_atomic(run.directory / RESULT_FILE, json.dumps(result, indent=1))
        status = "FINISHED"
        return result
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        with suppress(Exception):  # the job's own error is the one to show
            run.tracker.finish(status)


@contextmanager
def _watched(run: JobRun, *, relay: bool) -> Iterator[None]:
    """Show the progress that workers write into the run directory, until the job ends.

    With `relay` their warnings, too: workers elsewhere have no terminal.
    """
    from nfs.runtime.progress import read_progress, read_warnings, reset_progress

    reset_progress(run.directory)
    stop, shown = threading.Event(), len(read_warnings(run.directory))

    def watch() -> None:
        bar = None
        while not stop.wait(1.0):
            progress = read_progress(run.directory)
            if progress is None:
                continue
            if bar is None:
                total, unit, done = progress.total, progress.unit, progress.done
                bar = open_bar(run.job, total, unit, initial=done, quiet=run.quiet)
            bar.n = progress.done
            bar.refresh()
        if bar is not None:
            bar.close()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        for text in read_warnings(run.directory)[shown:] if relay else ():
            logger.warning("%s", text)


def config_text(config: Config) -> str:
    """Return a configuration as YAML that loads to an equal one."""
    import yaml

    return str(yaml.safe_dump(config.tree(), sort_keys=False))


def _parse(job: str, argv: Sequence[str]) -> argparse.Namespace:
    module = job if "." in job else f"jobs.{job}"
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description="Exit code: 0 done, 2 bad input or configuration, 1 failure. "
        "The same command again continues where it stopped.",
    )
    parser.add_argument("config", nargs="?", metavar="CONFIG.yaml", help="configuration file")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="changed settings")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved configuration")
    parser.add_argument("--run-name", help="name of the run and of its directory")
    parser.add_argument("--resume", metavar="RUN", help="go on with a run of this name")
    try:
        arguments = parser.parse_intermixed_args(list(argv))
    except SystemExit as stop:
        raise SystemExit(stop.code) from None
    if arguments.config is not None and "=" in arguments.config:
        arguments.overrides.insert(0, arguments.config)
        arguments.config = None
    return arguments


def _open_tracker(
    config: JobConfig, place: Path, name: str, record: dict[str, Any], parent_run_id: str | None
) -> Tracker:
    from nfs.tracking import open_tracker

    tracker = open_tracker(
        config.tracking,
        storage=config.storage,
        directory=place,
        run_name=name,
        run_id=record["tracking_run_id"],
        parent_run_id=parent_run_id,
    )
    if record["tracking_run_id"] is None and config.tracking.kind == "mlflow":
        stored = json.loads((place / RUN_FILE).read_text(encoding="utf-8"))
        stored["tracking_run_id"] = tracker.run_id
        write_atomic(place / RUN_FILE, json.dumps(stored))
    return tracker


def _tracking_uri(config: JobConfig) -> str | None:
    if config.tracking.kind != "mlflow":
        return None
    return config.tracking.uri or f"sqlite:///{Path(config.storage).absolute()}/mlflow.db"


def _print_result(result: Mapping[str, Any]) -> None:
    how = "finished before, took" if result.get("reused") else "done in"
    lines = [f"{result['job']}: {how} {result['seconds']:.0f} s, {result['directory']}"]
    numbers = {k: v for k, v in result["metrics"].items() if isinstance(v, int | float)}
    lines += [f"  {k} = {v:.5g}" for k, v in list(numbers.items())[:MAX_SHOWN]]
    if len(numbers) > MAX_SHOWN:
        lines.append(f"  ... {len(numbers) - MAX_SHOWN} more in {RESULT_FILE}")
    lines += [f"  {kind}: {path}" for kind, path in result["artifacts"].items()]
    if result["mlflow_run_id"]:
        lines.append(f"  MLflow run {result['mlflow_run_id']}; open the browser with")
        lines.append(f"    {browser_command(result['tracking_uri'])}")
    sys.stdout.write("\n".join(lines) + "\n")


def browser_command(tracking_uri: str) -> str:
    """Return the command that opens the MLflow browser on this machine only."""
    return (
        f"{sys.executable} -m mlflow server --backend-store-uri {tracking_uri} "
        "--host 127.0.0.1 --port 5000"
    )
