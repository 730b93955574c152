"""Closed-form start of Audio2Exp's output layer on a random encoder.

Even random convolutions of a mel window carry most of what a small recording can teach (random
features, Rahimi and Recht 2007). Ridge regression from them to the targets, with the
regularisation chosen over blocks of time, is a better start than noise, and in short trainings on
seconds of speech often a better end than gradient steps alone reach.

Legend: N frames, D = 512 features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nfs.audio.audio2exp import Audio2Exp
from nfs.audio.baselines import ridge_weights

RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
NUM_BLOCKS = 5
# Windows overlap by five frames on either side; neighbours of a test block are left out.
GAP_FRAMES = 10
BATCH = 128


@torch.no_grad()
def start_from_features(
    model: Audio2Exp, windows: Tensor, offsets: NDArray[np.float64], metric: NDArray[np.float64]
) -> float:
    """Set the encoder's statistics and the audio part of the output layer in place.

    Args:
        model: Its reference part and bias hold the guess without audio.
        windows: Mel windows of the training frames in order of time [N, 80, 16].
        offsets: What that guess misses, target minus guess [N, 64].
        metric: Weights of the error by which the ridge is chosen, positive semi-definite [64, 64].

    Returns:
        The chosen regularisation, relative to the mean feature variance.
    """
    _calibrate_norms(model.audio_encoder, windows)
    features = torch.cat([model.audio_encoder(w) for w in windows.split(BATCH)])
    values = features.double().numpy()
    ridge = RIDGES[int(np.argmin(_block_errors(values, offsets, metric)))]
    weight = ridge_weights(values, offsets, (ridge,))[0]
    audio, _, _ = model.split_mapping()
    audio.copy_(torch.from_numpy(weight.T))
    bias = offsets.mean(0) - values.mean(0) @ weight
    model.mapping1.bias.add_(torch.from_numpy(bias).to(model.mapping1.bias))
    return ridge


def _calibrate_norms(encoder: nn.Module, windows: Tensor) -> None:
    """Set BatchNorm statistics to those of the data; leaves the encoder in eval mode."""
    norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
    encoder.train()
    for part in windows.split(BATCH):
        encoder(part)
    encoder.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _block_errors(
    features: NDArray[np.float64], offsets: NDArray[np.float64], metric: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the summed error of each ridge over blocks of time left out in turn."""
    count = len(features)
    errors = np.zeros(len(RIDGES))
    for block in np.array_split(np.arange(count), min(NUM_BLOCKS, max(2, count // 4))):
        keep = _outside(count, block)
        if len(keep) < 2:
            continue
        mean, centre = offsets[keep].mean(0), features[keep].mean(0)
        for index, weight in enumerate(ridge_weights(features[keep], offsets[keep], RIDGES)):
            left = offsets[block] - mean - (features[block] - centre) @ weight
            errors[index] += float(np.einsum("ni,ij,nj->", left, metric, left))
    return errors


def _outside(count: int, block: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    indices = np.arange(count)
    near = (indices >= block[0] - GAP_FRAMES) & (indices <= block[-1] + GAP_FRAMES)
    return indices[~near]
