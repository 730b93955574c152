"""Batches in line with the training step, or prepared ahead of it by threads.

The step is a sleep as long as reading a batch takes: an accelerator that needs no CPU. Images are
a zip of 512 px photos, resized to 256 px. Both ways give the same batches, which is checked first.
The wall-clock ratio is the point here; at best it is 2.
"""

from __future__ import annotations

import io
import tempfile
import time
import zipfile
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from _harness import Report, arguments, interleave
from PIL import Image

from nfs.artifacts.photo_sets import ZipPhotos
from nfs.config.base import LoaderConfig
from nfs.stylenerf.dataset import TrainingImages
from nfs.stylenerf.image_sources import PhotoImages
from nfs.training.loading import BatchReader, read_batches

BATCH, STEPS, STORED_PX, READ_PX = 8, 12, 512, 256
INLINE = LoaderConfig(prefetch_batches=0)


def main() -> None:
    options = arguments(__doc__, ("--repeats", {"type": int, "default": 5}))
    with tempfile.TemporaryDirectory() as folder:
        reader = make_reader(Path(folder) / "photos.zip")
        start = time.monotonic()
        inline = batches(reader, INLINE, 0.0)
        step_s = (time.monotonic() - start) / STEPS
        sizes = {"batch": BATCH, "steps": STEPS, "stored_px": STORED_PX, "read_px": READ_PX}
        report = Report("loading", {**sizes, "step_s": step_s})
        cases = {
            "in line": INLINE,
            "1 thread": LoaderConfig(),
            "2 threads": LoaderConfig(workers=2),
        }
        for name, loader in list(cases.items())[1:]:
            pairs = zip(inline, batches(reader, loader, 0.0), strict=True)
            error = max(float((a.int() - b.int()).abs().max()) for a, b in pairs)
            report.check(f"{name}, grey levels", error, 0.0)
        runs = {
            name: lambda loader=loader: batches(reader, loader, step_s)
            for name, loader in cases.items()
        }
        report.timings |= interleave(runs, repeats=options.repeats)
        report.ratio("one thread ahead", "in line", "1 thread")
        report.ratio("two threads ahead", "in line", "2 threads")
        report.write(options.out)


def make_reader(path: Path) -> BatchReader:
    """Write photos that compress about as real ones do, and return their reader."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(4 * BATCH):
            coarse = rng.integers(0, 256, (STORED_PX // 8, STORED_PX // 8, 3), dtype=np.uint8)
            photo = Image.fromarray(coarse).resize((STORED_PX, STORED_PX), Image.Resampling.BICUBIC)
            buffer = io.BytesIO()
            photo.save(buffer, "PNG")
            archive.writestr(f"{number:05d}.png", buffer.getvalue())
    images = TrainingImages(PhotoImages(ZipPhotos(str(path))), resolution=READ_PX)
    return BatchReader(images, seed=0, batch_size=BATCH, rank=0, world_size=1)


def batches(reader: BatchReader, loader: LoaderConfig, step_s: float) -> list[torch.Tensor]:
    """Read all batches with a step after each."""
    clock, found = range(0, STEPS * BATCH, BATCH), []
    with closing(read_batches(reader, clock, loader, torch.device("cpu"))) as stream:
        for batch in stream:
            found.append(batch["image"])
            time.sleep(step_s)
    return found


if __name__ == "__main__":
    main()
