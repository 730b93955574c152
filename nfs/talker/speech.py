"""The sound of a render: found, decoded and cut to whole frames."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nfs.errors import ClipError, InputError
from nfs.media.audio import AudioClip, read_audio

MODEL_RATE_HZ = 16000
TRACK_RATE_HZ = 44100


@dataclass(frozen=True)
class Speech:
    """A sound file and how many frames it lasts."""

    path: str
    num_frames: int
    """T: `round(duration * fps)`, at least 1."""
    wave: NDArray[np.float32]
    """Mono samples at 16 kHz, exactly T frames long."""
    fps: float

    def track(self, num_frames: int) -> tuple[NDArray[np.float32], int]:
        """Return (mono samples, rate in Hz) for the file, exactly `num_frames` long."""
        duration_s = num_frames / self.fps
        clip = _read(self.path, TRACK_RATE_HZ, duration_s)
        return clip.cut(0.0, round(duration_s * TRACK_RATE_HZ)), TRACK_RATE_HZ


def load_speech(path: str, *, fps: float, max_frames: int | None = None) -> Speech:
    """Decode the sound of a file for the networks.

    Args:
        path: Sound file, or a video (time 0 is its first picture).
        fps: Frames per second of the render.
        max_frames: Frames at most.

    Raises:
        InputError: If the file is missing or has no readable sound.
    """
    end_s = None if max_frames is None else max_frames / fps
    clip = _read(path, MODEL_RATE_HZ, end_s)
    duration_s = clip.start_s + len(clip.samples) / clip.sample_rate_hz
    count = max(1, round(duration_s * fps))
    if max_frames is not None:
        count = min(count, max_frames)
    wave = clip.cut(0.0, round(count / fps * MODEL_RATE_HZ))
    return Speech(path, count, wave, fps)


def _read(path: str, rate_hz: int, end_s: float | None) -> AudioClip:
    if not Path(path).is_file():
        raise InputError(
            f"speech: {path}: no such file; set speech=PATH to a sound file (wav, mp3, flac, ...) "
            "or a video with sound"
        )
    try:
        return read_audio(path, rate_hz, end_s=end_s)
    except ClipError as error:
        raise InputError(f"speech: {error}; give a file with a readable audio track") from None
