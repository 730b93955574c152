"""Baselines that a trained Audio2Exp must beat on held-out frames (spec/audio.md 4.3).

Legend: N frames, D = 1280 features (flattened mel window).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from nfs.audio.clip_index import ClipReader
from nfs.audio.dataset import HeldOutRun, Span, frame_windows
from nfs.audio.face_basis import Teacher

_MAX_SPANS = 400
_MAP_RIDGE = 0.03
_RIDGE_GRID = tuple(10.0**power for power in range(-3, 4))
_INNER_TRAIN_SHARE = 0.8


@dataclass(frozen=True)
class ReferenceMap:
    """The best guess without hearing anything: `e = weight @ e_ref + bias`.

    Args:
        weight: [64, 64].
        bias: [64].
    """

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]

    def predict(self, run: HeldOutRun) -> NDArray[np.float32]:
        """Return the same expression for every frame, [T, 64]."""
        constant = self.weight @ run.reference + self.bias
        return np.broadcast_to(constant, run.expression.shape).astype(np.float32)


@dataclass(frozen=True)
class LinearBaseline:
    """Regression of what the silent guess misses: `silent + mean + (x - feature_mean) @ weight`.

    Args:
        silent: The guess without audio.
        feature_mean: [D].
        weight: [D, 64].
        mean: Mean of `e - silent` over the training frames [64].
        ridge: Chosen regularisation, relative to the mean feature variance.
    """

    silent: ReferenceMap
    feature_mean: NDArray[np.float64]
    weight: NDArray[np.float64]
    mean: NDArray[np.float64]
    ridge: float

    def predict(self, run: HeldOutRun) -> NDArray[np.float32]:
        """Return expressions [T, 64]."""
        centred = _flatten(run.windows) - self.feature_mean
        offset = self.mean + centred @ self.weight
        return (self.silent.predict(run) + offset).astype(np.float32)


def fit_reference_map(
    spans: Sequence[Span],
    reader: ClipReader,
    teacher: Teacher,
    rng: np.random.Generator,
    max_frames: int,
) -> ReferenceMap:
    """Fit targets from reference expressions over random pairs of frames of the same clip.

    With one clip this is the mean target; with many it keeps what belongs to the person.

    Args:
        spans: Training stretches.
        reader: Source of the clips' data.
        teacher: Makes the target of a pair.
        rng: Chooses the pairs.
        max_frames: Pairs used at most.
    """
    chosen, step = _some(spans, max_frames)
    references, targets = [], []
    for span in chosen:
        clip = reader.read(span.record)
        frames = np.arange(span.start, span.stop, step)
        others = rng.integers(span.start, span.stop, frames.size)
        expression = torch.from_numpy(clip.expression[frames])[:, None]
        reference = torch.from_numpy(clip.expression[others])
        targets.append(teacher(expression, reference)[:, 0].numpy().astype(np.float64))
        references.append(reference.numpy().astype(np.float64))
    features, values = np.concatenate(references), np.concatenate(targets)
    weight = ridge_weights(features, values, (_MAP_RIDGE,))[0]
    return ReferenceMap(weight.T, values.mean(0) - features.mean(0) @ weight)


def fit_ridge(
    spans: Sequence[Span],
    reader: ClipReader,
    silent: ReferenceMap,
    lip_basis: NDArray[np.floating],
    max_frames: int,
) -> LinearBaseline:
    """Fit ridge regression from the mel window to what the silent guess misses.

    The regularisation is the one with the smallest lip error on the last fifth of the training
    frames (held-out frames are not touched); the fit is then repeated on all of them.

    Args:
        spans: Training stretches.
        reader: Source of the clips' data.
        silent: The guess without audio.
        lip_basis: [L, 3, 64] in mm, the measure for the choice.
        max_frames: Evenly spaced frames used at most.
    """
    features, offsets = training_frames(spans, reader, silent, max_frames)
    flat = lip_basis.reshape(-1, lip_basis.shape[-1]).astype(np.float64)
    metric = flat.T @ flat
    inner = max(2, int(_INNER_TRAIN_SHARE * len(features)))
    feature_mean, mean = features[:inner].mean(0), offsets[:inner].mean(0)
    errors = []
    for weight in ridge_weights(features[:inner], offsets[:inner], _RIDGE_GRID):
        left = offsets[inner:] - mean - (features[inner:] - feature_mean) @ weight
        errors.append(float(np.einsum("ni,ij,nj->", left, metric, left)))
    best = _RIDGE_GRID[int(np.argmin(errors))]
    weight = ridge_weights(features, offsets, (best,))[0]
    return LinearBaseline(silent, features.mean(0), weight, offsets.mean(0), best)


def ridge_weights(
    features: NDArray[np.float64], values: NDArray[np.float64], ridges: Sequence[float]
) -> list[NDArray[np.float64]]:
    """Return the weights [D, 64] of centred ridge regression for each regularisation."""
    centred = features - features.mean(0)
    variances, axes = _principal_axes(centred)
    projected = axes.T @ (centred.T @ (values - values.mean(0)) / len(features))
    scale = max(float(np.sum(variances)) / features.shape[1], 1e-12)
    return [axes @ (projected / (variances + ridge * scale)[:, None]) for ridge in ridges]


def _principal_axes(
    centred: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return variances [R] and axes [D, R] of centred rows, from the smaller of the two Grams."""
    count, size = centred.shape
    if count >= size:
        values, vectors = np.linalg.eigh(centred.T @ centred / count)
        return np.maximum(values, 0.0), vectors
    values, left = np.linalg.eigh(centred @ centred.T / count)
    keep = values > 1e-10 * max(float(values[-1]), 1e-30)
    values, left = values[keep], left[:, keep]
    return values, centred.T @ left / np.sqrt(count * values)


def training_frames(
    spans: Sequence[Span], reader: ClipReader, silent: ReferenceMap, max_frames: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return flattened mel windows [N, 1280] and what the silent guess misses [N, 64]."""
    chosen, step = _some(spans, max_frames)
    features, offsets = [], []
    for span in chosen:
        clip, frames = reader.read(span.record), np.arange(span.start, span.stop, step)
        guess = silent.weight @ clip.expression[int(span.record.frames[0])] + silent.bias
        features.append(_flatten(frame_windows(clip, span.record, frames)))
        offsets.append(clip.expression[frames] - guess)
    return np.concatenate(features), np.concatenate(offsets)


def _some(spans: Sequence[Span], max_frames: int) -> tuple[Sequence[Span], int]:
    """Return evenly spaced stretches and the step between their frames, to bound the reading."""
    chosen = spans[:: max(1, -(-len(spans) // _MAX_SPANS))]
    return chosen, max(1, -(-sum(len(s) for s in chosen) // max_frames))


def _flatten(windows: NDArray[np.float32]) -> NDArray[np.float64]:
    return windows.reshape(len(windows), -1).astype(np.float64)
