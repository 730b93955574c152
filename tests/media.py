"""Short real clips for job tests, cut from the shared recordings into a temporary folder."""

from __future__ import annotations

from pathlib import Path

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
