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
    """Decode the first audio stream, resampled, as the mean of its channels.

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
        if start_s > 2 * _SEEK_MARGIN_S and stream.time_base is not None:
            target_s = origin + start_s - _SEEK_MARGIN_S
            container.seek(int(target_s / stream.time_base), stream=stream)
        track = _Track(sample_rate_hz)
        stop_s = None if end_s is None else origin + end_s + _SEEK_MARGIN_S
        try:
            for packet in container.demux(stream):
                if not track.add(packet, stop_s):
                    break
            track.flush()
        except (av.error.FFmpegError, OSError) as error:
            where = sum(map(len, track.parts)) / sample_rate_hz
            message = f"{path}: audio broke off after {where:.2f} s: {reason_of(error)}"
            raise ClipError("decode_error", message) from None
    if track.first_s is None:
        raise ClipError("decode_error", f"{path}: no audio could be decoded")
    return AudioClip(track.samples(), sample_rate_hz, track.first_s - origin)


class _Track:
    """Collects decoded, resampled samples of one stream; times are the container's."""

    def __init__(self, sample_rate_hz: int):
        self.rate = sample_rate_hz
        self.parts: list[NDArray[np.float32]] = []
        self.first_s: float | None = None
        self.end_s = 0.0
        self._resampler: av.AudioResampler | None = None

    def add(self, packet: av.Packet[AudioStream], stop_s: float | None) -> bool:
        """Decode a packet; return whether more are needed."""
        if packet.pts is not None and packet.duration is not None:
            end = (packet.pts + packet.duration) * packet.time_base
            self.end_s = max(self.end_s, float(end))
        for frame in packet.decode():
            time_s = frame.time if frame.pts is not None else 0.0
            if stop_s is not None and time_s > stop_s:
                return False
            self.first_s = time_s if self.first_s is None else self.first_s
            if self._resampler is None:
                layout = frame.layout
                self._resampler = av.AudioResampler(format="fltp", layout=layout, rate=self.rate)
            frame.pts = None  # the resampler counts samples itself
            self._keep(self._resampler.resample(frame))
        return True

    def flush(self) -> None:
        """Take what the resampler still holds."""
        if self._resampler is not None:
            self._keep(self._resampler.resample(None))

    def samples(self) -> NDArray[np.float32]:
        """Return all samples, without the padding of a last AAC frame beyond its packet's end."""
        samples = np.concatenate(self.parts).astype(np.float32, copy=False)
        excess = len(samples) - round((self.end_s - (self.first_s or 0.0)) * self.rate)
        if 0 < excess <= _CODEC_PADDING_S * self.rate:
            samples = samples[:-excess]
        return np.clip(samples, -1.0, 1.0)

    def _keep(self, frames: list[av.AudioFrame]) -> None:
        # the mean of the channels: swresample's own mix is 3 dB louder and clips
        self.parts += [frame.to_ndarray().mean(axis=0) for frame in frames]
