import numpy as np
import torch

from nfs.audio.audio2exp import Audio2Exp
from nfs.audio.warm_start import GAP_FRAMES, _outside, start_from_features


def data(count=120):
    """Windows whose loudness, a slow wave, drives one coefficient."""
    rng = np.random.default_rng(0)
    loudness = np.sin(np.linspace(0, 12, count))
    windows = loudness[:, None, None] + 0.1 * rng.standard_normal((count, 80, 16))
    offsets = 0.01 * rng.standard_normal((count, 64))
    offsets[:, 3] += 0.4 * loudness
    return torch.from_numpy(windows).float(), offsets


def test_the_output_layer_starts_at_what_the_features_explain():
    torch.manual_seed(0)
    windows, offsets = data()
    model = Audio2Exp()
    model.start_from(torch.zeros(64, 64), torch.full((64,), 0.5))
    start_from_features(model, windows, offsets, np.eye(64))
    assert not model.audio_encoder.training
    with torch.no_grad():
        out = model.eval()(windows, torch.zeros(len(windows), 64), torch.zeros(len(windows), 1))
    left = (out.numpy() - 0.5) - offsets
    assert left[:, 3].std() < 0.3 * offsets[:, 3].std()
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {n.momentum for n in norms} == {0.1}


def test_unexplainable_targets_get_the_strongest_ridge():
    torch.manual_seed(0)
    windows, _ = data()
    noise = np.random.default_rng(1).standard_normal((len(windows), 64))
    ridge = start_from_features(Audio2Exp(), windows, noise, np.eye(64))
    assert ridge >= 100


def test_blocks_leave_their_neighbours_out():
    keep = _outside(100, np.arange(40, 60))
    assert keep.tolist() == [*range(40 - GAP_FRAMES), *range(60 + GAP_FRAMES, 100)]
