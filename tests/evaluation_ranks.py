"""One rank of a distributed evaluation, importable by spawned processes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from nfs.perceptual.extractors import MetricNames
from nfs.runtime.collect import Ranks, collect
from nfs.stylenerf import evaluation, orbits
from nfs.stylenerf.evaluation import EvaluationSettings, GeneratorEvaluator, RealImages
from nfs.stylenerf.generator import Generator
from nfs.training.task import Evaluation
from tests.stylenerf_tiny import TINY

SPEC = TINY


class Pooled:
    """Means of image quarters: features and identity of tiny images."""

    name, checksum, names = "pooled", "1", MetricNames.of("pooled")

    def extract(self, images: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)

    def embed(self, images: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)

    def to(self, device: torch.device) -> object:
        return self


def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(SPEC).eval().requires_grad_(False)


def read_real(index: int) -> Tensor:
    random = torch.Generator().manual_seed(index)
    return torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8, generator=random)


def evaluator(directory: Path | None, ranks: Ranks | None = None) -> GeneratorEvaluator:
    settings = EvaluationSettings(
        grid_size=3, num_samples=11, batch_size=4, orbit_latents=2, orbit_frames=5
    )

    def key() -> str:
        assert ranks is None or ranks.rank == 0, "reading all names is work for one rank"
        return "random"

    return GeneratorEvaluator(
        settings,
        directory=directory,
        ranks=ranks,
        features=Pooled(),
        reals=RealImages(37, read_real, key),
        identity=Pooled(),
    )


def run_rank(rank: int, size: int, folder: Path) -> None:
    """Evaluate on one of `size` ranks; rank 0 writes what it got."""
    torch.set_num_threads(1)
    if size > 1:
        meeting = f"file://{folder}/meeting-{size}"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
    ranks = Ranks(rank, size)
    rows = collect(
        lambda batch: {"i": torch.tensor(list(batch)), "h": torch.tensor(list(batch)).half()},
        7,
        batch_size=3,
        ranks=ranks,
    )
    measured = evaluator(folder / f"run-{size}", ranks)
    shown: list[NDArray[np.uint8]] = []

    def write_frames(file: Path, frames: Iterable[NDArray[np.uint8]], fps: float) -> int:
        shown.extend(frames)
        return orbits.write_frames(file, shown, fps)

    with patch.object(evaluation, "write_frames", write_frames):
        first = measured.run(generator(), alpha=1.0, samples_seen=0)
    again = measured.run(generator(), alpha=1.0, samples_seen=1)
    if rank == 0:
        assert rows is not None
        assert first.files[0].stat().st_size > 0
        write(folder / f"found-{size}.json", rows, (first, again), shown)
    else:
        assert rows is None
        assert first == Evaluation()
    if size > 1:
        dist.destroy_process_group()


def write(
    file: Path,
    rows: dict[str, Tensor],
    evaluations: tuple[Evaluation, Evaluation],
    shown: list[NDArray[np.uint8]],
) -> None:
    """Write what must not depend on the ranks.

    The frames of the video, not its file: x264 (with mbtree, its default) makes one of several
    files of the same small frames, even on one thread.
    """
    first, again = evaluations
    found = {
        "rows": {name: value.tolist() for name, value in rows.items()},
        "metrics": first.metrics,
        "again": again.metrics,
        "samples": first.images["samples"].tolist(),
        "orbit": [frame.tolist() for frame in shown],
    }
    file.write_text(json.dumps(found))
