"""Ray Core, Data and Train; the only file of the library that imports ray."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

# Read when ray is imported or a controller starts, so set before the import.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "120")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_COLOR_PREFIX", "0")
# Ray reports a harmless line about actor restarts on every data stage.
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
# `import torch` is cheap enough; what costs is many threads on few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import ray
import ray.data
import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from torch import nn

from nfs.artifacts import Store
from nfs.artifacts.units import MAX_ERRORS, Item, UnitReport, UnitStage, UnitWork
from nfs.config.base import LaunchConfig
from nfs.errors import InputError, own_error
from nfs.runtime.collectives import average_over_ranks, mean_over_ranks, pick_device, wrap_ddp
from nfs.runtime.context import WorkerContext
from nfs.tracking.null import NullTracker
from nfs.tracking.open import attach_tracker
from nfs.tracking.protocol import Tracker, TrackerSpec

logger = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 300_000_000
STATES = "states"  # folder of a Ray Train run in the run directory
# Tasks of a stage; more units share tasks, because planning and tracking cost time and memory each.
_MAX_TASKS = 4096
# Numbers per data set and per task of `stream_with_actors`.
_STREAM_WINDOW, _STREAM_TASK = 4096, 8
WORKER_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}


def ensure_ray() -> None:
    """Join the cluster this process belongs to, or start a private one on this machine.

    A job (`ray job submit`) and `RAY_ADDRESS` name a cluster; otherwise a loopback one is started
    with all logical CPUs (at least two, so that a data stage and a trainer fit).
    """
    if ray.is_initialized():
        return
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p)
    options: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": {"env_vars": {**WORKER_ENVIRONMENT, "PYTHONPATH": path}},
    }
    if not os.environ.get("RAY_ADDRESS"):
        options |= {
            "address": "local",
            "num_cpus": max(2, os.cpu_count() or 2),
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    try:
        ray.init(**options)
    except Exception as error:  # Ray has no type for it, and its limit of 30 s cannot be set
        if "timed out during startup" not in str(error):
            raise
        logger.warning("Ray did not start within 30 s on this loaded machine; once more")
        ray.shutdown()
        ray.init(**options)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


class _StageActor:
    """Ray Data's view of a stage: built once per actor, one row in, one small row out."""

    def __init__(self, uri: str, make_work: Callable[[], UnitWork], session: str):
        self._stage = UnitStage(uri, make_work, session)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        results = [self._stage.run_one(item) for item in batch["item"]]
        return {name: [r[name] for r in results] for name in results[0]}


def run_units_on_ray(
    items: Sequence[Item],
    make_work: Callable[[], UnitWork],
    uri: str,
    launch: LaunchConfig,
    on_done: Callable[[Mapping[str, Any]], None],
) -> UnitReport:
    """Run a per-unit stage with Ray Data: one task per unit, actors that load models once.

    Beyond some thousands of units a task takes several: when its worker dies, those of them that
    were committed come back as `skipped`.
    """
    ensure_ray()
    _check_resources(launch)
    report, todo, session = UnitReport(), list(items), uuid.uuid4().hex
    for _ in range(MAX_ERRORS):
        report.retry, by_key = [], {item["key"]: item for item in todo}
        rows = [{"item": dict(item)} for item in todo]
        results = ray.data.from_items(
            rows, override_num_blocks=min(len(rows), _MAX_TASKS)
        ).map_batches(
            _StageActor,
            fn_constructor_args=(uri, make_work, session),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(
                size=min(launch.num_workers, len(rows)), max_tasks_in_flight_per_actor=1
            ),
            num_cpus=launch.cpus_per_worker,
            num_gpus=launch.gpus_per_worker or None,
        )
        for row in results.iter_rows():
            report.add(row)
            if row["status"] != "retry":
                on_done(row)
        todo = [by_key[key] for key in report.retry]
        if not todo:
            break
    return report


def run_function_on_ray(
    function: Callable[..., Any], arguments: Sequence[Any], launch: LaunchConfig
) -> Any:
    """Call an importable function as one Ray task and wait for it."""
    ensure_ray()
    _check_resources(launch)
    task = ray.remote(
        num_cpus=launch.cpus_per_worker, num_gpus=launch.gpus_per_worker, max_retries=0
    )(function)
    try:
        return ray.get(task.remote(*arguments))
    except ray.exceptions.RayTaskError as error:
        raise own_error(error) from error


class _RowActor:
    """Ray Data's view of a function of a number: one row in, the rows of its arrays out."""

    def __init__(self, function: Callable[[int], Mapping[str, np.ndarray]]):
        torch.set_num_threads(1)
        self._function = function

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(self._function(int(batch["item"][0])))


def stream_with_actors(
    function: Callable[[int], Mapping[str, np.ndarray]],
    numbers: range,
    *,
    num_actors: int,
    num_ahead: int,
) -> Generator[dict[str, np.ndarray], None, None]:
    """Yield `function(n)` for each number in order, computed by Ray Data actors.

    The first result is made here: it tells how much memory the results ahead may take, and what
    goes wrong at once is raised at once. A data set is planned for some thousands of numbers,
    because planning takes a millisecond for each.
    """
    if not numbers:
        return
    ensure_ray()
    first = {name: np.asarray(array) for name, array in function(numbers[0]).items()}
    yield first
    num_bytes = sum(array.nbytes for array in first.values())
    context = ray.data.DataContext.get_current().copy()
    context.raise_original_map_exception = True
    context.enable_progress_bars = context.print_on_execution_start = False
    context.target_max_block_size = max(num_bytes, 1 << 20)  # results leave a task one by one
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ray.data.ExecutionResources(
        cpu=num_actors,
        object_store_memory=max(4 * num_bytes * (num_actors + num_ahead), 64 << 20),
    )
    num_rows = len(next(iter(first.values())))
    for start in range(1, len(numbers), _STREAM_WINDOW):
        window = numbers[start : start + _STREAM_WINDOW]
        with ray.data.DataContext.current(context):
            results = ray.data.from_items(
                list(window), override_num_blocks=-(-len(window) // _STREAM_TASK)
            ).map_batches(
                _RowActor,
                fn_constructor_args=(function,),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=num_actors),
                num_cpus=1,
            )
            batches = iter(results.iter_batches(batch_size=num_rows, prefetch_batches=num_ahead))
        try:
            for batch in batches:
                yield {k: v if v.flags.writeable else v.copy() for k, v in batch.items()}
        except ray.exceptions.RayError as error:
            raise own_error(error) from error
        finally:
            batches.close()


class RayContext:
    """One rank of a Ray Train run; states are Ray checkpoints."""

    def __init__(self, directory: Path, states: str, spec: TrackerSpec):
        inner = ray.train.get_context()
        self.rank, self.world_size = inner.get_world_rank(), inner.get_world_size()
        self.device = pick_device()
        self.directory = directory
        self.tracker: Tracker = attach_tracker(spec) if self.rank == 0 else NullTracker()
        self._unpacked: Path | None = None
        if self.rank == 0:
            self._remove_torn(Store(states))

    def wrap(self, module: nn.Module) -> nn.Module:
        """Move a module to the device; synchronise gradients when there are several ranks."""
        return wrap_ddp(module, self.device, self.world_size)

    def mean(self, values: Mapping[str, float | torch.Tensor]) -> dict[str, float]:
        """Return the mean over ranks of each value."""
        return mean_over_ranks(values, self.device, self.world_size)

    def average(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace each tensor by its mean over ranks."""
        average_over_ranks(tensors, self.world_size)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            torch.distributed.barrier()

    def save(
        self,
        write: Callable[[Path], None],
        metrics: Mapping[str, Any],
        write_part: Callable[[Path], None] | None = None,
    ) -> None:
        """Report a checkpoint that a thread of Ray writes and uploads; the newest two are kept.

        Files of several ranks end in one checkpoint. A failed write is a failure of this worker.
        """
        self.settle()
        checkpoint = None
        if self.rank == 0 or write_part is not None:
            folder = Path(tempfile.mkdtemp(prefix="nfs-state-"))  # Ray removes it when it is kept
            checkpoint = Checkpoint.from_directory(folder)
        if write_part is not None:
            write_part(folder)

        def upload(local: Checkpoint, name: str) -> Checkpoint:
            if self.rank == 0:
                write(folder)  # perhaps twice: Ray tries again when the storage asks for it
            return ray.train.get_context().get_storage().persist_current_checkpoint(local, name)

        ray.train.report(
            dict(metrics),
            checkpoint=checkpoint,
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=upload,
        )

    def settle(self) -> None:
        """Wait until Ray has the last state; a failed write ends this process, the run's error."""
        ray.train.get_all_reported_checkpoints(ray.train.CheckpointConsistencyMode.COMMITTED)

    def latest(self) -> Path | None:
        """Download the newest committed checkpoint once and return its directory."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        if self._unpacked is None:
            self._unpacked = Path(checkpoint.to_directory(tempfile.mkdtemp(prefix="nfs-state-")))
        return self._unpacked

    def report(self, metrics: Mapping[str, float]) -> bool:
        """Nothing supervises a Ray Train run; searches run their trials locally."""
        del metrics
        return True

    def _remove_torn(self, states: Store) -> None:
        """Remove the states that a killed process began; nothing of this one is on its way."""
        reported = ray.train.get_all_reported_checkpoints()
        whole = {Path(state.checkpoint.path).name for state in reported}
        for folder in states.list_folders():
            if folder.startswith("checkpoint_") and folder not in whole:
                states.delete_folder(folder)

    def close(self) -> None:
        """Remove the downloaded state."""
        if self._unpacked is not None:
            shutil.rmtree(self._unpacked, ignore_errors=True)


def _train_loop(job: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(1)
    worker: Callable[[dict[str, Any], WorkerContext], dict[str, Any]] = job["worker"]
    context = RayContext(Path(job["directory"]), job["states"], job["tracker"])
    try:
        return worker(job["tree"], context)
    finally:
        context.tracker.flush()
        context.close()


def run_training_on_ray(
    worker: Callable[[dict[str, Any], WorkerContext], dict[str, Any]],
    tree: dict[str, Any],
    launch: LaunchConfig,
    directory: Path,
    tracker: Tracker,
    states: str | None = None,
) -> dict[str, Any]:
    """Run a training worker on Ray Train's workers and return rank 0's final metrics.

    The Ray run is named by the place of its states (a folder or URI; default `states` in the run
    directory), so the same call after a lost driver goes on from the last committed checkpoint.
    """
    states = str(directory / STATES) if states is None else states
    ensure_ray()
    _check_resources(launch)
    _check_loader(tree, launch)
    resources: dict[str, float] = {"CPU": launch.cpus_per_worker}
    if launch.gpus_per_worker:
        resources["GPU"] = launch.gpus_per_worker
    use_gpu = launch.gpus_per_worker > 0
    trainer = TorchTrainer(
        _train_loop,
        train_loop_config={
            "worker": worker,
            "tree": tree,
            "directory": str(directory),
            "states": states,
            "tracker": tracker.spec(),
        },
        scaling_config=ScalingConfig(
            num_workers=launch.num_workers, use_gpu=use_gpu, resources_per_worker=resources
        ),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        run_config=RunConfig(
            name=states.rsplit("/", 1)[1],
            storage_path=states.rsplit("/", 1)[0],
            failure_config=FailureConfig(
                max_failures=launch.max_failures, controller_failure_limit=3
            ),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    tracker.flush()
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise own_error(error) from error
    return dict(result.return_value or {})


def _check_resources(launch: LaunchConfig) -> None:
    """Refuse a request that no node can serve; Ray itself would wait for ever."""
    need = {"CPU": launch.cpus_per_worker, "GPU": launch.gpus_per_worker}
    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    fits = any(all(node.get(k, 0) >= v for k, v in need.items()) for node in nodes)
    total = {k: sum(node.get(k, 0) for node in nodes) for k in need}
    short = [k for k, v in need.items() if v * launch.num_workers > total[k]]
    if not fits or short:
        raise InputError(
            f"launch asks for {launch.num_workers} worker(s) with {need}, the cluster has {total}; "
            "lower launch.num_workers or launch.cpus_per_worker, or add nodes"
        )


def _check_loader(tree: Mapping[str, Any], launch: LaunchConfig) -> None:
    """Refuse loading actors for which the cluster has no CPUs; the ranks would wait for ever."""
    loader = tree.get("loader") or {}
    if loader.get("ingest") != "ray_data":
        return
    total = sum(n["Resources"].get("CPU", 0) for n in ray.nodes() if n["Alive"])
    actors = launch.num_workers * loader["workers"]
    need = launch.num_workers * launch.cpus_per_worker + actors
    if need > total:
        raise InputError(
            f"loader.ingest=ray_data: {launch.num_workers} worker(s) and {actors} loading actors "
            f"need {need:g} CPUs, the cluster has {total:g}; lower loader.workers or add nodes"
        )
