"""Augmentation of speech before the mel: gain, noise, and masked mel bands."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nfs.audio.mel import NUM_MELS, SILENCE


@dataclass(frozen=True)
class Augmentation:
    """Strengths; the defaults change nothing.

    Args:
        gain_db: Largest gain in either direction, dB.
        noise_probability: Share of waves that get white noise.
        snr_db: Range of the noise level below the speech, dB.
        mask_probability: Share of spectrograms with one masked band range.
        max_mask_bands: Widest masked range.
    """

    gain_db: float = 0.0
    noise_probability: float = 0.0
    snr_db: tuple[float, float] = (10.0, 40.0)
    mask_probability: float = 0.0
    max_mask_bands: int = 12

    @property
    def changes_wave(self) -> bool:
        """Whether the mel must be computed again."""
        return self.gain_db > 0 or self.noise_probability > 0

    def wave(self, wave: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
        """Return the wave [L] with a random gain and perhaps noise relative to its own level."""
        wave = wave * 10.0 ** (rng.uniform(-self.gain_db, self.gain_db) / 20.0)
        if rng.random() < self.noise_probability:
            level = np.sqrt(np.mean(wave**2)) * 10.0 ** (-rng.uniform(*self.snr_db) / 20.0)
            wave = wave + level * rng.standard_normal(wave.shape)
        return np.clip(wave, -1.0, 1.0)

    def windows(
        self, windows: NDArray[np.float32], rng: np.random.Generator
    ) -> NDArray[np.float32]:
        """Return windows [K, 80, 16] with perhaps the same bands set to silence in all of them."""
        if rng.random() >= self.mask_probability:
            return windows
        width = int(rng.integers(1, self.max_mask_bands + 1))
        first = int(rng.integers(0, NUM_MELS - width + 1))
        masked = windows.copy()
        masked[:, first : first + width] = SILENCE
        return masked
