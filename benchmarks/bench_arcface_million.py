"""ArcFace with a million classes on two CPU workers: steps, seconds and peak memory.

`--ratio 1` uses every class in every step.
"""

from __future__ import annotations

import json
import os
import resource
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from _harness import arguments, say

from nfs.arcface import PartialFC, RowSGD, build_backbone, margins
from nfs.arcface.backbones import BackboneOptions
from nfs.arcface.task import ArcfaceParts, ArcfaceSettings, ArcfaceTask
from nfs.runtime.local import LocalContext
from nfs.tracking.null import NullTracker

SIZE_PX, BATCH, D = 32, 32, 512


def rank_main(rank: int, ranks: int, place: str, classes: int, ratio: float) -> None:
    torch.set_num_threads(1)
    os.environ.update(WORLD_SIZE=str(ranks), RANK=str(rank))
    meeting = f"file://{place}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks)
    parts = ArcfaceParts(
        make_head=partial(PartialFC, margins.cosface(0.4), D, classes, class_sample_ratio=ratio),
        make_optimizer=lambda named: torch.optim.SGD(named.values(), lr=0.1, fused=True),
        make_row_optimizer=RowSGD,
        name="mbf",
    )
    network = build_backbone("mbf", D, BackboneOptions(image_size_px=SIZE_PX))
    task = ArcfaceTask(network, parts, ArcfaceSettings(batch_size=BATCH))
    task.setup(LocalContext(Path(place), NullTracker()))
    rows = []
    for step in range(3):
        torch.manual_seed(step * ranks + rank)
        images = torch.randint(0, 256, (BATCH // ranks, 3, SIZE_PX, SIZE_PX), dtype=torch.uint8)
        labels = torch.randint(0, classes, (BATCH // ranks,))
        start = time.perf_counter()
        metrics = task.train_step({"image": images, "label": labels}, step * BATCH)
        rows.append({"loss": float(metrics["loss/arcface"]), "wall_s": time.perf_counter() - start})
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    found = {"rank": rank, "peak_gb": peak_gb, "steps": rows}
    (Path(place) / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def main() -> None:
    options = arguments(
        __doc__,
        ("--classes", {"type": int, "default": 1_000_000}),
        ("--ratio", {"type": float, "default": 0.1}),
        ("--ranks", {"type": int, "default": 2}),
    )
    with tempfile.TemporaryDirectory() as place:
        shared = (options.ranks, place, options.classes, options.ratio)
        mp.spawn(rank_main, shared, nprocs=options.ranks)
        found = [json.loads((Path(place) / f"{r}.json").read_text()) for r in range(options.ranks)]
    total_gb = sum(rank["peak_gb"] for rank in found)
    report = {"classes": options.classes, "ratio": options.ratio, "peak_gb": total_gb}
    text = json.dumps({**report, "ranks": found}, indent=1)
    say(text)
    if options.out is not None:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
