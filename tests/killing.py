"""Real jobs in processes of their own, to be killed on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

COMMON = ["tracking.kind=jsonl", "launch.num_workers=1"]


def start(repository: Path, job: str, storage: Path, *overrides: str) -> subprocess.Popen[str]:
    command = [
        sys.executable, "-m", f"jobs.{job}", f"jobs/configs/{job}/smoke.yaml",
        f"storage={storage}", *COMMON, *overrides,
    ]  # fmt: skip
    return subprocess.Popen(
        command,
        cwd=repository,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def kill_when(
    process: subprocess.Popen[str], ready: Callable[[], bool], patience_s: float = 240
) -> None:
    deadline = time.monotonic() + patience_s
    while not ready():
        assert process.poll() is None, f"ended before the kill: {process.stderr.read()[-2000:]}"
        assert time.monotonic() < deadline, "never got to the middle"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def finish(process: subprocess.Popen[str], patience_s: float = 400) -> None:
    _, error = process.communicate(timeout=patience_s)
    assert process.returncode == 0, error[-3000:]


def run_directory(storage: Path) -> Path:
    (directory,) = [p for p in storage.iterdir() if (p / "run.json").exists()]
    return directory


def committed(storage: Path, table: str) -> dict[str, int]:
    """Name -> modification time of the committed unit files."""
    return {p.name: p.stat().st_mtime_ns for p in storage.glob(f"*/*/{table}/*.parquet")}
