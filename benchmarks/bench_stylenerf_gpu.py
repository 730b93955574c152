"""StyleNeRF training on a CUDA device: images/s, memory, time per phase, distance to the floor.

The published networks at 256 pixels. The baseline is the original's order of operations
(`_stylenerf_plain.py`) in single precision and under autocast. An iteration is G step + D step +
1/4 of a path-length step + 1/16 of an R1 step.
Floors: counted FLOPs and fused bytes (`scaling_on_paper.py`) at the speeds that a large matrix
product and a large copy reach on the same device. Needs no Ray and no MLflow.
"""

from __future__ import annotations

import gc
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from _counted_phases import shares
from _harness import Report, Timing, arguments, say
from bench_stylenerf import PL_INTERVAL, R1_INTERVAL, PlainTrainer, amortised, gan_settings
from scaling_on_paper import CONFIGS, counted

from nfs.config.train_stylenerf import TrainStylenerfConfig
from nfs.runtime.local import LocalContext
from nfs.stylenerf.builders import build_settings
from nfs.stylenerf.discriminator import Discriminator
from nfs.stylenerf.generator import Generator
from nfs.stylenerf.settings import SpeedSettings
from nfs.stylenerf.spec import DiscriminatorSpec, GeneratorSpec
from nfs.stylenerf.task import StyleNerfTask
from nfs.tracking.null import NullTracker

CASES = {
    "plain fp32": None,
    "plain bf16": None,
    "nfs fp32": SpeedSettings(),
    "nfs bf16": SpeedSettings(precision="bf16", channels_last=True),
    "nfs fp16": SpeedSettings(precision="fp16", channels_last=True),
    "nfs bf16 recompute": SpeedSettings(precision="bf16", channels_last=True, recompute_field=True),
    "nfs bf16 compile": SpeedSettings(precision="bf16", channels_last=True, compile=True),
}
PHASES = ("g_main", "g_reg", "d_main", "d_reg")
STEPS = {"G+D": 4, "G+D+PL": 2, "G+D+PL+R1": 2}


@dataclass(frozen=True)
class Measured:
    """One case.

    Attributes:
        iteration_s: Amortised seconds of each repeat.
        peak_gb: Most memory that tensors took.
        phases_s: Amortised seconds of each phase; empty for the baseline.
    """

    iteration_s: list[float]
    peak_gb: float
    phases_s: dict[str, float]


def main() -> None:
    options = arguments(
        __doc__,
        ("--batch", {"type": int, "default": 8, "help": "images; 8 as published per GPU"}),
        ("--resolution", {"type": int, "default": 256}),
        ("--repeats", {"type": int, "default": 3}),
        ("--cases", {"nargs": "*", "default": list(CASES), "choices": list(CASES)}),
        ("--counts", {"type": Path, "help": "folder with counts; see scaling_on_paper.py"}),
        ("--search", {"action": "store_true", "help": "let cuDNN search for algorithms"}),
        ("--profile", {"type": Path, "help": "write the kernels of a bf16 step to this file"}),
        gpu=True,
    )
    if not torch.cuda.is_available():
        raise SystemExit("bench_stylenerf_gpu.py measures a CUDA device and torch sees none here")
    torch.backends.cudnn.benchmark = options.search
    device = torch.cuda.get_device_name()
    report = Report(
        "stylenerf-gpu", {"resolution": options.resolution, "batch": options.batch}, gpu=device
    )
    for name in options.cases:
        found = measure(name, options.resolution, options.batch, options.repeats)
        report.timings[name] = Timing(found.iteration_s, found.iteration_s)
        rate = options.batch / report.timings[name].wall_median_s
        report.checks[name] = {
            "images_per_s": round(rate, 1),
            "peak_gb": round(found.peak_gb, 2),
            "phase_share": shares_of(found),
        }
        say(f"{name}: {json.dumps(report.checks[name])}")
    for base in ("plain fp32", "plain bf16"):
        for name in options.cases:
            if name.startswith("nfs") and base in report.timings:
                target = 2.0 if base == "plain fp32" and "16" in name else None
                report.ratio(f"{name} over {base}", base, name, target=target)
    if options.counts is not None:
        report.checks["floors_ms"] = floors(options.counts, options.batch)
    if options.profile is not None:
        profile(options.profile, options.resolution, options.batch)
    report.notes.append(f"CPU column = the clock; cudnn.benchmark: {options.search}")
    report.write(options.out)


def measure(name: str, resolution: int, batch: int, repeats: int) -> Measured:
    """Time one case alone on the device, after warm-up."""
    with stepper(name, resolution, batch) as step:
        for kind in STEPS:
            for _ in range(2):
                step(kind)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        seconds: dict[str, list[float]] = {kind: [] for kind in STEPS}
        phases: dict[str, list[float]] = {phase: [] for phase in PHASES}
        for _ in range(repeats):
            for kind, count in STEPS.items():
                start = time.perf_counter()
                for _ in range(count):
                    metrics = step(kind)
                    for phase in PHASES:
                        if f"time/{phase}_s" in metrics:
                            phases[phase].append(float(metrics[f"time/{phase}_s"]))
                torch.cuda.synchronize()
                seconds[kind].append((time.perf_counter() - start) / count)
        often = {"g_main": 1, "g_reg": 1 / PL_INTERVAL, "d_main": 1, "d_reg": 1 / R1_INTERVAL}
        return Measured(
            amortised(
                seconds["G+D"],
                sorted(seconds["G+D+PL"])[repeats // 2],
                sorted(seconds["G+D+PL+R1"])[repeats // 2],
            ),
            torch.cuda.max_memory_allocated() / 1e9,
            {p: often[p] * sum(v) / len(v) for p, v in phases.items() if v},
        )


@contextmanager
def stepper(
    name: str, resolution: int, batch: int
) -> Iterator[Callable[[str], dict[str, torch.Tensor]]]:
    """Give a function that makes one step of the case; its memory is free afterwards."""
    torch.manual_seed(0)
    speed = CASES[name]
    strict = name == "plain fp32"  # the original allows no TF32
    torch.backends.cudnn.allow_tf32 = not strict
    settings = gan_settings(batch, speed)
    generator = Generator(GeneratorSpec(img_resolution=resolution)).cuda()
    spec = DiscriminatorSpec(img_resolution=resolution, channel_base=0.5, mbstd_group_size=8)
    discriminator = Discriminator(spec).cuda()
    shape = (batch, 3, resolution, resolution)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device="cuda")
    if speed is None:
        trainer = PlainTrainer(generator, discriminator, settings)

        def plain(kind: str) -> dict[str, torch.Tensor]:
            with torch.autocast("cuda", torch.bfloat16, enabled=not strict):
                trainer.step(images, with_pl="PL" in kind, with_r1="R1" in kind)
            return {}

        yield plain
        del trainer
    else:
        task = StyleNerfTask(generator, discriminator, settings)
        with tempfile.TemporaryDirectory() as folder:
            task.setup(LocalContext(Path(folder), NullTracker()))
            clock = {"G+D": batch, "G+D+PL": PL_INTERVAL * batch, "G+D+PL+R1": 0}
            yield lambda kind: task.train_step({"image": images}, clock[kind])
        del task
    del generator, discriminator
    gc.collect()
    torch.cuda.empty_cache()


def shares_of(found: Measured) -> dict[str, float]:
    """Return each phase's share of an iteration; `rest` is averaging and preparation."""
    if not found.phases_s:
        return {}
    whole = sorted(found.iteration_s)[len(found.iteration_s) // 2]
    shares = {phase: seconds / whole for phase, seconds in found.phases_s.items()}
    shares["rest"] = 1 - sum(shares.values())
    return {phase: round(share, 3) for phase, share in shares.items()}


def floors(folder: Path, batch: int) -> dict[str, float]:
    """Return the least milliseconds of a mean step at the speeds that this device reaches."""
    config = TrainStylenerfConfig.load(CONFIGS / "ffhq_paper256.yaml", ["speed.precision=bf16"])
    counts, often = counted("ffhq_paper256", config, folder), shares(build_settings(config))
    flops, fused, eager, launches = (
        sum(getattr(counts.step[part], what) * share for part, share in often.items())
        for what in ("flops", "product_bytes", "bytes", "launches")
    )
    scale = batch / counts.batch
    flops_s, bytes_s = product_speed(), copy_speed()
    return {
        "measured TFLOP/s": round(flops_s / 1e12, 1),
        "measured GB/s": round(bytes_s / 1e9, 1),
        "FLOPs": round(1e3 * scale * flops / flops_s, 2),
        "fused bytes": round(1e3 * scale * fused / bytes_s, 2),
        "eager bytes": round(1e3 * scale * eager / bytes_s, 2),
        "operations": round(launches),
    }


def product_speed(size: int = 8192) -> float:
    """Return FLOP/s of a bf16 matrix product."""
    first, second = (torch.randn(size, size, device="cuda").bfloat16() for _ in range(2))
    return 2 * size**3 / device_s(lambda: first @ second)


def copy_speed(count: int = 2**30) -> float:
    """Return bytes/s of a copy, counting reads and writes."""
    source = torch.randn(count // 4, device="cuda")
    target = torch.empty_like(source)
    return 2 * count / device_s(lambda: target.copy_(source))


def device_s(function: Callable[[], object], times: int = 10) -> float:
    """Return the mean seconds of a call on the device."""
    for _ in range(3):
        function()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(times):
        function()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / times


def profile(file: Path, resolution: int, batch: int) -> None:
    """Write the longest kernels of two bf16 steps."""
    from torch.profiler import ProfilerActivity

    with stepper("nfs bf16", resolution, batch) as step:
        for _ in range(3):
            step("G+D")
        activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as found:
            for _ in range(2):
                step("G+D")
            torch.cuda.synchronize()
    table = found.key_averages().table(sort_by="self_cuda_time_total", row_limit=40)
    file.write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
