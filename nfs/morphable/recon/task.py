"""Training the coefficient regressor. Legend: B pictures, S side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nfs.morphable.coefficients import Coefficients
from nfs.morphable.recon.checkpoint import export_network
from nfs.morphable.recon.evaluation import (
    Regressor,
    constant_nme_percent,
    measure,
    select_frames,
    sheet,
)
from nfs.morphable.recon.frames import ReconFrames, mean_landmarks, stack_items
from nfs.morphable.recon.losses import Batch, ReconObjective
from nfs.morphable.recon.network import ReconNet, clamp_expressions
from nfs.runtime.context import WorkerContext, unwrap
from nfs.training import Evaluation
from nfs.training.ema import Ema, ema_beta
from nfs.training.guard import guarded_step

_EVAL_BATCH = 16
_CONSTANT_FRAMES = 256


@dataclass(frozen=True)
class ReconSettings:
    """Adam and its schedule.

    Attributes:
        lr: Rate at the start.
        factor: Samples seen -> factor of the rate.
        betas: Adam's decay rates.
        ema_kimg: Half-life of the averaged weights; 0: none.
        batch_size: Global pictures per step.
        channels_last: Memory format of the network.
        sheet_frames: Frames in the picture of an evaluation.
    """

    lr: float
    factor: Callable[[int], float]
    betas: tuple[float, float]
    ema_kimg: float
    batch_size: int
    channels_last: bool
    sheet_frames: int


@dataclass(frozen=True)
class ReconData:
    """Frames without augmentation; opened on rank 0.

    Attributes:
        train: Training frames, for the constant guess.
        held_out: Frames to evaluate on.
    """

    train: ReconFrames
    held_out: ReconFrames


class ReconTask:
    """The regressor as a `TrainTask`.

    Args:
        network: Network with its initial weights.
        objective: Loss terms.
        settings: Optimiser settings.
        data: Evaluation data.
        facts: For the model card.
    """

    def __init__(
        self,
        network: ReconNet,
        *,
        objective: ReconObjective,
        settings: ReconSettings,
        data: ReconData,
        facts: dict[str, Any],
    ):
        """Keep the parts; nothing is moved to a device before `setup`."""
        self._model, self._objective, self._settings = network, objective, settings
        self._data, self._facts = data, facts
        self._batches: list[Batch] = []
        self._reference: dict[str, float] = {}
        self._metrics: dict[str, float] = {}

    def setup(self, context: WorkerContext) -> None:
        """Move networks to the device, make the optimiser, measure the initial weights."""
        settings, device = self._settings, context.device
        if context.world_size > 1 and device.type == "cuda":
            self._model = nn.SyncBatchNorm.convert_sync_batchnorm(self._model)
        if settings.channels_last:
            self._model = self._model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch types name 4-d tensors only
        self._network = context.wrap(self._model)
        self._objective = self._objective.to(device)
        self._ema = Ema(unwrap(self._network))
        self._parameters = [p for p in self._network.parameters() if p.requires_grad]
        self._optimizer = torch.optim.Adam(self._parameters, lr=settings.lr, betas=settings.betas)
        if context.rank == 0:
            self._prepare_evaluation(device)

    def train_step(self, batch: Batch, samples_seen: int) -> dict[str, Tensor]:
        """Make one optimiser step.

        Args:
            batch: As `ReconFrames` makes it.
            samples_seen: Samples before this step.
        """
        self._network.train()
        rate = self._settings.lr * self._settings.factor(samples_seen)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        raw = self._network(self._pictures(batch))
        total, terms = self._objective(self._live().unpack(raw), batch)
        self._optimizer.zero_grad(set_to_none=True)
        total.backward()
        losses = {"loss/total": total.detach()}
        losses |= {f"loss/{name}": term.detach() for name, term in terms.items()}
        where = f"samples_seen={samples_seen}"
        norm = guarded_step(self._optimizer, losses, self._parameters, where)
        beta = ema_beta(self._settings.batch_size, self._settings.ema_kimg)
        self._ema.update(unwrap(self._network), beta)
        return {**losses, "train/grad_norm": norm, "train/lr": torch.tensor(rate)}

    def evaluate(self, samples_seen: int) -> Evaluation:  # noqa: ARG002 - TrainTask
        """Measure the averaged weights on held-out frames, beside the initial ones."""
        regressor = self._regressor(self._averaged())
        metrics = measure(regressor, self._objective, self._batches)
        self._metrics = {f"val/{name}": value for name, value in metrics.items()}
        self._metrics |= self._reference
        shown = select_frames(self._batches, self._settings.sheet_frames)
        return Evaluation(
            dict(self._metrics), {"val_sheet": sheet(regressor, self._objective, shown)}
        )

    def state_dict(self) -> dict[str, Any]:
        """Return network, averaged network and optimiser."""
        return {
            "model": unwrap(self._network).state_dict(),
            "ema": self._ema.module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "reference": dict(self._reference),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        unwrap(self._network).load_state_dict(state["model"])
        self._ema.module.load_state_dict(state["ema"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._reference = dict(state["reference"])

    def export(self, directory: Path) -> None:
        """Write the checkpoint."""
        averaged = self._averaged() if self._settings.ema_kimg else None
        export_network(
            directory, self._live(), ema=averaged, facts=self._facts, metrics=self._metrics
        )

    def _prepare_evaluation(self, device: torch.device) -> None:
        """Read the held-out frames and measure the initial weights and the best constant."""
        items = self._data.held_out.items()
        for start in range(0, len(items), _EVAL_BATCH):
            batch = stack_items(items[start : start + _EVAL_BATCH])
            self._batches.append({name: value.to(device) for name, value in batch.items()})
        initial = measure(self._regressor(self._averaged()), self._objective, self._batches)
        self._reference = {
            f"val/initial_{name}": value
            for name, value in initial.items()
            if name.startswith(("nme_percent", "photometric", "identity"))
        }
        constant = mean_landmarks(self._data.train, _CONSTANT_FRAMES)
        self._reference["val/constant_nme_percent"] = constant_nme_percent(constant, self._batches)

    def _regressor(self, network: ReconNet) -> Regressor:
        model = self._objective.model

        def predict(images: Tensor) -> Coefficients:
            network.eval()
            return clamp_expressions(model, network.unpack(network(images)))

        return predict

    def _pictures(self, batch: Batch) -> Tensor:
        pictures = batch["image"].float() / 255
        if self._settings.channels_last:
            pictures = pictures.contiguous(memory_format=torch.channels_last)
        return pictures

    def _averaged(self) -> ReconNet:
        network = self._ema.module
        assert isinstance(network, ReconNet)
        return network

    def _live(self) -> ReconNet:
        network = unwrap(self._network)
        assert isinstance(network, ReconNet)
        return network
