"""Shared by the benchmarks: interleaved timing, a table and a dated JSON file.

Every benchmark times its cases round by round in one process on one thread, so that load of the
machine falls on all of them alike, and reports CPU-seconds beside wall-clock seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

RESULTS = Path(__file__).parent / "results"
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
PACKAGES = ("nfs", "torch", "numpy", "numba", "ray", "av", "easypytorch3d", "facenet-pytorch")


@dataclass
class Timing:
    """Seconds of each repeat of one case."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    @property
    def wall_median_s(self) -> float:
        """Median wall-clock seconds."""
        return statistics.median(self.wall_s)

    @property
    def cpu_median_s(self) -> float:
        """Median CPU-seconds of the whole process."""
        return statistics.median(self.cpu_s)


@dataclass(frozen=True)
class Ratio:
    """How many times as fast ours is, by CPU-seconds and by the clock."""

    name: str
    baseline: str
    ours: str
    cpu: float
    wall: float
    target: float | None
    """Least ratio wanted; None: only reported."""
    work: tuple[float, float] = (1.0, 1.0)
    """Units of work (frames, images) in one run of the baseline and of ours."""
    by: Literal["cpu", "wall"] = "cpu"
    """Which of the two the target is about."""

    @property
    def met(self) -> bool | None:
        """Whether the target is reached."""
        return None if self.target is None else getattr(self, self.by) >= self.target


def timed(function: Callable[[], Any]) -> tuple[float, float, Any]:
    """Return wall seconds, CPU-seconds and the result of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def interleave(
    cases: Mapping[str, Callable[[], Any]], *, repeats: int, warmup: int = 1
) -> dict[str, Timing]:
    """Time the cases round by round: a, b, c, a, b, c, ...

    Args:
        cases: Name -> a call without arguments.
        repeats: Rounds that count.
        warmup: Rounds that do not.
    """
    timings = {name: Timing() for name in cases}
    for turn in range(warmup + repeats):
        for name, case in cases.items():
            wall, cpu, _ = timed(case)
            if turn >= warmup:
                timings[name].wall_s.append(wall)
                timings[name].cpu_s.append(cpu)
    return timings


class Report:
    """Collects the numbers of one benchmark and writes them.

    Args:
        name: Name of the benchmark: `bench_<name>.py`.
        config: What was measured.
        gpu: Name of the CUDA device that did the work; the clock then decides.
    """

    def __init__(self, name: str, config: Mapping[str, Any], gpu: str | None = None) -> None:
        self.name, self.config, self.gpu = name, dict(config), gpu
        self.timings: dict[str, Timing] = {}
        self.ratios: list[Ratio] = []
        self.checks: dict[str, Any] = {}
        self.notes: list[str] = []
        self.load_at_start = os.getloadavg()[0]

    def ratio(
        self,
        name: str,
        baseline: str,
        ours: str,
        *,
        target: float | None = None,
        work: tuple[float, float] = (1.0, 1.0),
    ) -> Ratio:
        """Add `baseline / ours`, per unit of work when the two do different amounts."""
        first, second = self.timings[baseline], self.timings[ours]
        scale = work[1] / work[0]
        cpu = first.cpu_median_s / second.cpu_median_s * scale
        wall = first.wall_median_s / second.wall_median_s * scale
        by: Literal["cpu", "wall"] = "cpu" if self.gpu is None else "wall"
        found = Ratio(name, baseline, ours, cpu, wall, target, work, by)
        self.ratios.append(found)
        return found

    def check(self, name: str, value: float, limit: float) -> None:
        """Record a difference that must stay under a limit; a larger one stops the benchmark."""
        if not value <= limit:
            raise SystemExit(f"{self.name}: {name} is {value:.3g}, more than {limit:.3g}")
        self.checks[name] = {"value": value, "limit": limit}

    def write(self, out: Path | None) -> Path:
        """Print the table and write the JSON file; returns its path."""
        path = out or RESULTS / f"{self.name}_{self._slug()}_{datetime.now():%Y-%m-%d}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self._tree(), indent=1) + "\n", encoding="utf-8")
        say(self._table())
        say(f"-> {path}\n")
        return path

    def _slug(self) -> str:
        words = re.sub(
            r"\((R|TM)\)|CPU|Processor|@.*", " ", self.gpu or cpu_model(), flags=re.IGNORECASE
        )
        return "-".join(re.findall(r"[a-z0-9.]+", words.lower()))

    def _tree(self) -> dict[str, Any]:
        return {
            "bench": self.name,
            "date": datetime.now().astimezone().isoformat(timespec="seconds"),
            "command": "python "
            + " ".join([f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
            "machine": {
                "cpu": cpu_model(),
                "gpu": self.gpu,
                "cores": os.cpu_count(),
                "system": platform.platform(),
                "load_1min": [self.load_at_start, os.getloadavg()[0]],
            },
            "versions": {"python": platform.python_version(), **_versions()},
            "threads": int(os.environ.get("OMP_NUM_THREADS", "0")),
            "config": self.config,
            "timings": {
                name: {
                    "cpu_median_s": t.cpu_median_s,
                    "wall_median_s": t.wall_median_s,
                    **asdict(t),
                }
                for name, t in self.timings.items()
            },
            "ratios": [{**asdict(ratio), "met": ratio.met} for ratio in self.ratios],
            "checks": self.checks,
            "notes": self.notes,
        }

    def _table(self) -> str:
        lines = [f"\n{self.name}: {self.config}"]
        lines.append(f"{'case':44} {'CPU s':>10} {'wall s':>10}  repeats")
        for name, t in self.timings.items():
            lines.append(
                f"{name:44} {t.cpu_median_s:10.4f} {t.wall_median_s:10.4f}  {len(t.cpu_s)}"
            )
        lines.append(f"{'ratio':44} {'CPU':>10} {'wall':>10}  target")
        for r in self.ratios:
            verdict = "-" if r.met is None else f"{r.target:g} {'met' if r.met else 'MISSED'}"
            lines.append(f"{r.name:44} {r.cpu:9.2f}x {r.wall:9.2f}x  {verdict}")
        lines += [f"{name}: {value}" for name, value in self.checks.items()]
        return "\n".join([*lines, *self.notes])


def say(text: str) -> None:
    """Write a line for the reader."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def arguments(
    description: str, *extra: tuple[str, dict[str, Any]], gpu: bool = False
) -> argparse.Namespace:
    """Parse `--out` and the extra arguments; one thread, no GPU (starts again where needed).

    Args:
        description: Docstring of the benchmark.
        extra: Name and options of each further argument.
        gpu: The benchmark is for a CUDA device: leave the environment as it is.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file; default benchmarks/results/...")
    for name, options in extra:
        parser.add_argument(name, **options)
    parsed = parser.parse_args()
    if gpu:
        return parsed
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
        os.environ.update(ENVIRONMENT)  # libraries read it when they are loaded
        os.execv(sys.executable, [sys.executable, *sys.argv])
    import torch

    torch.set_num_threads(1)
    return parsed


def cpu_model() -> str:
    """Return the processor's name."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1) if found else platform.machine()


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found
