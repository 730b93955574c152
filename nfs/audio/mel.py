"""Mel front end of Wav2Lip and SadTalker, in NumPy (spec/audio.md 2.1 and 2.2).

Legend: L samples at 16 kHz, T mel columns at 80 per second, N video frames.
Runs inside data stages, so this module imports neither torch nor librosa.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE_HZ = 16000
NUM_MELS = 80
HOP = 200
FFT_SIZE = 800
MEL_RATE_HZ = SAMPLE_RATE_HZ / HOP
WINDOW_COLUMNS = 16
SILENCE = -4.0
"""Normalised level of digital silence."""

_PRE_EMPHASIS = 0.97
_MIN_HZ, _MAX_HZ = 55.0, 7600.0
_MIN_DB, _REFERENCE_DB = -100.0, 20.0
_MAX_LEVEL = 4.0
_BREAK_HZ, _MEL_PER_HZ = 1000.0, 3.0 / 200.0
_LOG_STEP = np.log(6.4) / 27.0
_BLOCK_COLUMNS = 4096


def melspectrogram(wave: NDArray[np.floating], sample_rate_hz: int) -> NDArray[np.float32]:
    """Return the normalised mel spectrogram [80, T] of a mono wave, values in [-4, 4].

    Float64 inside; columns are computed in blocks, so memory beyond the result stays bounded.

    Args:
        wave: Samples [L] in [-1, 1].
        sample_rate_hz: Must be 16000: resampling belongs to the reader (`nfs.media.audio`).

    Returns:
        [80, 1 + L // 200], 80 columns per second; column t is centred on sample 200 t.

    Raises:
        ValueError: If the wave is not mono, is empty, or has another sample rate.
    """
    if sample_rate_hz != SAMPLE_RATE_HZ:
        raise ValueError(f"sample_rate_hz={sample_rate_hz}; resample to {SAMPLE_RATE_HZ} first")
    wave = np.asarray(wave)
    if wave.ndim != 1 or wave.size == 0:
        raise ValueError(f"wave has shape {wave.shape}; expected non-empty mono samples [L]")
    padded = np.pad(pre_emphasis(wave), FFT_SIZE // 2)
    num_columns = 1 + wave.size // HOP
    mel = np.empty((NUM_MELS, num_columns), np.float32)
    for first in range(0, num_columns, _BLOCK_COLUMNS):
        last = min(first + _BLOCK_COLUMNS, num_columns)
        block = padded[first * HOP : (last - 1) * HOP + FFT_SIZE]
        mel[:, first:last] = normalise(decibels(mel_basis() @ stft_magnitude(block)))
    return mel


def mel_windows(
    mel: NDArray[np.float32], num_frames: int, fps: float = 25.0
) -> NDArray[np.float32]:
    """Return the mel window of each video frame, [num_frames, 80, 16].

    The window of frame i starts at column `trunc(80 (i - 2) / fps)`, truncated toward zero; columns
    outside the spectrogram repeat its edges (spec/audio.md 2.2).

    Args:
        mel: [80, T], 80 columns per second.
        num_frames: Number of video frames N.
        fps: Frames per second.
    """
    return gather_windows(mel, window_starts(np.arange(num_frames), fps))


def window_starts(frames: NDArray[np.integer], fps: float = 25.0) -> NDArray[np.int64]:
    """Return the first mel column of each frame's window; negative before the start."""
    if fps <= 0:
        raise ValueError(f"fps={fps}; expected a positive frame rate")
    return np.trunc(MEL_RATE_HZ * (np.asarray(frames) - 2) / fps).astype(np.int64)


def gather_windows(mel: NDArray[np.float32], starts: NDArray[np.integer]) -> NDArray[np.float32]:
    """Return the 16-column windows [N, 80, 16] at `starts` [N], edge columns repeated."""
    if mel.ndim != 2 or mel.shape[0] != NUM_MELS or mel.shape[1] == 0:
        raise ValueError(f"mel has shape {mel.shape}; expected [80, T] with T >= 1")
    columns = np.asarray(starts)[:, None] + np.arange(WINDOW_COLUMNS)
    return np.ascontiguousarray(mel[:, np.clip(columns, 0, mel.shape[1] - 1)].transpose(1, 0, 2))


def pre_emphasis(wave: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return `x[n] - 0.97 x[n-1]` in float64, with x[-1] = 0."""
    emphasised = wave.astype(np.float64)
    emphasised[1:] -= _PRE_EMPHASIS * wave[:-1].astype(np.float64)
    return emphasised


def stft_magnitude(padded: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return |STFT| [401, T] of a wave that already carries 400 samples of padding on each side."""
    frames = np.lib.stride_tricks.sliding_window_view(padded, FFT_SIZE)[::HOP]
    return np.abs(np.fft.rfft(frames * _hann(), axis=1)).T


def decibels(linear_mel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the level in dB (amplitude 1 is 0 dB), floored at -100 dB."""
    return 20.0 * np.log10(np.maximum(1e-5, linear_mel))


def normalise(level_db: NDArray[np.float64]) -> NDArray[np.float64]:
    """Map [-100, 0] dB relative to the 20 dB reference onto [-4, 4] and clip."""
    relative = level_db - _REFERENCE_DB
    scaled = 2.0 * _MAX_LEVEL * ((relative - _MIN_DB) / -_MIN_DB) - _MAX_LEVEL
    return np.clip(scaled, -_MAX_LEVEL, _MAX_LEVEL)


@lru_cache(maxsize=1)
def _hann() -> NDArray[np.float64]:
    phase = 2.0 * np.pi * np.arange(FFT_SIZE) / FFT_SIZE
    return 0.5 - 0.5 * np.cos(phase)


@lru_cache(maxsize=1)
def mel_basis() -> NDArray[np.float32]:
    """Return the triangular filters [80, 401]: Slaney mel scale, Slaney area normalisation."""
    points = _mel_to_hz(np.linspace(_hz_to_mel(_MIN_HZ), _hz_to_mel(_MAX_HZ), NUM_MELS + 2))
    bins = np.arange(FFT_SIZE // 2 + 1) * (SAMPLE_RATE_HZ / FFT_SIZE)
    offsets = points[:, None] - bins[None, :]
    widths = np.diff(points)
    rising = -offsets[:-2] / widths[:-1, None]
    falling = offsets[2:] / widths[1:, None]
    triangles = np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)
    area = 2.0 / (points[2:] - points[:-2])
    basis = (triangles * area[:, None]).astype(np.float32)
    basis.setflags(write=False)
    return basis


def _hz_to_mel(frequency_hz: float) -> float:
    if frequency_hz < _BREAK_HZ:
        return frequency_hz * _MEL_PER_HZ
    return float(_BREAK_HZ * _MEL_PER_HZ + np.log(frequency_hz / _BREAK_HZ) / _LOG_STEP)


def _mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    break_mel = _BREAK_HZ * _MEL_PER_HZ
    above = _BREAK_HZ * np.exp(_LOG_STEP * (mel - break_mel))
    return np.where(mel >= break_mel, above, mel / _MEL_PER_HZ)
