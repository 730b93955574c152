"""Clips for tests: cut from the shared recordings, or with an odd header."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from nfs.media.audio import read_audio
from nfs.media.video import read_frames
from nfs.media.writer import VideoWriter

RATE_HZ = 16000


def cut_clips(source: Path, folder: Path, count: int, *, seconds: float = 0.4) -> list[Path]:
    """Write `count` clips of a talking face, one after the other in the source."""
    audio = read_audio(source, RATE_HZ)
    paths = []
    for index in range(count):
        start = index * seconds
        frames = [f for _, f in read_frames(source, fps=25.0, start_s=start, end_s=start + seconds)]
        samples = audio.cut(start, int(seconds * RATE_HZ))
        path = folder / f"clip_{index:02d}.mp4"
        with VideoWriter(path, 25.0, frames[0].shape[:2], (samples, RATE_HZ)) as writer:
            for frame in frames:
                writer.write(frame)
        paths.append(path)
    return paths


def huge_video(path: Path, side_px: int) -> Path:
    """Write a small AVI of one frame whose header declares `side_px` squared."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("huffyuv", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv422p"
        frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    data = bytearray(path.read_bytes())
    size = data.index(b"strf") + 12  # width and height in the BITMAPINFOHEADER
    assert struct.unpack_from("<ii", data, size) == (64, 48)
    struct.pack_into("<ii", data, size, side_px, side_px)
    path.write_bytes(data)
    return path
