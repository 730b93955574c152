"""StyleNeRF training launched through Ray Train (one worker) against a plain process.

The same configuration and seed, one process per run, in the order local, ray, ray, local, ...
Compared are the rows that the training itself records (`time/step_s`, each a mean over some steps);
start-up, the first row, evaluation and states are outside. The losses must be equal. By the clock
Ray should keep 95 % of the plain speed; the CPU column is the rank's process alone, which leaves
out Ray's daemons but also other load of the machine. A ratio is plain seconds over Ray's.
`--scaling` compares one Ray worker with two instead, at the same global batch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from _harness import Report, Timing, arguments, say
from PIL import Image

from nfs.config.train_stylenerf import TrainStylenerfConfig

PRESET = Path(__file__).parents[1] / "jobs/configs/train_stylenerf/faces64.yaml"
BATCH, NUM_PHOTOS = 4, 64
ROW_STEPS = 16  # with R1 once in each row
TARGET = 0.95


def main() -> None:
    options = arguments(
        __doc__,
        ("--rows", {"type": int, "default": 10, "help": f"of {ROW_STEPS} steps; 3 at least"}),
        ("--repeats", {"type": int, "default": 2, "help": "runs of each kind"}),
        ("--clips", {"help": "clips artifact; default: made-up photos"}),
        ("--resolution", {"type": int, "default": 64}),
        ("--batch", {"type": int, "default": BATCH}),
        ("--scaling", {"action": "store_true", "help": "one Ray worker against two"}),
    )
    pair = ("1 worker", "2 workers") if options.scaling else ("local", "ray")
    timings = {kind: Timing() for kind in pair}
    losses: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        config = make_config(Path(folder), options)
        for turn in range(options.repeats):
            for kind in pair if turn % 2 == 0 else pair[::-1]:
                rows = run(kind, config, Path(folder) / f"{kind.replace(' ', '-')}-{turn}")
                timings[kind].wall_s += [row["time/step_s"] for row in rows]
                timings[kind].cpu_s += [row["time/step_cpu_s"] for row in rows]
                losses[kind] = [row["loss/d"] for row in rows]
                middle = float(np.median([row["time/step_s"] for row in rows]))
                say(f"{kind} {turn}: {middle:.4f} s per step, load {os.getloadavg()[0]:.1f}")
    sizes = {"model": PRESET.stem, "resolution": options.resolution, "batch": options.batch}
    data = options.clips or f"{NUM_PHOTOS} made-up photos"
    report = Report("launch", {**sizes, "steps": options.rows * ROW_STEPS, "data": data})
    report.timings |= timings
    if options.scaling:
        report.ratio("two workers over one, images/s (wall)", *pair)
    else:
        pairs = zip(losses["local"], losses["ray"], strict=True)
        report.check("largest difference of loss/d", max(abs(a - b) for a, b in pairs), 0.0)
        report.ratio("speed kept under Ray", *pair, target=TARGET)
    report.notes.append(
        f"each value is a mean over {ROW_STEPS} steps; the first of a run is left out; on an idle "
        "machine the wall column is the answer"
    )
    report.write(options.out)


def make_config(folder: Path, options: Any) -> dict[str, Any]:
    """Return the settings of all runs but `launch`, as plain values."""
    data: dict[str, Any] = {"kind": "clips", "path": options.clips, "mirror": True}
    if options.clips is None:
        data = {"kind": "folder", "path": str(folder / "photos"), "mirror": True}
        write_photos(folder / "photos", options.resolution)
    samples = options.rows * ROW_STEPS * options.batch
    config = TrainStylenerfConfig.load(
        PRESET,
        [
            f"data={json.dumps(data)}",
            *(["clips=null"] if options.clips is None else [f"clips={options.clips}"]),
            "cameras={kind: prior}",
            "warm_start=null",
            "growth={start_kimg: 0, end_kimg: 0}",
            f"generator.img_resolution={options.resolution}",
            "evaluation={num_samples: 0, orbit_latents: 0}",
            "grid_size=1",
            f"batch_size={options.batch}",
            f"total_samples={samples}",
            f"log_every={ROW_STEPS * options.batch}",
            f"evaluate_every={samples}",
            f"checkpoint_every={samples}",
        ],
    )
    return config.tree()


def write_photos(folder: Path, size: int) -> None:
    """Write smooth coloured pictures."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(NUM_PHOTOS):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{number:03d}.png")


def run(kind: str, tree: dict[str, Any], directory: Path) -> list[dict[str, float]]:
    """Train once in a process of its own and return the recorded rows."""
    directory.mkdir()
    workers = 2 if kind == "2 workers" else 1
    launch = {"kind": "local" if kind == "local" else "ray", "num_workers": workers}
    tree = {**tree, "launch": {**tree["launch"], **launch}}
    (directory / "config.json").write_text(json.dumps(tree), encoding="utf-8")
    here = str(Path(__file__).parent)
    paths = [here, str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    subprocess.run(
        [sys.executable, f"{here}/_launch_case.py", launch["kind"], str(directory)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)},
        check=True,
    )
    text = (directory / "tracking/metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line)["metrics"] for line in text.splitlines()]


if __name__ == "__main__":
    main()
