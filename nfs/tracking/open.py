"""Choosing a tracker from the configuration; mlflow is imported only when it is used."""

from __future__ import annotations

from pathlib import Path

from nfs.config.base import TrackingConfig
from nfs.tracking.composite import CompositeTracker
from nfs.tracking.jsonl import JsonlTracker
from nfs.tracking.null import NullTracker
from nfs.tracking.protocol import Tracker, TrackerSpec


def open_tracker(
    config: TrackingConfig,
    *,
    storage: str | Path,
    directory: str | Path,
    run_name: str,
    run_id: str | None = None,
    parent_run_id: str | None = None,
) -> Tracker:
    """Open a run for recording; the driver calls this once.

    Args:
        config: Tracking settings.
        storage: Folder of all runs; the default MLflow store lies in it.
        directory: Directory of this run.
        run_name: Name of the run.
        run_id: Run to go on with; None starts a new one.
        parent_run_id: Run under which the browser nests this one.
    """
    if config.kind == "null":
        return NullTracker()
    folder = Path(directory) / "tracking"
    if config.kind == "jsonl":
        return JsonlTracker(folder, run_name)
    from nfs.tracking import mlflow_tracker

    uri = config.uri or mlflow_tracker.default_uri(storage)
    run = mlflow_tracker.start_run(uri, config.experiment, run_name, run_id, parent_run_id)
    # The plain files make a run directory complete without a server; the report reads them.
    return CompositeTracker([run, JsonlTracker(folder, run_name, copy_files=False)])


def attach_tracker(spec: TrackerSpec) -> Tracker:
    """Go on recording a run in a worker process."""
    if spec.kind == "null":
        return NullTracker()
    if spec.kind == "composite":
        return CompositeTracker([attach_tracker(part) for part in spec.parts])
    if spec.kind.startswith("jsonl"):
        return JsonlTracker(spec.directory, spec.run_id, copy_files=spec.kind == "jsonl")
    from nfs.tracking import mlflow_tracker

    return mlflow_tracker.attach_run(spec)
