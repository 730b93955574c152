"""Streaming H.264 + AAC writer (spec/face_and_media.md 4.5).

The PyAV wheel bundles libx264, so no ffmpeg program is needed.
"""

from __future__ import annotations

import os
import uuid
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import av.container
import numpy as np
from numpy.typing import NDArray

_AAC_FRAME = 1024
_BT709 = 1
_LIMITED_RANGE = 1
_OPTIONS = {"crf": "18", "preset": "veryfast"}


class VideoWriter:
    """Writes uint8 RGB frames, and optionally a mono sound track, to an mp4 file.

    Use as a context manager. The file appears under its name only when the block ends without an
    exception; otherwise nothing is left behind.

    Args:
        path: Target `.mp4`; its folder is made if missing.
        fps: Frames per second; frame i is shown at i / fps.
        size: (height, width) in pixels, both even (4:2:0 chroma).
        audio: (samples float [N] in [-1, 1], sample_rate_hz), starting with frame 0; all N samples
            are written even if the frames end earlier.
        comment: Text of the file's comment tag.
    """

    def __init__(
        self,
        path: str | Path,
        fps: float,
        size: tuple[int, int],
        audio: tuple[NDArray[np.floating], int] | None = None,
        comment: str | None = None,
    ):
        if size[0] % 2 or size[1] % 2 or min(size) < 2:
            raise ValueError(f"{path}: size (height, width) {size} must be even for 4:2:0 video")
        if fps <= 0:
            raise ValueError(f"{path}: fps={fps} must be positive")
        self.path, self.size, self.num_frames = Path(path), size, 0
        self._comment = comment
        self._fps = Fraction(fps).limit_denominator(1001)
        self._temporary = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}.tmp")
        self._audio = _Track(*audio) if audio is not None else None

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        options = {"movflags": "+faststart"}
        if self._audio is not None:  # or the length of the sound is rounded to milliseconds
            options["movie_timescale"] = str(self._audio.rate)
        self._container = av.open(str(self._temporary), "w", format="mp4", options=options)
        if self._comment is not None:
            self._container.metadata["comment"] = self._comment
        stream = self._container.add_stream("libx264", rate=self._fps, options=dict(_OPTIONS))
        stream.height, stream.width = self.size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = 1 / self._fps
        stream.codec_context.colorspace = _BT709
        stream.codec_context.color_primaries = _BT709
        stream.codec_context.color_trc = _BT709
        stream.codec_context.color_range = _LIMITED_RANGE
        self._stream = stream
        if self._audio is not None:
            self._audio.open(self._container)
        return self

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Append one frame uint8 RGB [H, W, 3]."""
        if frame.dtype != np.uint8 or frame.shape != (*self.size, 3):
            raise ValueError(
                f"{self.path}: frame {self.num_frames} is {frame.dtype} {frame.shape}, "
                f"expected uint8 {(*self.size, 3)}"
            )
        rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture = rgb.reformat(
            format="yuv420p", dst_colorspace=_BT709, dst_color_range=_LIMITED_RANGE
        )
        picture.pts, picture.time_base = self.num_frames, 1 / self._fps
        self._container.mux(self._stream.encode(picture))
        self.num_frames += 1
        if self._audio is not None:
            self._audio.write_until(float(self.num_frames / self._fps))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._container.close()
            if kind is not None:
                self._temporary.unlink(missing_ok=True)
        if kind is None:
            os.replace(self._temporary, self.path)

    def _finish(self) -> None:
        try:
            if self.num_frames == 0:
                raise ValueError(f"{self.path}: no frame was written")
            self._container.mux(self._stream.encode(None))
            if self._audio is not None:
                self._audio.close()
        except BaseException:
            self._temporary.unlink(missing_ok=True)
            raise


class _Track:
    """AAC track that keeps pace with the frames, so that the muxer never buffers much."""

    def __init__(self, samples: NDArray[np.floating], sample_rate_hz: int):
        if samples.ndim != 1:
            raise ValueError(f"audio must be mono [N], got shape {samples.shape}")
        self.samples = np.clip(samples, -1.0, 1.0).astype(np.float32)
        self.rate, self.position = sample_rate_hz, 0

    def open(self, container: av.container.OutputContainer) -> None:
        self.container = container
        self.stream = container.add_stream("aac", rate=self.rate, layout="mono")

    def write_until(self, time_s: float) -> None:
        """Encode whole AAC frames up to a time."""
        while self.position + _AAC_FRAME <= min(time_s * self.rate, len(self.samples)):
            self._encode(_AAC_FRAME)

    def close(self) -> None:
        """Encode what is left and flush."""
        while self.position < len(self.samples):
            self._encode(min(_AAC_FRAME, len(self.samples) - self.position))
        self.container.mux(self.stream.encode(None))

    def _encode(self, count: int) -> None:
        chunk = self.samples[None, self.position : self.position + count]
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(chunk), format="fltp", layout="mono"
        )
        frame.sample_rate, frame.pts = self.rate, self.position
        frame.time_base = Fraction(1, self.rate)
        self.container.mux(self.stream.encode(frame))
        self.position += count
