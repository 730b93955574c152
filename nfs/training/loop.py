"""THE dataset training loop. Every trained network of nfs goes through `train`."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch

from nfs.config.base import BestConfig, LoaderConfig, TrainingConfig
from nfs.errors import ConfigError
from nfs.runtime.context import WorkerContext
from nfs.runtime.memory import peak_memory
from nfs.runtime.progress import report_progress, report_warning
from nfs.runtime.seeding import seed_everything
from nfs.training.best import keep_best
from nfs.training.loading import BatchReader, read_batches
from nfs.training.state import TrainState, load_state, save_state, snapshot
from nfs.training.task import CollectiveEvaluation, DistributedTask, MapDataset, TrainTask

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoopSettings:
    """Clock settings; all counts are global samples.

    Attributes:
        total_samples: The run ends when this many samples have been seen.
        batch_size: Global batch; a multiple of the world size.
        log_every: Metrics are reduced and recorded at this interval.
        checkpoint_every: A resumable state is committed at this interval.
        evaluate_every: Evaluation interval; the end of the run is always evaluated.
        seed: Seed of data order, augmentation and everything random in a step.
        loader: Who prepares the batches, and how far ahead.
        best: Which evaluation's model is kept beside the last one; None: no other.
    """

    total_samples: int
    batch_size: int
    log_every: int
    checkpoint_every: int
    evaluate_every: int
    seed: int = 0
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    best: BestConfig | None = None

    @classmethod
    def from_config(cls, config: TrainingConfig, total_samples: int) -> LoopSettings:
        """Return the clock of a job that trains for `total_samples`."""
        return cls(
            total_samples=total_samples,
            batch_size=config.batch_size,
            log_every=config.log_every,
            checkpoint_every=config.checkpoint_every,
            evaluate_every=config.evaluate_every,
            seed=config.seed,
            loader=config.loader,
            best=config.best,
        )


def train(
    task: TrainTask, dataset: MapDataset, settings: LoopSettings, context: WorkerContext
) -> dict[str, float]:
    """Train to `total_samples`, continuing from the last committed state if there is one.

    Returns:
        The metrics of the last evaluation plus `train/samples_seen`.

    Raises:
        ConfigError: If the batch cannot be shared by the ranks.
        NonFiniteError: From the task, before an optimiser step.
    """
    _check(settings, context)
    task.setup(context)
    samples_seen, history = _restore(task, context)
    clock = range(samples_seen, settings.total_samples, settings.batch_size)
    reader = BatchReader(
        dataset,
        seed=settings.seed,
        batch_size=settings.batch_size,
        rank=context.rank,
        world_size=context.world_size,
    )
    try:
        with closing(read_batches(reader, clock, settings.loader, context.device)) as batches:
            samples_seen, history = _steps(
                task, batches, settings, context, samples_seen=samples_seen, history=history
            )
    finally:
        context.settle()
    if context.rank == 0:
        task.export(context.directory / "checkpoint")
    context.barrier()
    return {**history, "train/samples_seen": float(samples_seen)}


def _steps(
    task: TrainTask,
    batches: Iterator[dict[str, torch.Tensor]],
    settings: LoopSettings,
    context: WorkerContext,
    *,
    samples_seen: int,
    history: dict[str, float],
) -> tuple[int, dict[str, float]]:
    meter = _Meter()
    while samples_seen < settings.total_samples:
        batch = meter.wait_for(batches)
        seed_everything("step", settings.seed, context.rank, samples_seen)
        metrics = task.train_step(batch, samples_seen)
        before, samples_seen = samples_seen, samples_seen + settings.batch_size
        meter.add(metrics)
        done = samples_seen >= settings.total_samples

        def crossed(every: int, before: int = before, now: int = samples_seen) -> bool:
            return before // every != now // every

        if crossed(settings.log_every) or done:
            context.tracker.log_metrics(context.mean(meter.take(settings.batch_size)), samples_seen)
            if context.rank == 0:
                report_progress(context.directory, samples_seen, settings.total_samples, "samples")
        go_on = True
        if crossed(settings.evaluate_every) or done:
            with meter.paused():
                found = _evaluate(task, context, settings.seed, samples_seen)
                if settings.best is not None and context.rank == 0:
                    found |= keep_best(
                        task, context, settings.best, history, found, samples_seen=samples_seen
                    )
                history = found
            go_on = context.report({**history, "train/samples_seen": samples_seen})
        if crossed(settings.checkpoint_every) or done or not go_on:
            context.tracker.flush()
            tree = task.state_dict()
            if context.rank == 0:
                tree = snapshot(tree)  # it is written while the training goes on
            state = TrainState(samples_seen, tree, history)
            part = task.save_part if isinstance(task, DistributedTask) else None
            context.save(partial(save_state, state), {"samples_seen": samples_seen}, part)
        if not go_on:
            break
    return samples_seen, history


class _Meter:
    """Sums of the metrics since the last record, and the time they took."""

    def __init__(self) -> None:
        self._reset()

    def wait_for(self, batches: Iterator[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Return the next batch and count the time until it was there."""
        start = time.monotonic()
        batch = next(batches)
        self._waited += time.monotonic() - start
        return batch

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave what happens inside out of the time per step."""
        start = time.monotonic()
        yield
        self._start += time.monotonic() - start

    def add(self, metrics: dict[str, torch.Tensor]) -> None:
        for name, value in metrics.items():
            total, count = self._sums.get(name, (torch.zeros(()), 0))
            self._sums[name] = (total + value.detach().float(), count + 1)
        self._steps += 1

    def take(self, batch_size: int) -> dict[str, float | torch.Tensor]:
        seconds = (time.monotonic() - self._start) / max(1, self._steps)
        # Sums stay on their device until here: a transfer for every metric and step costs time.
        means: dict[str, float | torch.Tensor] = {n: t / c for n, (t, c) in self._sums.items()}
        means["time/step_s"] = seconds
        means["time/data_wait_s"] = self._waited / max(1, self._steps)
        means["time/samples_per_s"] = batch_size / max(seconds, 1e-9)
        self._reset()
        return means

    def _reset(self) -> None:
        self._sums: dict[str, tuple[torch.Tensor, int]] = {}
        self._steps, self._start, self._waited = 0, time.monotonic(), 0.0


def _check(settings: LoopSettings, context: WorkerContext) -> None:
    if settings.batch_size % context.world_size:
        raise ConfigError(
            f"batch_size={settings.batch_size} is not divisible by "
            f"launch.num_workers={context.world_size}; choose a multiple"
        )
    if settings.checkpoint_every % settings.log_every:
        # Otherwise a mean would span a restart and differ from the uninterrupted run's.
        raise ConfigError(
            f"checkpoint_every={settings.checkpoint_every} is not a multiple of "
            f"log_every={settings.log_every}"
        )


def _restore(task: TrainTask, context: WorkerContext) -> tuple[int, dict[str, float]]:
    latest = context.latest()
    if latest is None:
        return 0, {}
    state = load_state(latest)
    task.load_state_dict(state.task)
    if isinstance(task, DistributedTask):
        task.load_parts(latest)
    logger.info("continuing at samples_seen=%d", state.samples_seen)
    return state.samples_seen, state.history


def _evaluate(
    task: TrainTask, context: WorkerContext, seed: int, samples_seen: int
) -> dict[str, float]:
    metrics: dict[str, float] = {}
    start = time.monotonic()
    seed_everything("evaluate", seed)
    if isinstance(task, CollectiveEvaluation):
        task.prepare_evaluation(samples_seen)
    if context.rank == 0:
        evaluation = task.evaluate(samples_seen)
        metrics = evaluation.metrics
        context.tracker.log_metrics(metrics, samples_seen)
        for name, image in evaluation.images.items():
            context.tracker.log_image(name, image, samples_seen)
        for file in evaluation.files:
            context.tracker.log_file(file, "previews")
        for text in evaluation.warnings:
            logger.warning("samples_seen=%d: %s", samples_seen, text)
            report_warning(context.directory, f"samples_seen={samples_seen}: {text}")
        seconds = {"time/evaluate_s": time.monotonic() - start}
        context.tracker.log_metrics(seconds | peak_memory(context.device), samples_seen)
    context.barrier()
    return metrics
