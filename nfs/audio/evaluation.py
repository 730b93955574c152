"""Held-out evaluation of Audio2Exp beside its baselines (spec/audio.md 4.3 and 4.9)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nfs.audio.audio2exp import Audio2Exp, predict_expressions
from nfs.audio.baselines import LinearBaseline
from nfs.audio.dataset import HeldOutRun
from nfs.audio.face_basis import FaceBasis, eye_aspect, lip_gap_mm
from nfs.audio.losses import (
    lip_velocity_error_mm,
    lip_vertex_error_mm,
    lip_vertex_error_mm2,
)
from nfs.audio.plots import line_plot

Predict = Callable[[HeldOutRun], Tensor]


@torch.no_grad()
def evaluate_model(
    model: Audio2Exp, runs: Sequence[HeldOutRun], basis: FaceBasis
) -> tuple[dict[str, float], list[Tensor]]:
    """Return metrics of a model in eval mode and its predictions [T, 64] per run.

    The reference is the first good frame of each clip; `lve_mm_feedback` uses NeRFFaceSpeech's loop
    without exaggeration, as at inference.
    """
    device = model.mapping1.weight.device
    predictions = [_forward(model, run, 0.0) for run in runs]
    feedback = [
        predict_expressions(
            model,
            torch.from_numpy(run.windows).to(device),
            torch.from_numpy(run.reference).to(device),
            scale=1.0,
        )
        for run in runs
    ]
    closed = [eye_aspect(basis, _forward(model, run, 1.0)).mean() for run in runs[:1]]
    opened = [eye_aspect(basis, p).mean() for p in predictions[:1]]
    metrics = {
        **score(runs, predictions, basis, ""),
        "val/lve_mm_feedback": score(runs, feedback, basis, "")["val/lve_mm"],
        "val/blink_closure": float(closed[0] / opened[0]),
    }
    return metrics, predictions


def evaluate_baselines(
    runs: Sequence[HeldOutRun], ridge: LinearBaseline, basis: FaceBasis
) -> dict[str, float]:
    """Return the metrics of the constant reference, the best silent guess, and ridge regression."""
    device = basis.lips.device
    constant = [_tensor(np.broadcast_to(r.reference, r.expression.shape), device) for r in runs]
    guess = [_tensor(ridge.silent.predict(run), device) for run in runs]
    linear = [_tensor(ridge.predict(run), device) for run in runs]
    return {
        **score(runs, constant, basis, "_reference"),
        **score(runs, guess, basis, "_silent"),
        **score(runs, linear, basis, "_ridge"),
    }


def score(
    runs: Sequence[HeldOutRun], predictions: Sequence[Tensor], basis: FaceBasis, suffix: str
) -> dict[str, float]:
    """Return frame-weighted metrics over the runs, `suffix` after each name."""
    truths = [_tensor(run.expression, basis.lips.device) for run in runs]
    weights = np.array([len(t) for t in truths], np.float64)

    def mean(measure: Callable[[Tensor, Tensor, FaceBasis], Tensor]) -> float:
        values = [float(measure(p, t, basis)) for p, t in zip(predictions, truths, strict=True)]
        return _average(values, weights)

    gaps = [
        [lip_gap_mm(basis, e).cpu().numpy() for e in pair]
        for pair in zip(predictions, truths, strict=True)
    ]
    squared = [float((p - t).square().mean()) for p, t in zip(predictions, truths, strict=True)]
    return {
        f"val/lve_mm{suffix}": mean(lip_vertex_error_mm),
        f"val/lve_sq_mm2{suffix}": mean(lip_vertex_error_mm2),
        f"val/lip_velocity_error_mm{suffix}": mean(lip_velocity_error_mm),
        f"val/expression_mse{suffix}": _average(squared, weights),
        f"val/lip_gap_mae_mm{suffix}": _average([np.abs(p - t).mean() for p, t in gaps], weights),
        f"val/lip_gap_correlation{suffix}": _average([correlation(*g) for g in gaps], weights),
    }


def gap_plot(
    run: HeldOutRun, prediction: Tensor, ridge: LinearBaseline, basis: FaceBasis
) -> NDArray[np.uint8]:
    """Return a picture of the inner-lip opening over time: fit, model, ridge regression."""
    device = basis.lips.device
    curves = {
        "fit": _tensor(run.expression, device),
        "Audio2Exp": prediction,
        "ridge": _tensor(ridge.predict(run), device),
    }
    series = {name: lip_gap_mm(basis, curve).cpu().numpy() for name, curve in curves.items()}
    return line_plot(series, f"inner-lip gap, mm: held-out part of {run.clip_id}")


def correlation(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Return Pearson's correlation; 0 when a curve is constant."""
    first, second = first.astype(np.float64), second.astype(np.float64)
    if np.std(first) < 1e-9 or np.std(second) < 1e-9:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def _forward(model: Audio2Exp, run: HeldOutRun, blink: float) -> Tensor:
    device = model.mapping1.weight.device
    windows = torch.from_numpy(run.windows)
    reference = _tensor(run.reference, device)
    parts = []
    for chunk in windows.split(128):
        count = chunk.shape[0]
        ratio = torch.full((count, 1), blink, device=device)
        parts.append(model(chunk.to(device), reference.expand(count, -1), ratio))
    return torch.cat(parts)


def _average(values: Sequence[float], weights: NDArray[np.float64]) -> float:
    return float(np.average(values, weights=weights))


def _tensor(array: NDArray[np.floating], device: torch.device) -> Tensor:
    return torch.from_numpy(np.array(array, np.float32)).to(device)
