"""Sending work to this process or to Ray, by `launch.kind`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfs.artifacts.units import Item, UnitReport, UnitWork, pending, run_units_here
from nfs.config.base import LaunchConfig
from nfs.runtime.context import WorkerContext
from nfs.tracking.protocol import Tracker

Worker = Callable[[dict[str, Any], WorkerContext], dict[str, Any]]


def run_units(
    items: Iterable[Item],
    make_work: Callable[[], UnitWork],
    uri: str,
    launch: LaunchConfig,
    on_done: Callable[[Mapping[str, Any]], None] = lambda _: None,
    *,
    primary: str,
) -> UnitReport:
    """Run a per-unit stage; what is committed already is skipped, a bad unit never raises.

    Args:
        items: Units: mappings with `key`, `path` and plain JSON extras.
        make_work: Picklable factory, e.g. `functools.partial(ImportableClass, ...)`.
        uri: Artifact directory.
        launch: Here, or as Ray Data tasks on `num_workers` actors.
        on_done: Called in the driver after each unit with `{key, status, seconds, error}`.
        primary: Table whose file commits a unit.
    """
    everything = list(items)
    todo = pending(everything, uri, primary)
    report = UnitReport(skipped=[])
    left = {item["key"] for item in todo}
    for item in everything:
        if item["key"] not in left:
            report.skipped.append(item["key"])
            on_done({"key": item["key"], "status": "skipped", "seconds": 0.0, "error": ""})
    if not todo:
        return report
    if launch.kind == "local":
        ran = run_units_here(todo, make_work, uri, on_done)
    else:
        from nfs.runtime.ray_backend import run_units_on_ray

        ran = run_units_on_ray(todo, make_work, uri, launch, on_done)
    ran.skipped += report.skipped
    return ran


def run_training(
    worker: Worker,
    tree: dict[str, Any],
    launch: LaunchConfig,
    directory: Path,
    tracker: Tracker,
    states: str | None = None,
) -> dict[str, Any]:
    """Run a training worker on every rank and return rank 0's final metrics.

    Args:
        worker: Importable function `(tree, context) -> metrics`.
        tree: Configuration as plain JSON values; the worker validates it.
        launch: Here (or under torchrun), or on Ray Train workers.
        directory: Directory of the run, reachable from every worker.
        tracker: The run's tracker.
        states: Folder or URI for the run's states; null: in its directory.
    """
    if launch.kind == "local":
        from nfs.runtime.local import LocalContext

        return worker(tree, LocalContext(directory, tracker, states=states))
    from nfs.runtime.ray_backend import run_training_on_ray

    return run_training_on_ray(worker, tree, launch, directory, tracker, states)


def stream_on_ray(
    function: Callable[[int], Mapping[str, NDArray[np.generic]]],
    numbers: range,
    *,
    num_actors: int,
    num_ahead: int,
) -> Generator[dict[str, NDArray[np.generic]], None, None]:
    """Yield `function(n)` for each number in order, computed by Ray Data actors of one CPU each.

    Args:
        function: Picklable; returns arrays `[B, ...]`, the same names and shapes for every number.
        numbers: Arguments.
        num_actors: Actors, each with a copy of `function`.
        num_ahead: Results wanted ahead of the consumer (a hint: Ray Data decides by its budget).
    """
    from nfs.runtime.ray_backend import stream_with_actors

    return stream_with_actors(function, numbers, num_actors=num_actors, num_ahead=num_ahead)


def run_function(
    function: Callable[..., Any], arguments: Sequence[Any], launch: LaunchConfig
) -> Any:
    """Call an importable function here, or as one Ray task with one worker's resources."""
    if launch.kind == "local":
        return function(*arguments)
    from nfs.runtime.ray_backend import run_function_on_ray

    return run_function_on_ray(function, arguments, launch)
