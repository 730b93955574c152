"""Audio decoding to mono float samples, aligned with the video of the same file (PyAV)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from numpy.typing import NDArray

from nfs.errors import ClipError
from nfs.media.video import open_media, origin_s, reason_of

_SEEK_MARGIN_S = 0.5
_CODEC_PADDING_S = 0.2


@dataclass(frozen=True)
class AudioClip:
    """Mono samples float32 [N] in [-1, 1]; sample 0 is at `start_s` after the first video frame."""

    samples: NDArray[np.float32]
    sample_rate_hz: int
    start_s: float

    def cut(self, start_s: float, num_samples: int) -> NDArray[np.float32]:
        """Return `num_samples` from `start_s` (video time) on; silence where there are none."""
        first = round((start_s - self.start_s) * self.sample_rate_hz)
        result = np.zeros(num_samples, np.float32)
        low, high = max(first, 0), min(first + num_samples, len(self.samples))
        if high > low:
            result[low - first : high - first] = self.samples[low:high]
        return result


def read_audio(
    path: str | Path,
    sample_rate_hz: int = 16000,
    *,
    start_s: float = 0.0,
    end_s: float | None = None,
) -> AudioClip:
    """Decode the first audio stream, mixed to mono and resampled.

    Args:
        path: Audio or video file.
        sample_rate_hz: Rate of the result.
        start_s: Time after the first video frame from which samples are needed; earlier ones may
            be left out.
        end_s: Time after which samples are not needed; None reads to the end.

    Raises:
        ClipError: `no_audio`; `decode_error` if the stream cannot be decoded.
    """
    with open_media(path) as container:
        if not container.streams.audio:
            raise ClipError("no_audio", f"{path}: has no audio stream")
        stream = container.streams.audio[0]
        origin = origin_s(container)
        declared_end_s = _declared_end_s(stream, origin)
        if start_s > 2 * _SEEK_MARGIN_S and stream.time_base is not None:
            container.seek(
                int((origin + start_s - _SEEK_MARGIN_S) / stream.time_base), stream=stream
            )
        resampler = av.AudioResampler(format="flt", layout="mono", rate=sample_rate_hz)
        parts: list[NDArray[np.float32]] = []
        first_s: float | None = None
        try:
            for frame in container.decode(stream):
                time_s = (frame.time if frame.pts is not None else 0.0) - origin
                if end_s is not None and time_s > end_s + _SEEK_MARGIN_S:
                    break
                first_s = time_s if first_s is None else first_s
                frame.pts = None  # the resampler counts samples itself
                parts += [out.to_ndarray()[0] for out in resampler.resample(frame)]
            parts += [out.to_ndarray()[0] for out in resampler.resample(None)]
        except (av.error.FFmpegError, OSError) as error:
            where = sum(map(len, parts)) / sample_rate_hz
            message = f"{path}: audio broke off after {where:.2f} s: {reason_of(error)}"
            raise ClipError("decode_error", message) from None
    if first_s is None:
        raise ClipError("decode_error", f"{path}: no audio could be decoded")
    samples = np.concatenate(parts).astype(np.float32, copy=False)
    if declared_end_s is not None:
        excess = len(samples) - round((declared_end_s - first_s) * sample_rate_hz)
        if 0 < excess <= _CODEC_PADDING_S * sample_rate_hz:
            samples = samples[:-excess]
    return AudioClip(np.clip(samples, -1.0, 1.0), sample_rate_hz, first_s)


def _declared_end_s(stream: AudioStream, origin: float) -> float | None:
    """Return the end of the track by its header: a last AAC frame is padded beyond it."""
    if stream.duration is None or stream.time_base is None:
        return None
    return float((stream.duration + (stream.start_time or 0)) * stream.time_base) - origin
