"""Training Audio2Exp. Legend: B samples, K frames."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nfs.audio.audio2exp import Audio2Exp, recurrence_radius
from nfs.audio.baselines import LinearBaseline, ReferenceMap, fit_ridge
from nfs.audio.clip_index import ClipReader
from nfs.audio.dataset import HeldOutRun, Split, held_out_runs
from nfs.audio.evaluation import evaluate_baselines, evaluate_model, gap_plot
from nfs.audio.face_basis import FaceBasis, Teacher, displace
from nfs.audio.losses import LossWeights, audio2exp_loss
from nfs.audio.original import export_audio2exp
from nfs.runtime.context import WorkerContext, unwrap
from nfs.training import Evaluation
from nfs.training.checkpoint import write_checkpoint
from nfs.training.ema import Ema, ema_beta
from nfs.training.guard import guarded_step
from nfs.training.schedules import cosine, warmup

_BASELINE_FRAMES = 6000


@dataclass(frozen=True)
class OptimizerSettings:
    """Adam and its schedule.

    Args:
        lr: Rate at the start.
        final_lr: Rate at the end of the half cosine.
        warmup_samples: Linear rise.
        betas: Adam's decay rates.
        weight_decay: Decoupled weight decay.
        ema_kimg: Half-life of the averaged weights, thousands of samples.
        total_samples: Length of the schedule.
        batch_size: Global samples per step.
        freeze_norm: Keep BatchNorm statistics fixed.
        freeze_encoder: Train the output layer only.
    """

    lr: float
    final_lr: float
    warmup_samples: int
    betas: tuple[float, float]
    weight_decay: float
    ema_kimg: float
    total_samples: int
    batch_size: int
    freeze_norm: bool = False
    freeze_encoder: bool = False


@dataclass(frozen=True)
class HeldOutData:
    """What an evaluation reads; opened on rank 0 at the first evaluation.

    Args:
        split: Training and held-out stretches.
        reader: Source of the clips' data.
        silent: Best guess without audio, a baseline.
        max_frames: Held-out frames used at most.
    """

    split: Split
    reader: ClipReader
    silent: ReferenceMap
    max_frames: int


class Audio2ExpTask:
    """Audio2Exp as a `TrainTask`.

    Args:
        model: Network with its initial weights.
        basis: Face points in mm.
        teacher: Makes targets from fits.
        weights: Loss weights.
        optimizer: Optimiser settings.
        held_out: Evaluation data.
        card: Text for the exported checkpoint, and facts for its `model.json`.
    """

    def __init__(
        self,
        model: Audio2Exp,
        *,
        basis: FaceBasis,
        teacher: Teacher,
        weights: LossWeights,
        optimizer: OptimizerSettings,
        held_out: HeldOutData,
        card: dict[str, Any],
    ):
        """Keep the parts; nothing is moved to a device before `setup`."""
        self._model, self._basis, self._teacher = model, basis, teacher
        self._weights, self._settings, self._held_out = weights, optimizer, held_out
        self._card = card
        self._runs: list[HeldOutRun] = []
        self._ridge: LinearBaseline | None = None
        self._baselines: dict[str, float] = {}
        self._metrics: dict[str, float] = {}

    def setup(self, context: WorkerContext) -> None:
        """Move the network to the device, wrap it and make the optimiser."""
        settings, device = self._settings, context.device
        self._model.audio_encoder.requires_grad_(not settings.freeze_encoder)
        if context.world_size > 1 and device.type == "cuda" and not settings.freeze_norm:
            self._model = nn.SyncBatchNorm.convert_sync_batchnorm(self._model)
        self._network = context.wrap(self._model)
        self._basis = self._basis.to(device)
        self._teacher = Teacher(
            self._teacher.from_fit.to(device), self._teacher.from_reference.to(device)
        )
        self._ema = Ema(unwrap(self._network))
        self._parameters = [p for p in self._network.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._parameters,
            lr=settings.lr,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
        )

    def train_step(self, batch: dict[str, Tensor], samples_seen: int) -> dict[str, Tensor]:
        """Make one optimiser step.

        Args:
            batch: windows [B, K, 80, 16], expression [B, K, 64], reference [B, 64], blink [B, 1].
            samples_seen: Samples before this step.
        """
        self._set_mode()
        learning_rate = self._learning_rate(samples_seen)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        reference, blink = batch["reference"], batch["blink"]
        target = self._teacher(batch["expression"], reference)
        prediction = self._predict(batch["windows"], reference, blink)
        total, terms = audio2exp_loss(
            prediction,
            target,
            reference=reference,
            blink=blink,
            basis=self._basis,
            weights=self._weights,
        )
        self._optimizer.zero_grad(set_to_none=True)
        total.backward()
        losses = {"loss/total": total.detach(), **{k: v.detach() for k, v in terms.items()}}
        where = f"samples_seen={samples_seen}"
        norm = guarded_step(self._optimizer, losses, self._parameters, where)
        beta = ema_beta(self._settings.batch_size, self._settings.ema_kimg)
        self._ema.update(unwrap(self._network), beta)
        residual = displace(self._basis.lips, target - batch["expression"]).norm(dim=-1).mean()
        return {
            **losses,
            "train/grad_norm": norm,
            "train/teacher_lip_residual_mm": residual.detach(),
            "train/lr": torch.tensor(learning_rate),
        }

    def evaluate(self, samples_seen: int) -> Evaluation:  # noqa: ARG002 - TrainTask
        """Compare the averaged weights with the baselines on the held-out stretches."""
        ridge = self._prepare_evaluation()
        model = self._ema_model()
        metrics, predictions = evaluate_model(model, self._runs, self._basis)
        metrics["val/recurrence_radius"] = recurrence_radius(model)
        self._metrics = {**metrics, **self._baselines}
        picture = gap_plot(self._runs[0], predictions[0], ridge, self._basis)
        return Evaluation({**self._metrics}, {"val_lip_gap": picture})

    def state_dict(self) -> dict[str, Any]:
        """Return network, averaged network and optimiser."""
        return {
            "model": unwrap(self._network).state_dict(),
            "ema": self._ema.module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        unwrap(self._network).load_state_dict(state["model"])
        self._ema.module.load_state_dict(state["ema"])
        self._optimizer.load_state_dict(state["optimizer"])

    def export(self, directory: Path) -> None:
        """Write the checkpoint; its tensors carry the original's names."""
        write_checkpoint(
            directory,
            export_audio2exp(self._live_model()),
            ema=export_audio2exp(self._ema_model()),
            model={"kind": "audio2exp", **self._card},
            card=_card_text(self._card, self._metrics),
        )

    def _predict(self, windows: Tensor, reference: Tensor, blink: Tensor) -> Tensor:
        batch, frames = windows.shape[:2]
        flat = self._network(
            windows.flatten(0, 1),
            reference.repeat_interleave(frames, 0),
            blink.repeat_interleave(frames, 0),
        )
        return torch.as_tensor(flat).unflatten(0, (batch, frames))

    def _set_mode(self) -> None:
        self._network.train()
        if self._settings.freeze_norm or self._settings.freeze_encoder:
            self._live_model().audio_encoder.eval()

    def _learning_rate(self, samples_seen: int) -> float:
        settings = self._settings
        rate = cosine(
            samples_seen, settings.total_samples, start=settings.lr, end=settings.final_lr
        )
        return rate * warmup(samples_seen, settings.warmup_samples)

    def _prepare_evaluation(self) -> LinearBaseline:
        if self._ridge is None:
            data = self._held_out
            self._runs = held_out_runs(data.split.held_out, data.reader, data.max_frames)
            lips = self._basis.lips.cpu().numpy()
            self._ridge = fit_ridge(
                data.split.train, data.reader, data.silent, lips, _BASELINE_FRAMES
            )
            self._baselines = evaluate_baselines(self._runs, self._ridge, self._basis)
        return self._ridge

    def _ema_model(self) -> Audio2Exp:
        model = self._ema.module
        assert isinstance(model, Audio2Exp)
        return model

    def _live_model(self) -> Audio2Exp:
        model = unwrap(self._network)
        assert isinstance(model, Audio2Exp)
        return model


def _card_text(card: dict[str, Any], metrics: dict[str, float]) -> str:
    lines = ["# Audio2Exp", "", "Mel window, reference expression, blink ratio -> 64 expressions."]
    lines += ["", *(f"- {name}: {value}" for name, value in card.items())]
    if metrics:
        lines += ["", "| held-out metric | value |", "|---|---|"]
        lines += [f"| {name} | {value:.4g} |" for name, value in sorted(metrics.items())]
    return "\n".join(lines) + "\n"
