"""What 8 and 64 GPUs would do with the published presets, from counted work. Nothing is timed.

Work per part of a step, communication and parameters are counted from the real networks (see
`_counted_phases.py`); the speeds of GPU, links and network are arguments, that is, assumptions. A
part takes the sum over its operations of `max(flops / speed, bytes / bandwidth)`, but at least as
long as launching them. All-reduce is NCCL's ring: `2 (n - 1) / n * bytes / bandwidth`, and
`2 (n - 1)` hops of latency per DDP bucket; with overlap it hides behind the backward pass, but for
the last bucket. Fewer images than were counted scale the device time down.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from _counted_phases import Networks, Volume, count_step, forward_backward, shares
from _harness import say
from _op_counter import Op, Pass
from torch._subclasses.fake_tensor import FakeTensorMode

from nfs.config.train_stylenerf import TrainStylenerfConfig
from nfs.stylenerf.builders import build_settings

CONFIGS = Path(__file__).parents[1] / "jobs/configs/train_stylenerf"
BUCKET_BYTES = 25 * 2**20
ASSUMPTIONS = {
    "tflops": (989.0, "peak of the products' precision, TFLOP/s (H100 SXM, bf16, dense)"),
    "efficiency": (0.4, "share of the peak that products reach"),
    "memory-gb-s": (3350.0, "memory bandwidth, GB/s"),
    "memory-efficiency": (0.7, "share of it that is reached"),
    "launch-us": (4.0, "host time per eager operation; 0: CUDA graphs"),
    "gpus-per-node": (8, "GPUs joined by NVLink"),
    "nvlink-gb-s": (350.0, "ring bandwidth of a GPU within a node, GB/s"),
    "network-gb-s": (50.0, "ring bandwidth of a node to others, GB/s (400 Gb/s)"),
    "hop-us": (5.0, "latency of a step of the ring"),
    "backward-share": (0.5, "share of a part in which its gradients become ready"),
    "step-s": (0.0, "measured seconds of a step of one GPU without communication; 0: estimated"),
}


@dataclass(frozen=True)
class Counts:
    """Counted work of one preset."""

    batch: int
    """Images per GPU that were counted."""
    volume: Volume
    step: dict[str, Pass]
    alone: dict[str, Pass]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("presets", nargs="*", default=["ffhq_paper256"], help="names or all three")
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--counts", type=Path, help="folder that keeps counts for the next call")
    for name, (value, text) in ASSUMPTIONS.items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help=text)
    options = parser.parse_args()
    say(", ".join(f"{n}={getattr(options, n.replace('-', '_')):g}" for n in ASSUMPTIONS))
    for name in options.presets:
        override = [f"speed.precision={options.precision}"]
        config = TrainStylenerfConfig.load(CONFIGS / f"{name}.yaml", override)
        counts = counted(name, config, options.counts)
        say(f"\n## {name}, {options.precision}, {counts.batch} images per GPU")
        print_communication(counts, shares(build_settings(config)))
        print_work(counts, shares(build_settings(config)), options)
        print_scaling(counts, config, options)


def counted(name: str, config: TrainStylenerfConfig, folder: Path | None) -> Counts:
    """Count, or read what an earlier call counted."""
    file = None if folder is None else folder / f"counts_{name}_{config.speed.precision}.json"
    if file is not None and file.exists():
        tree = json.loads(file.read_text(encoding="utf-8"))
        return Counts(
            tree["batch"], Volume(**tree["volume"]), unpack(tree["step"]), unpack(tree["alone"])
        )
    batch = config.batch_size // config.launch.num_workers
    with FakeTensorMode():
        volume = Networks.build(config).volume()
    counts = Counts(batch, volume, count_step(config, batch), forward_backward(config, batch))
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        parts = {"step": pack(counts.step), "alone": pack(counts.alone)}
        tree = {"batch": batch, "volume": asdict(volume), **parts}
        file.write_text(json.dumps(tree), encoding="utf-8")
    return counts


def pack(passes: dict[str, Pass]) -> dict[str, list[list[Any]]]:
    """Return plain values."""
    return {
        k: [[op.flops, op.bytes, op.product, n] for op, n in p.ops.items()]
        for k, p in passes.items()
    }


def unpack(tree: dict[str, list[list[Any]]]) -> dict[str, Pass]:
    """Undo `pack`."""
    return {k: Pass(Counter({Op(f, b, p): n for f, b, p, n in rows})) for k, rows in tree.items()}


def print_communication(counts: Counts, share: dict[str, float]) -> None:
    volume = counts.volume
    total = sum(4 * volume.numbers(part) * often for part, often in share.items())
    say(
        f"G {volume.generator / 1e6:.2f} M and D {volume.discriminator / 1e6:.2f} M parameters, "
        f"{volume.means} running means; all-reduced per step: {total / 1e6:.1f} MB"
    )
    for part, often in share.items():
        amount = 4 * volume.numbers(part) / 1e6
        say(f"  {part:14} {amount:9.3f} MB x {often:g}")


def print_work(counts: Counts, share: dict[str, float], options: argparse.Namespace) -> None:
    say(f"{'per image':16} {'GFLOP':>9} {'eager GB':>9} {'fused GB':>9} {'operations':>10}")
    for name, part in {**counts.alone, **counts.step}.items():
        numbers = (part.flops, part.bytes, part.product_bytes, part.launches)
        say_work(name, numbers, counts.batch)
    flops, moved, fused, launches = (
        sum(getattr(counts.step[part], what) * often for part, often in share.items())
        for what in ("flops", "bytes", "product_bytes", "launches")
    )
    say_work("mean step", (flops, moved, fused, launches), counts.batch)
    floors = {
        "FLOPs at the peak": flops / (options.tflops * 1e12),
        "bytes of products alone": fused / (options.memory_gb_s * 1e9),
        "bytes of eager execution": moved / (options.memory_gb_s * 1e9),
        "launches": launches * options.launch_us * 1e-6,
    }
    say("floors of a step, ms: " + ", ".join(f"{n} {1e3 * s:.1f}" for n, s in floors.items()))


def say_work(name: str, numbers: tuple[float, float, float, float], batch: int) -> None:
    *large, launches = numbers
    columns = " ".join(f"{value / batch / 1e9:9.2f}" for value in large)
    say(f"{name:16} {columns} {launches:10.0f}")


def print_scaling(
    counts: Counts, config: TrainStylenerfConfig, options: argparse.Namespace
) -> None:
    share = shares(build_settings(config))
    rows = [(1, counts.batch), (8, counts.batch), (64, counts.batch)]
    if config.batch_size % 64 == 0:
        rows.append((64, config.batch_size // 64))
    alone = step_s(counts, share, counts.batch, 1, False, options)
    say("GPUs  batch per GPU  work ms  comm ms  step ms   eff.  overlapped   eff.  images/s   days")
    for gpus, images in rows:
        work = step_s(counts, share, images, 1, False, options)
        plain = step_s(counts, share, images, gpus, False, options)
        hidden = step_s(counts, share, images, gpus, True, options)
        ideal = images / counts.batch * alone
        rate = gpus * images / hidden
        days = config.total_samples / rate / 86400
        say(
            f"{gpus:4} {gpus * images:6} {images:7} {1e3 * work:8.1f} {1e3 * (plain - work):8.2f} "
            f"{1e3 * plain:8.1f} {ideal / plain:6.1%} {1e3 * hidden:11.1f} {ideal / hidden:6.1%} "
            f"{rate:9.0f} {days:6.2f}"
        )


def step_s(
    counts: Counts,
    share: dict[str, float],
    images: int,
    gpus: int,
    overlap: bool,
    options: argparse.Namespace,
) -> float:
    """Return the mean seconds of a step of `gpus` GPUs with `images` each."""
    work = {part: part_s(counts, part, images, options) for part in share}
    if options.step_s:
        # The measured step has the estimated parts' proportions; fewer images may be launch-bound.
        whole = sum(part_s(counts, p, counts.batch, options) * share[p] for p in share)
        work = {part: seconds * options.step_s / whole for part, seconds in work.items()}
    total = 0.0
    for part, often in share.items():
        wait = exchange_s(4 * counts.volume.numbers(part), gpus, options)
        if overlap and part != "updates":
            last = exchange_s(min(BUCKET_BYTES, 4 * counts.volume.numbers(part)), gpus, options)
            wait = max(last, wait - options.backward_share * work[part])
        total += often * (work[part] + wait)
    return total


def part_s(counts: Counts, part: str, images: int, options: argparse.Namespace) -> float:
    """Return the seconds of a part on one GPU."""
    done = counts.step[part]
    flops_per_s = options.tflops * 1e12 * options.efficiency
    bytes_per_s = options.memory_gb_s * 1e9 * options.memory_efficiency
    scale = 1.0 if part == "updates" else images / counts.batch
    device = done.device_s(flops_per_s, bytes_per_s) * scale
    return max(device, done.launches * options.launch_us * 1e-6)


def exchange_s(num_bytes: float, gpus: int, options: argparse.Namespace) -> float:
    """Return the seconds of a ring all-reduce in buckets."""
    if gpus == 1:
        return 0.0
    within = gpus <= options.gpus_per_node
    bandwidth = options.nvlink_gb_s if within else min(options.nvlink_gb_s, options.network_gb_s)
    buckets = -(-num_bytes // BUCKET_BYTES)
    latency = buckets * 2 * (gpus - 1) * options.hop_us * 1e-6
    return 2 * (gpus - 1) / gpus * num_bytes / (bandwidth * 1e9) + latency


if __name__ == "__main__":
    main()
