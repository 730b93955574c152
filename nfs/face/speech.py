"""Mouth against sound: who speaks, and by how much sound and picture are apart.

The sound's level is explained from the opening of the lips, how fast it changes and the width of
the mouth (multiple correlation), with the sound moved by every possible lag. The best lag near
zero counts only when it explains clearly more than lags of more than 0.9 s do, which can only be
chance: that margin is the confidence.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d, uniform_filter1d

from nfs.face.protocols import Array

_RATE_HZ = 100
_LONGEST_LAG_S, _CHANCE_LAG_S = 0.6, 0.9
_SHORTEST_S = 3.0
_SLOW_S = 2.0
_LEVEL_SMOOTHING_S = 0.015
_RANGE_DB = 45.0
_SILENCE = 1e-6
# Lips open before they are heard: the lag found in two clips that are in time (0.09 and 0.12 s).
LEAD_S = 0.11
# Least confidence and correlation of an answer. Speakers reached 0.3 to 0.6; a listener beside the
# speaker and a clip whose lips cannot be read stayed at 0.
MIN_CONFIDENCE = 0.15
_MIN_CORRELATION = 0.5


@dataclass(frozen=True)
class SpeechMatch:
    """How a mouth goes with a sound.

    `delay_s` is how much later the sound is than the picture; `correlation` in [0, 1] belongs to
    that delay; `confidence` in [0, 1] says how much better it is than chance.
    """

    delay_s: float
    correlation: float
    confidence: float

    @property
    def sure(self) -> bool:
        """Whether the mouth makes this sound and the delay may be believed."""
        return self.confidence >= MIN_CONFIDENCE and self.correlation >= _MIN_CORRELATION


def match_speech(
    landmarks: Array, samples: NDArray[np.floating], fps: float, sample_rate_hz: int
) -> SpeechMatch | None:
    """Compare the lips in T frames with the sound of the same time.

    Args:
        landmarks: [T, 68, 2] of one face.
        samples: [N] in [-1, 1]; sample 0 is heard as frame 0 begins to show.
        fps: Frames per second.
        sample_rate_hz: Samples per second.

    Returns:
        The best match, or None where nothing can be said: under 3 s, silence, a still mouth.
    """
    count = int(min(len(landmarks) / fps, len(samples) / sample_rate_hz) * _RATE_HZ)
    if count < _SHORTEST_S * _RATE_HZ:
        return None
    times = (np.arange(count) + 0.5) / _RATE_HZ
    frame_times = (np.arange(len(landmarks)) + 0.5) / fps
    mouth = np.stack(
        [np.interp(times, frame_times, column) for column in _mouth_motion(landmarks, fps).T], -1
    )
    level = _level_db(samples, sample_rate_hz)[:count]
    mouth, level = _standard(mouth), _standard(level[:, None])[:, 0]
    if not (np.isfinite(mouth).all() and np.isfinite(level).all()):
        return None
    return _best_lag(mouth, level)


def _best_lag(mouth: Array, level: Array) -> SpeechMatch:
    count = len(level)
    # circular correlation at every lag: row k moves the sound k steps earlier
    spectrum = np.conj(np.fft.rfft(mouth, axis=0)) * np.fft.rfft(level)[:, None]
    shared = np.fft.irfft(spectrum, n=count, axis=0) / count
    among = mouth.T @ mouth / count
    explained = (shared * np.linalg.lstsq(among, shared.T, rcond=1e-6)[0].T).sum(axis=1)
    correlation = np.sqrt(np.clip(explained, 0.0, 1.0))
    lags = np.arange(count)
    lags_s = np.where(lags > count // 2, lags - count, lags) / _RATE_HZ
    # the lead is subtracted last, so the range is centred on it
    near = np.flatnonzero(np.abs(lags_s - LEAD_S) <= _LONGEST_LAG_S)
    best = int(near[correlation[near].argmax()])
    chance = float(correlation[np.abs(lags_s) > _CHANCE_LAG_S].max())
    value = float(correlation[best])
    confidence = max((value - chance) / max(1.0 - chance, 1e-6), 0.0)
    return SpeechMatch(float(lags_s[best]) - LEAD_S, value, confidence)


def _mouth_motion(landmarks: Array, fps: float) -> Array:
    """Return opening, speed of opening and width of the mouth [T, 3] in eye distances."""
    eyes = landmarks[:, 42:48].mean(axis=1) - landmarks[:, 36:42].mean(axis=1)
    scale = max(float(np.median(np.linalg.norm(eyes, axis=-1))), 1e-6)
    upper, lower = landmarks[:, [61, 62, 63]], landmarks[:, [67, 66, 65]]
    opening = np.linalg.norm(upper - lower, axis=-1).mean(axis=1) / scale
    width = np.linalg.norm(landmarks[:, 54] - landmarks[:, 48], axis=-1) / scale
    speed = np.abs(np.gradient(opening)) * fps
    return np.stack([opening, speed, width], axis=-1)


def _level_db(samples: NDArray[np.floating], sample_rate_hz: int) -> Array:
    """Return the sound's level [T100] in dB, quiet parts cut at 45 dB under the loudest."""
    step = sample_rate_hz // _RATE_HZ
    blocks = np.asarray(samples[: len(samples) // step * step], np.float64).reshape(-1, step)
    power = gaussian_filter1d((blocks**2).mean(axis=1), _LEVEL_SMOOTHING_S * _RATE_HZ)
    level = 10 * np.log10(power + _SILENCE**2)
    return np.maximum(level, level.max() - _RANGE_DB)


def _standard(values: Array) -> Array:
    """Return columns [T, C] without slow changes, with mean 0 and deviation 1; NaN if constant."""
    changes = values - uniform_filter1d(values, int(_SLOW_S * _RATE_HZ), axis=0, mode="nearest")
    changes = changes - changes.mean(axis=0)
    deviation = changes.std(axis=0)
    return np.asarray(changes / np.where(deviation > 1e-9, deviation, np.nan))
