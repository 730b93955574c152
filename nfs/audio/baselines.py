"""Baselines that a trained Audio2Exp must beat on held-out frames (spec/audio.md 4.3).

Legend: N frames, D = 1280 + 64 features (flattened mel window, reference expression).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nfs.audio.clip_index import ClipReader
from nfs.audio.dataset import HeldOutRun, Span, frame_windows

_RIDGE_GRID = tuple(10.0**power for power in range(-3, 4))
_INNER_TRAIN_SHARE = 0.8


@dataclass(frozen=True)
class LinearBaseline:
    """`e = e_ref + mean + (features - feature_mean) @ weight`.

    Args:
        feature_mean: [D].
        weight: [D, 64]; zeros give the mean-offset baseline.
        mean: Mean of `e - e_ref` over the training frames [64].
        ridge: Chosen regularisation, relative to the mean feature variance.
    """

    feature_mean: NDArray[np.float64]
    weight: NDArray[np.float64]
    mean: NDArray[np.float64]
    ridge: float

    def predict(self, run: HeldOutRun) -> NDArray[np.float32]:
        """Return expressions [T, 64]."""
        reference = np.broadcast_to(run.reference, run.expression.shape)
        centred = _features(run.windows, reference) - self.feature_mean
        return (reference + self.mean + centred @ self.weight).astype(np.float32)


def fit_ridge(
    spans: Sequence[Span], reader: ClipReader, lip_basis: NDArray[np.floating], max_frames: int
) -> LinearBaseline:
    """Fit ridge regression from the window and the reference to the expression.

    The regularisation is the one with the smallest lip error on the last fifth of the training
    frames (held-out frames are not touched); the fit is then repeated on all of them.

    Args:
        spans: Training stretches.
        reader: Source of the clips' data.
        lip_basis: [L, 3, 64] in mm, the measure for the choice.
        max_frames: Evenly spaced frames used at most.
    """
    features, offsets = _training_frames(spans, reader, max_frames)
    flat = lip_basis.reshape(-1, lip_basis.shape[-1]).astype(np.float64)
    metric = flat.T @ flat
    inner = max(2, int(_INNER_TRAIN_SHARE * len(features)))
    errors = []
    for candidate in _solve(features[:inner], offsets[:inner], _RIDGE_GRID):
        left = offsets[inner:] - candidate.mean
        left = left - (features[inner:] - candidate.feature_mean) @ candidate.weight
        errors.append(float(np.einsum("ni,ij,nj->", left, metric, left)))
    best = _RIDGE_GRID[int(np.argmin(errors))]
    return _solve(features, offsets, (best,))[0]


def _solve(
    features: NDArray[np.float64], offsets: NDArray[np.float64], ridges: Sequence[float]
) -> list[LinearBaseline]:
    feature_mean, mean = features.mean(0), offsets.mean(0)
    centred = features - feature_mean
    values, vectors = _principal_axes(centred)
    projected = vectors.T @ (centred.T @ (offsets - mean) / len(features))
    scale = max(float(np.sum(values)) / features.shape[1], 1e-12)
    return [
        LinearBaseline(
            feature_mean,
            vectors @ (projected / (values + ridge * scale)[:, None]),
            mean,
            ridge,
        )
        for ridge in ridges
    ]


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


def _training_frames(
    spans: Sequence[Span], reader: ClipReader, max_frames: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    step = max(1, -(-sum(len(s) for s in spans) // max_frames))
    features, offsets = [], []
    for span in spans:
        clip, frames = reader.read(span.record), np.arange(span.start, span.stop, step)
        first = clip.expression[int(span.record.frames[0])]
        reference = np.broadcast_to(first, (len(frames), first.size))
        windows = frame_windows(clip, span.record, frames)
        features.append(_features(windows, reference))
        offsets.append(clip.expression[frames].astype(np.float64) - reference)
    return np.concatenate(features), np.concatenate(offsets)


def _features(windows: NDArray[np.float32], reference: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.concatenate([windows.reshape(len(windows), -1), reference], axis=1).astype(np.float64)
