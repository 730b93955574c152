"""A tiny StyleNeRF training with every phase, for curves and for several ranks."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from nfs.runtime.context import WorkerContext
from nfs.runtime.local import LocalContext
from nfs.stylenerf import Discriminator, DiscriminatorSpec, Generator, GeneratorSpec
from nfs.stylenerf.settings import AugmentSettings, GanSettings
from nfs.stylenerf.task import StyleNerfTask
from nfs.tracking.jsonl import JsonlTracker
from nfs.tracking.null import NullTracker
from nfs.training import LoopSettings, train

BATCH = 4
TINY = GeneratorSpec(
    z_dim=8,
    w_dim=8,
    img_resolution=16,
    mapping_num_layers=2,
    field_hidden_dim=8,
    field_num_layers=2,
    background_dim=4,
    background_hidden_dim=8,
    background_num_layers=2,
    feature_dim=8,
    num_frequencies=3,
    resolution_vol=8,
    resolution_start=8,
    num_samples=4,
    num_background_samples=2,
    channel_base=0.01,
    channel_max=8,
)
SPEC = replace(TINY, w_avg_beta=0.9, magnitude_ema_beta=0.9)
D_SPEC = DiscriminatorSpec(
    img_resolution=16, channel_base=0.004, channel_max=8, mbstd_group_size=2, lowres_head=8
)
SETTINGS = GanSettings(
    batch_size=BATCH,
    total_samples=1000,
    r1_interval=4,
    pl_interval=2,
    path_pixels=4,
    growth_start_kimg=0.008,
    growth_end_kimg=0.04,
    ema_kimg=0.02,
    discriminator_ema=True,
    grid_size=2,
    augment=AugmentSettings("bgc", initial_p=0.2, target=0.6, kimg=0.2, every=2),
)


class Discs:
    """Shaded discs before gradients: 40 images that differ in size, place and colour."""

    def __init__(self, die_after: int = 0) -> None:
        self._left = die_after

    def __len__(self) -> int:
        return 40

    def get(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        random = np.random.default_rng(index)
        y, x = np.mgrid[:16, :16] / 15 - 0.5
        centre, radius = random.normal(0, 0.05, 2), random.uniform(0.2, 0.35)
        shade = 1 - ((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / radius**2
        colour, behind = random.uniform(80, 255, 3), random.uniform(0, 120, 3)
        image = np.where(shade > 0, colour[:, None, None] * (0.4 + 0.6 * shade), 0)
        image += np.where(shade > 0, 0, behind[:, None, None] * (0.5 + x))
        if rng.random() < 0.5:
            image = image[..., ::-1]
        return {"image": np.ascontiguousarray(image.clip(0, 255).astype(np.uint8))}


def make_task(**changes: Any) -> StyleNerfTask:
    """Return a task with fixed initial weights."""
    torch.manual_seed(0)
    return StyleNerfTask(Generator(SPEC), Discriminator(D_SPEC), replace(SETTINGS, **changes))


def worker(tree: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    """Train; the tree says how long, and when a rank dies."""
    torch.set_num_threads(1)
    die = tree.get("die_after", 0) if context.rank == tree.get("die_rank", 0) else 0
    settings = LoopSettings(
        total_samples=tree["total_samples"],
        batch_size=BATCH,
        log_every=BATCH,
        checkpoint_every=2 * BATCH,
        evaluate_every=1000,
    )
    task = make_task(**tree.get("settings", {}))
    result = dict(train(task, Discs(die), settings, context))
    # What must be the same on all ranks.
    running = torch.cat([m.flatten() for m in (task.G.w_avg, task.pl_mean)]).tolist()
    (context.directory / f"rank-{context.rank}.json").write_text(
        json.dumps([*running, task.augment.p])
    )
    return result


def train_rank(rank: int, size: int, directory: Path, tree: dict[str, Any]) -> None:
    """Entry of a spawned rank."""
    torch.set_num_threads(1)
    os.environ.update(WORLD_SIZE=str(size), RANK=str(rank))
    if size > 1:
        meeting = f"file://{directory}/{tree['meeting']}"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
    tracker = JsonlTracker(directory / "tracking", "r")
    worker(tree, LocalContext(directory, tracker))
    tracker.flush()
    if size > 1:
        dist.destroy_process_group()


def curve(directory: Path) -> dict[int, dict[str, float]]:
    """Return the recorded losses and scores of a run by `samples_seen`."""
    rows = JsonlTracker(directory / "tracking", "r").read()
    wanted = ("loss/", "score/", "grad/", "augment/", "growth/", "render/")
    return {
        row["step"]: {k: v for k, v in row["metrics"].items() if k.startswith(wanted)}
        for row in rows
        if "loss/g" in row["metrics"]
    }


def r1_step(context: WorkerContext, micro_batch: int | None) -> torch.Tensor:
    """Return D's weights after an R1 step on this rank's share of eight fixed images."""
    task = make_task(micro_batch=micro_batch, augment=None, growth_end_kimg=0.0)
    # Statistics over a group would depend on how the batch is divided.
    task.D = Discriminator(replace(D_SPEC, mbstd_group_size=1))
    torch.manual_seed(1)
    for parameter in task.D.parameters():
        torch.nn.init.normal_(parameter)
    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    task.setup(context)
    part = images[context.rank :: context.world_size]
    task.discriminator_r1(task.rounds({"image": part}, 0), 0)
    return torch.cat([p.detach().flatten() for p in task.D.parameters()])


def r1_rank(rank: int, size: int, directory: Path) -> None:
    """Entry of a spawned rank: R1 steps in one pass and in two."""
    torch.set_num_threads(1)
    os.environ.update(WORLD_SIZE=str(size), RANK=str(rank))
    meeting = f"file://{directory}/meeting-r1"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
    context = LocalContext(directory, NullTracker())
    found = [r1_step(context, None), r1_step(context, 2)]
    torch.save(found, directory / f"r1-{rank}.pt")
    dist.destroy_process_group()
