import subprocess
import sys

import numpy as np
import pytest

from nfs.audio import mel as mel_module
from nfs.audio.augment import Augmentation
from nfs.audio.mel import mel_windows, melspectrogram, window_starts

RATE = mel_module.SAMPLE_RATE_HZ


def noise(num_samples, seed=0):
    return np.random.default_rng(seed).uniform(-0.3, 0.3, num_samples).astype(np.float32)


def test_silence_is_minus_four_everywhere():
    mel = melspectrogram(np.zeros(8000, np.float32), RATE)
    assert mel.shape == (80, 41)
    assert mel.dtype == np.float32
    assert (mel == -4).all()


def test_values_stay_within_four():
    mel = melspectrogram(3 * noise(4000), RATE)
    assert mel.min() >= -4
    assert mel.max() <= 4


def test_a_tone_peaks_in_the_band_that_contains_it():
    time_s = np.arange(RATE) / RATE
    mel = melspectrogram(0.5 * np.sin(2 * np.pi * 1000 * time_s), RATE)
    band = int(mel[:, 40].argmax())
    assert mel_module.mel_basis()[band, 1000 // 20] > 0


def test_blocks_do_not_change_the_result(monkeypatch):
    wave = noise(20 * 200)
    whole = melspectrogram(wave, RATE)
    monkeypatch.setattr(mel_module, "_BLOCK_COLUMNS", 7)
    np.testing.assert_allclose(melspectrogram(wave, RATE), whole, rtol=0, atol=1e-6)


def test_shifting_the_wave_by_a_hop_shifts_the_columns():
    wave = noise(6000)
    shifted = np.concatenate([np.zeros(200, np.float32), wave])
    a, b = melspectrogram(wave, RATE), melspectrogram(shifted, RATE)
    np.testing.assert_allclose(b[:, 4:-3], a[:, 3:-3], atol=1e-6)


@pytest.mark.parametrize(
    ("wave", "rate", "message"),
    [
        (np.zeros((2, 100)), RATE, "mono"),
        (np.zeros(0), RATE, "non-empty"),
        (np.zeros(100), 44100, "resample"),
    ],
)
def test_bad_waves_are_refused(wave, rate, message):
    with pytest.raises(ValueError, match=message):
        melspectrogram(wave, rate)


def test_window_starts_truncate_toward_zero():
    assert window_starts(np.arange(10)).tolist() == [-6, -3, 0, 3, 6, 9, 12, 16, 19, 22]


def test_window_starts_follow_the_frame_rate():
    assert window_starts(np.array([2, 32]), 30.0).tolist() == [0, 80]
    with pytest.raises(ValueError, match="positive"):
        window_starts(np.arange(3), 0.0)


def test_windows_repeat_edge_columns():
    mel = np.broadcast_to(np.arange(20, dtype=np.float32), (80, 20))
    windows = mel_windows(mel, 8)
    assert windows.shape == (8, 80, 16)
    assert windows[0, 0].tolist() == [0] * 7 + list(range(1, 10))
    assert windows[-1, 0].tolist() == [16, 17, 18, *[19] * 13]


def test_windows_need_eighty_bands():
    with pytest.raises(ValueError, match="80"):
        mel_windows(np.zeros((40, 20), np.float32), 3)


def test_gain_changes_the_level_and_noise_fills_silence():
    rng = np.random.default_rng(0)
    wave = 0.1 * np.sin(np.arange(4000) / 3.0)
    quiet = Augmentation(gain_db=6).wave(wave, rng)
    assert 0.05 <= np.abs(quiet).max() <= 0.2
    noisy = Augmentation(noise_probability=1.0, snr_db=(20, 20)).wave(wave, rng)
    ratio = np.std(noisy - wave) / np.std(wave)
    assert ratio == pytest.approx(0.1, rel=0.1)


def test_masked_bands_are_silent_in_every_window():
    windows = np.ones((3, 80, 16), np.float32)
    rng = np.random.default_rng(1)
    masked = Augmentation(mask_probability=1.0, max_mask_bands=5).windows(windows, rng)
    silent = (masked == -4).all(axis=(0, 2))
    assert 1 <= silent.sum() <= 5
    assert (masked[:, ~silent] == 1).all()
    assert (windows == 1).all()


def test_importing_the_front_end_loads_no_torch():
    code = "import sys, nfs.audio.mel; sys.exit('torch' in sys.modules or 'librosa' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
