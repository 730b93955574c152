"""Streaming video decoding: frames by presentation time, upright, at a wanted rate (PyAV).

Times are seconds after the first video frame, whatever the container says its rate is. Frames are
uint8 RGB [H, W, 3], one at a time; a video is never held in memory. A photo is a one-frame video.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import av.container
import numpy as np
from av.video.stream import VideoStream
from numpy.typing import NDArray

from nfs.errors import ClipError
from nfs.media.images import is_photo, read_photo
from nfs.media.writer import VideoWriter

__all__ = ["VideoInfo", "VideoWriter", "open_media", "probe", "read_frames", "video_stream"]

VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg"})
_SEEK_MARGIN_S = 0.5
# How much of the declared length may be missing at the end before the file counts as truncated.
_MISSING_END_S = 0.5
# The last frame is shown as long as the one before it, but not longer than this.
_LONGEST_HOLD_S = 0.5
# Read at once from an opened file, which may be far away.
_BUFFER_BYTES = 1 << 20
# No decoder has this name: sizes are then what the header says, and nothing is decoded.
_NO_DECODER = {"codec_whitelist": "none"}

TimedFrame = tuple[float, NDArray[np.uint8]]


@dataclass(frozen=True)
class VideoInfo:
    """What a file holds, from its headers and first frame.

    `fps` and `duration_s` are the container's claim (0 for a photo); sizes are after rotation.
    `rotation_deg` is how far frames are turned counter-clockwise to stand upright.
    """

    width_px: int
    height_px: int
    fps: float
    duration_s: float
    has_audio: bool
    rotation_deg: int
    is_photo: bool


def probe(path: str | Path, *, file: Any = None, max_pixels: int | None = None) -> VideoInfo:
    """Read headers and decode one frame.

    Args:
        path: Video or photo.
        file: The video opened for reading, with `seek`; `path` is then only its name.
        max_pixels: Refuse a video of larger frames (width times height) before one is decoded.

    Raises:
        ClipError: `decode_error` or `no_video`.
    """
    if is_photo(path):
        height, width = read_photo(path).shape[:2]
        return VideoInfo(width, height, 0.0, 0.0, has_audio=False, rotation_deg=0, is_photo=True)
    with open_media(path, file=file, max_pixels=max_pixels) as container:
        stream = video_stream(container, path)
        if max_pixels is not None:
            _check_size(stream, path, file, max_pixels)
        frame = next(_decoded(container, stream, path), None)
        if frame is None:
            raise ClipError("decode_error", f"{path}: no frame could be decoded")
        turned = frame.rotation % 180 != 0
        return VideoInfo(
            width_px=frame.height if turned else frame.width,
            height_px=frame.width if turned else frame.height,
            fps=float(stream.average_rate or stream.guessed_rate or 0.0),
            duration_s=_declared_duration_s(container, stream) or 0.0,
            has_audio=len(container.streams.audio) > 0,
            rotation_deg=frame.rotation,
            is_photo=False,
        )


def read_frames(
    path: str | Path,
    *,
    fps: float | None = None,
    start_s: float = 0.0,
    end_s: float | None = None,
    threads: int = 1,
    max_pixels: int | None = None,
) -> Iterator[TimedFrame]:
    """Yield (time_s, frame uint8 RGB [H, W, 3]) in display order.

    Args:
        path: Video or photo (one frame at time 0).
        fps: Resample to this rate: frame k is the one nearest in time to start_s + k / fps, and
            its time_s is exactly that; the same array is yielded again where a frame repeats.
            None keeps the frames and times of the file.
        start_s: First time wanted.
        end_s: Time at which to stop (exclusive); None reads to the end.
        threads: Decoder threads.
        max_pixels: As of `probe`; also ends a video whose frames become much larger part-way.

    Raises:
        ClipError: `no_video`; `decode_error` if the file is no video, or breaks off or turns
            undecodable part-way (the message names frame and time).
    """
    if is_photo(path):
        yield 0.0, read_photo(path)
        return
    frames = _source_frames(path, start_s, end_s, threads, max_pixels)
    if fps is None:
        yield from (item for item in frames if item[0] >= start_s - 1e-6)
    else:
        yield from _nearest(frames, fps, start_s, end_s)


def open_media(
    path: str | Path, *, file: Any = None, max_pixels: int | None = None
) -> av.container.InputContainer:
    """Open a container for reading.

    Args:
        path: Its file.
        file: The container opened for reading, with `seek`; `path` is then only its name.
        max_pixels: Decoders refuse frames that are much larger; opening may decode some.

    Raises:
        ClipError: `decode_error` if it is missing, unreadable or not a media file.
    """
    return _open(path, file, {} if max_pixels is None else _decoder_limit(max_pixels))


def _open(path: str | Path, file: Any, options: dict[str, str]) -> av.container.InputContainer:
    try:
        return av.open(
            str(path) if file is None else file,
            mode="r",
            metadata_errors="ignore",
            options=options,
            buffer_size=_BUFFER_BYTES,
        )
    except (av.error.FFmpegError, OSError) as error:
        message = f"{path}: cannot be opened as video or audio: {reason_of(error)}"
        raise ClipError("decode_error", message) from None


def video_stream(container: av.container.InputContainer, path: str | Path) -> VideoStream:
    """Return the first real video stream (cover pictures of audio files do not count).

    Raises:
        ClipError: `no_video`.
    """
    for stream in container.streams.video:
        if stream.disposition & av.stream.Disposition.attached_pic:
            continue
        if stream.codec_context is None:
            raise ClipError(
                "decode_error", f"{path}: its video stream is damaged or of an unknown codec"
            )
        return stream
    raise ClipError("no_video", f"{path}: has no video stream")


def origin_s(container: av.container.InputContainer) -> float:
    """Return the presentation time of the first video frame, by the header; 0 without video."""
    for stream in container.streams.video:
        if stream.start_time is not None and stream.time_base is not None:
            return float(stream.start_time * stream.time_base)
    return 0.0


def _check_size(stream: VideoStream, path: str | Path, file: Any, max_pixels: int) -> None:
    """Refuse frames of more than `max_pixels`, by the header, before one is decoded."""
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height == 0:  # the decoder has refused the size already
        if file is not None:
            file.seek(0)
        with _open(path, file, _NO_DECODER) as container:
            declared = video_stream(container, path).codec_context
            width, height = declared.width, declared.height
    if width * height > max_pixels:
        raise ClipError(
            "decode_error",
            f"{path}: declares frames of {width} x {height} pixels, {width * height} in all, more "
            f"than the limit of {max_pixels} (clip.max_frame_pixels)",
        )
    stream.codec_context.options = _decoder_limit(max_pixels)


def _decoder_limit(max_pixels: int) -> dict[str, str]:
    """Return the option for decoders, which count the padding of their buffers, too."""
    return {"max_pixels": str(2 * max_pixels + (1 << 16))}


def _source_frames(
    path: str | Path, start_s: float, end_s: float | None, threads: int, max_pixels: int | None
) -> Iterator[TimedFrame]:
    """Yield frames from a little before `start_s` to a little after `end_s`."""
    with open_media(path, max_pixels=max_pixels) as container:
        stream = video_stream(container, path)
        if max_pixels is not None:
            _check_size(stream, path, None, max_pixels)
        stream.codec_context.thread_count = threads
        origin = origin_s(container)
        if start_s > 2 * _SEEK_MARGIN_S and stream.time_base is not None:
            target_s = origin + start_s - _SEEK_MARGIN_S
            container.seek(int(target_s / stream.time_base), stream=stream)
        time_s, last_s, interval_s = 0.0, None, 1.0 / float(stream.average_rate or 25)
        for count, frame in enumerate(_decoded(container, stream, path)):
            has_time = frame.pts is not None
            time_s = frame.time - origin if has_time else count * interval_s
            last_s = time_s
            if time_s < start_s - _SEEK_MARGIN_S:
                continue
            yield time_s, _upright(frame)
            if end_s is not None and time_s > end_s + interval_s:
                return
        _check_complete(container, stream, path, last_s)


def _decoded(
    container: av.container.InputContainer, stream: VideoStream, path: str | Path
) -> Iterator[av.VideoFrame]:
    count, time_s = 0, 0.0
    try:
        for frame in container.decode(stream):
            if frame.is_corrupt and count == 0:
                continue  # a stream cut or entered between key frames begins like this
            if frame.is_corrupt:
                raise ClipError("decode_error", _broken(path, count, time_s, "damaged frame"))
            count, time_s = count + 1, frame.time or time_s
            yield frame
    except (av.error.FFmpegError, OSError) as error:
        raise ClipError("decode_error", _broken(path, count, time_s, reason_of(error))) from None


def _check_complete(
    container: av.container.InputContainer,
    stream: VideoStream,
    path: str | Path,
    last_s: float | None,
) -> None:
    """Raise when the stream ended well before the length that the header declares."""
    if last_s is None:
        raise ClipError("decode_error", f"{path}: no frame could be decoded")
    declared_s = _declared_duration_s(container, stream)
    interval_s = 1.0 / float(stream.average_rate or 25)
    if declared_s is not None and last_s + interval_s < declared_s - max(
        _MISSING_END_S, 3 * interval_s
    ):
        reason = f"the file is truncated: its header declares {declared_s:.2f} s"
        raise ClipError("decode_error", f"{path}: broke off at {last_s:.2f} s: {reason}")


def _declared_duration_s(
    container: av.container.InputContainer, stream: VideoStream
) -> float | None:
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None:
        return container.duration / av.time_base if not container.streams.audio else None
    return None


def reason_of(error: Exception) -> str:
    """Return the reason of an FFmpeg or system error, without its number."""
    return getattr(error, "strerror", None) or str(error)


def _broken(path: str | Path, frame: int, time_s: float, reason: str) -> str:
    return f"{path}: broke off after frame {frame} at {time_s:.2f} s: {reason}"


def _upright(frame: av.VideoFrame) -> NDArray[np.uint8]:
    image = frame.to_ndarray(format="rgb24")
    if frame.rotation == 0:
        return image
    return np.ascontiguousarray(np.rot90(image, k=round(frame.rotation / 90) % 4))


def _nearest(
    frames: Iterator[TimedFrame], fps: float, start_s: float, end_s: float | None
) -> Iterator[TimedFrame]:
    """Resample a stream to the times start_s + k / fps, taking the frame nearest to each."""
    index, previous = 0, None
    interval_s = 0.0
    for time_s, image in frames:
        if previous is not None:
            interval_s = time_s - previous[0]
            middle = 0.5 * (previous[0] + time_s)
            while (target := start_s + index / fps) < middle - 1e-9:
                if end_s is not None and target >= end_s - 1e-9:
                    return
                yield target, previous[1]
                index += 1
        previous = (time_s, image)
    if previous is None:
        return
    stop_s = previous[0] + min(interval_s or 1.0 / fps, _LONGEST_HOLD_S) - 1e-9
    stop_s = stop_s if end_s is None else min(stop_s, end_s - 1e-9)
    while (target := start_s + index / fps) < stop_s:
        yield target, previous[1]
        index += 1
