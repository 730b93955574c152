"""Small stand-ins that several tests share; importable by worker processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from nfs.config.base import BestConfig, LoaderConfig
from nfs.errors import ClipError, InputError
from nfs.runtime.context import WorkerContext, unwrap
from nfs.training import Evaluation, LoopSettings, train
from nfs.training.checkpoint import write_checkpoint
from nfs.training.ema import Ema, ema_beta
from nfs.training.guard import guarded_step


class EchoWork:
    """Writes one row per unit; paths choose how a unit goes wrong."""

    primary = "rows"

    def __init__(self, log: str = "", seconds: float = 0.0):
        self._log, self._seconds = log, seconds

    def __call__(self, item: dict[str, Any]) -> dict[str, pa.Table]:
        path = str(item["path"])
        if self._log:
            with Path(self._log).open("a") as stream:
                stream.write(f"{path}\n")
        time.sleep(self._seconds)
        if path.startswith("bad"):
            raise ClipError("no_face", "no face in any frame")
        if path.startswith("flaky") and not Path(item["once"]).exists():
            Path(item["once"]).touch()
            raise RuntimeError("try again")
        if path.startswith("broken"):
            raise RuntimeError("always")
        if path.startswith("poison"):
            os.kill(os.getpid(), signal.SIGKILL)
        return {
            "rows": pa.table({"clip_id": [path], "status": ["ok"]}),
            "detail": pa.table({"clip_id": [path] * 3, "value": [0, 1, 2]}),
        }

    def failure(self, item: dict[str, Any], status: str, error: str) -> dict[str, pa.Table]:
        return {"rows": pa.table({"clip_id": [str(item["path"])], "status": [status]})}


class LineDataset:
    """y = 3 x + 1 plus noise drawn from the item's generator."""

    def __len__(self) -> int:
        return 37

    def get(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        x = np.float32(index / 37)
        return {"x": x, "y": np.float32(3 * x + 1 + 0.01 * rng.standard_normal())}


class PickyDataset(LineDataset):
    """One item cannot be read."""

    def __init__(self, bad: int):
        self.bad = bad

    def get(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        if index == self.bad:
            raise InputError(f"item {index} cannot be read")
        return super().get(index, rng)


class LineTask:
    """Linear regression with dropout-like noise, momentum and EMA: all kinds of state."""

    def __init__(self, step_seconds: float = 0.0, poison_at: int = -1, noise: float = 0.01):
        self._seconds, self._poison_at, self._noise = step_seconds, poison_at, noise

    def setup(self, context: WorkerContext) -> None:
        torch.manual_seed(0)
        self.model = context.wrap(torch.nn.Linear(1, 1))
        self.ema = Ema(unwrap(self.model))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.05)

    def train_step(
        self, batch: dict[str, torch.Tensor], samples_seen: int
    ) -> dict[str, torch.Tensor]:
        time.sleep(self._seconds)
        noise = self._noise * torch.randn(())
        loss = (self.model(batch["x"][:, None])[:, 0] + noise - batch["y"]).square().mean()
        if samples_seen == self._poison_at:
            loss = loss * float("nan")
        self.optimizer.zero_grad()
        loss.backward()
        guarded_step(self.optimizer, {"loss/line": loss}, list(self.model.parameters()))
        self.ema.update(unwrap(self.model), ema_beta(len(batch["x"]), 0.01))
        return {"loss/line": loss.detach()}

    def evaluate(self, samples_seen: int) -> Evaluation:
        weight = float(unwrap(self.model).weight.detach())
        return Evaluation({"val/weight": weight}, {"dot": np.zeros((4, 4, 3), np.uint8)})

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": unwrap(self.model).state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        unwrap(self.model).load_state_dict(state["model"])
        self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])

    def export(self, directory: Path) -> None:
        weights = unwrap(self.model).state_dict()
        write_checkpoint(directory, weights, model={"kind": "line"}, ema=None)


def line_worker(tree: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    """Training worker of the toy task."""
    settings = LoopSettings(
        total_samples=tree["total_samples"],
        batch_size=8,
        log_every=8,
        checkpoint_every=tree.get("checkpoint_every", 16),
        evaluate_every=32,
        loader=LoaderConfig.from_tree(tree.get("loader", {})),
        best=BestConfig.from_tree(tree["best"]) if "best" in tree else None,
    )
    crash = tree.get("crash_file")
    task = LineTask(
        tree.get("step_seconds", 0.0), tree.get("poison_at", -1), tree.get("noise", 0.01)
    )
    if crash and not Path(crash).exists() and context.rank == 0:
        original = task.train_step

        def crashing(batch: dict[str, torch.Tensor], seen: int) -> dict[str, torch.Tensor]:
            if seen >= tree["crash_at"]:
                Path(crash).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return original(batch, seen)

        task.train_step = crashing  # type: ignore[method-assign]
    return train(task, LineDataset(), settings, context)


def state_worker(tree: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    """Save one state whose writing waits until the training has gone on; what was there before."""
    latest, went_on = context.latest(), context.directory / "went-on"

    def write(folder: Path) -> None:
        deadline = time.monotonic() + 60
        while not went_on.exists():
            assert time.monotonic() < deadline, "the training waits for the state"
            time.sleep(0.02)
        (folder / "whole").write_text("half")
        if tree.get("fails"):
            raise OSError("the disk is full")
        if "dies" in tree and not Path(tree["dies"]).exists():
            Path(tree["dies"]).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        (folder / "whole").write_text(tree["text"])

    context.save(write, {}, lambda folder: (folder / f"part-{context.rank}").touch())
    if context.rank == 0:
        went_on.touch()
    context.settle()
    record = context.directory / "states" / "checkpoint_manager_snapshot.json"
    return {
        "before": sorted(p.name for p in latest.iterdir()) if latest else [],
        "text": (latest / "whole").read_text() if latest else "",
        "committed": record.exists(),
    }
