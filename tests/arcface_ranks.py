"""Checks of Partial-FC and its training task that several gloo processes run together."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from nfs.arcface import PartialFC, RowSGD, margins
from nfs.arcface.collectives import OneRank, ProcessGroupRanks
from nfs.arcface.datasets import FaceImages, SyntheticSource
from nfs.arcface.export import join_shards
from nfs.arcface.pair_files import PairSet
from nfs.arcface.schedules import polynomial_factor
from nfs.arcface.task import ArcfaceParts, ArcfaceSettings, ArcfaceTask
from nfs.arcface.verify import Embedder, verify_pairs
from nfs.media.images import encode_jpeg
from nfs.runtime.collect import Ranks
from nfs.runtime.context import WorkerContext
from nfs.runtime.local import LocalContext
from nfs.tracking.jsonl import JsonlTracker
from nfs.tracking.null import NullTracker
from nfs.training import LoopSettings, train

C, D, B = 23, 8, 12


class Plain(nn.Module):
    """An embedding without BatchNorm, so that a batch may be divided in any way."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(48, 16)
        self.second = nn.Linear(16, D)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pooled = F.avg_pool2d(images, images.shape[-1] // 4).flatten(1)
        return self.second(torch.tanh(self.first(pooled)))


class KillingFaces(FaceImages):
    """Faces that end their process when a number of images has been read."""

    def __init__(self, source: SyntheticSource, kill_after: int, log: Path | None) -> None:
        super().__init__(source, size_px=16)
        self._left, self._log = kill_after, log

    def get(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if self._log is not None:
            with self._log.open("a") as stream:
                stream.write(f"{index}\n")
        return super().get(index, rng)


def make_task(ratio: float = 1.0, pairs: tuple[PairSet, ...] = (), **settings: Any) -> ArcfaceTask:
    torch.manual_seed(0)
    make_head = partial(
        PartialFC, margins.cosface(0.1, scale=8.0), D, C, class_sample_ratio=ratio, seed=3
    )
    parts = ArcfaceParts(
        make_head=make_head,
        make_optimizer=lambda named: torch.optim.SGD(named.values(), lr=0.1, momentum=0.9),
        make_row_optimizer=partial(RowSGD, weight_decay=1e-3),
        name="plain",
        pairs=pairs,
    )
    factor = partial(polynomial_factor, total_steps=40)
    chosen = {"batch_size": B, "lr": 0.1, "lr_factor": factor, "channels_last": False, **settings}
    return ArcfaceTask(Plain(), parts, ArcfaceSettings(**chosen))


def worker(tree: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    """Train the plain network on patterns; the tree says when this rank dies."""
    rank_dies = tree.get("kill_rank") == context.rank
    log = Path(tree["log"]).with_suffix(f".{context.rank}") if "log" in tree else None
    dataset = KillingFaces(
        SyntheticSource(C, tree["num_images"], 8.0, 16),
        tree["kill_after"] if rank_dies else 0,
        log,
    )
    settings = LoopSettings(
        total_samples=tree["total_samples"],
        batch_size=B,
        log_every=B,
        checkpoint_every=2 * B,
        evaluate_every=10 * B,
    )
    task = make_task(tree.get("ratio", 1.0), face_pairs())
    return train(task, dataset, settings, context)


def face_pairs() -> tuple[PairSet, ...]:
    source = SyntheticSource(5, 40, 8.0, 112)
    images = [encode_jpeg(source.read(n)[0]) for n in (0, 5, 1, 2, 1, 6, 3, 4, 2, 7, 0, 4)]
    return (PairSet("toy", images, np.asarray([True, False] * 3)),)


def steps(task: ArcfaceTask, rank: int, size: int, count: int = 4) -> list[float]:
    losses = []
    for step in range(count):
        torch.manual_seed(step)
        images = torch.randint(0, 256, (B, 3, 16, 16), dtype=torch.uint8)
        labels = torch.randint(0, C, (B,))
        part = {"image": images[rank::size], "label": labels[rank::size]}
        losses.append(float(task.train_step(part, step * B)["loss/arcface"]))
    return losses


def check_head(place: Path, rank: int, size: int) -> dict[str, float]:
    """Uneven batches and a sampled head against one process on the union."""
    torch.manual_seed(1)
    embeddings, labels = torch.randn(7, D), torch.randint(0, C, (7,))
    mine = slice(0, 4) if rank == 0 else slice(4, 7)
    head = PartialFC(margins.cosface(0.1, scale=8.0), D, C, uneven=True, seed=3)
    part = embeddings[mine].clone().requires_grad_()
    loss = head(part, labels[mine])
    loss.backward()
    whole = embeddings.clone().requires_grad_()
    single = PartialFC(margins.cosface(0.1, scale=8.0), D, C, seed=3, ranks=OneRank())
    expected = single(whole, labels)
    expected.backward()
    rows = slice(head.shard.start, head.shard.stop)
    gradient = single.take_gradient().values[rows] - head.take_gradient().values
    # Rank 1 owns none of these labels and samples nothing: an empty shard takes part.
    lonely = PartialFC(margins.cosface(0.1, scale=8.0), D, C, class_sample_ratio=0.0, seed=3)
    few = embeddings[:2].clone().requires_grad_()
    empty = lonely(few, torch.tensor([0, 1]))
    empty.backward()
    return {
        "uneven_loss": abs(float(loss.detach() - expected.detach())),
        "uneven_grad": float((part.grad / size - whole.grad[mine]).abs().max()),
        "uneven_rows": float(gradient.abs().max()),
        "empty_shard": 0.0 if torch.isfinite(empty) and torch.isfinite(few.grad).all() else 1.0,
    }


def check_task(place: Path, rank: int, size: int) -> dict[str, float]:
    """Steps of all ranks together against one process on the same global batches."""
    context = LocalContext(place / "equal", NullTracker())
    task = make_task(pairs=face_pairs())
    task.setup(context)
    losses = steps(task, rank, size)
    accumulated = make_task(gradient_accumulation=2)
    accumulated.setup(context)
    half = steps(accumulated, rank, size)
    folder = place / "parts"
    folder.mkdir(exist_ok=True)
    task.save_part(folder)
    dist.barrier()
    task.prepare_evaluation(0)
    metrics = task.evaluate(0).metrics
    alone = make_alone()
    expected = steps(alone, 0, 1)
    weights = torch.cat([p.flatten() for p in task.backbone.parameters()])
    reference = torch.cat([p.flatten() for p in alone.backbone.parameters()])
    alone.prepare_evaluation(0)
    same = alone.evaluate(0).metrics
    return {
        "losses": max(abs(a - b) for a, b in zip(losses, expected, strict=True)),
        "accumulated": max(abs(a - b) for a, b in zip(half, expected, strict=True)),
        "backbone": float((weights - reference).abs().max().detach()),
        "centres": float((join_shards(folder) - alone.head.weight).abs().max().detach()),
        "momentum": float(
            (join_shards(folder, "momentum") - alone.row_optimizer.moments["momentum"]).abs().max()
        ),
        "verification": max(abs(metrics[k] - same[k]) for k in metrics),
    }


def make_alone() -> ArcfaceTask:
    """The same task in one process, in spite of the process group."""

    class Alone:
        device = torch.device("cpu")

        def wrap(self, module: nn.Module) -> nn.Module:
            return module

    task = make_task(pairs=face_pairs())
    make = task.parts.make_head
    object.__setattr__(task.parts, "make_head", partial(make, ranks=OneRank()))
    task.setup(Alone())
    return task


def check_non_finite(place: Path, rank: int, size: int) -> dict[str, float]:
    """A bad number on one rank skips the step of all, and nothing moves."""
    task = make_task(max_skipped_steps=1)
    task.setup(LocalContext(place / "bad", NullTracker()))
    before = [p.detach().clone() for p in (*task.backbone.parameters(), task.head.weight)]
    normal = task.head.take_gradient

    def poisoned() -> Any:
        gradient = normal()
        if rank == 1:
            gradient.values[0, 0] = float("nan")
        return gradient

    task.head.take_gradient = poisoned  # type: ignore[method-assign]
    steps(task, rank, size, 1)
    after = [*task.backbone.parameters(), task.head.weight]
    moved = sum(float((a - b).abs().sum().detach()) for a, b in zip(before, after, strict=True))
    return {"skipped_step": moved, "count": float(task.skipped != 1)}


def check_half_gather(place: Path, rank: int, size: int) -> dict[str, float]:
    """Bytes of bfloat16 travel on gloo."""
    ranks = ProcessGroupRanks()
    rows = torch.full((2, 3), float(rank), dtype=torch.bfloat16)
    gathered = ranks.gather(rows)
    expected = torch.arange(size).repeat_interleave(2)[:, None].expand(-1, 3)
    return {"bf16_gather": float((gathered.float() - expected).abs().max())}


def check_verification(place: Path, rank: int, size: int) -> dict[str, float]:
    """The verification job's numbers on all ranks against those of one."""
    torch.manual_seed(5)
    network = Plain().eval().requires_grad_(False)

    def measured(ranks: Ranks) -> dict[str, float]:
        (pairs,) = face_pairs()
        return verify_pairs(Embedder(network, 112, 5, ranks), pairs).metrics

    shared, alone = measured(Ranks(rank, size)), measured(Ranks())
    if rank:
        return {"verify_elsewhere": float(len(shared))}
    return {"verify": max(abs(shared[k] - alone[k]) for k in alone)}


CHECKS: tuple[Callable[[Path, int, int], dict[str, float]], ...] = (
    check_head,
    check_task,
    check_non_finite,
    check_half_gather,
    check_verification,
)


def all_checks(rank: int, size: int, place: Path) -> None:
    """Entry of a spawned rank: run every check, write what was found."""
    torch.set_num_threads(1)
    os.environ.update(WORLD_SIZE=str(size), RANK=str(rank))
    dist.init_process_group(
        "gloo", init_method=f"file://{place}/meeting", rank=rank, world_size=size
    )
    found: dict[str, float] = {}
    for run in CHECKS:
        found |= run(place, rank, size)
    (place / f"found-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def train_rank(rank: int, size: int, place: Path, tree: dict[str, Any]) -> None:
    """Entry of a spawned rank: train in `place/run`."""
    torch.set_num_threads(1)
    os.environ.update(WORLD_SIZE=str(size), RANK=str(rank))
    if size > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{place}/{tree['meeting']}", rank=rank, world_size=size
        )
    tracker = NullTracker() if rank else JsonlTracker(place / f"curve-{size}", "run")
    result = worker(tree, LocalContext(place / "run", tracker))
    (place / "run" / f"result-{size}-{rank}.json").write_text(json.dumps(result))
    if size > 1:
        dist.destroy_process_group()
