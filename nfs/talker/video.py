"""Rendered units to a video, a contact sheet and their files."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nfs.artifacts import Store
from nfs.media.images import decode_jpeg, encode_png, image_grid
from nfs.media.writer import VideoWriter
from nfs.talker.finish import add_watermark, resize_frame

Frame = NDArray[np.uint8]
MAX_SHEET_SIDE_PX = 256


@dataclass(frozen=True)
class VideoStyle:
    """How pictures become a file."""

    fps: float
    """Frames per second."""
    size_px: int
    """Side of the video, even."""
    watermark: bool
    """Whether the text is painted."""
    comment: str | None
    """Comment tag of the file."""


def stored_frames(store: Store, table: str, keys: Sequence[str]) -> Iterator[Frame]:
    """Yield the pictures of all units in order, one row group in memory at a time."""
    for key in keys:
        with store.open_parquet(f"{table}/{key}.parquet") as parquet:
            for group in range(parquet.num_row_groups):
                rows = parquet.read_row_group(group, columns=["image_png"])
                for data in rows["image_png"]:
                    yield decode_jpeg(data.as_py())


def write_video(
    store: Store,
    path: str,
    frames: Iterable[Frame],
    *,
    style: VideoStyle,
    audio: tuple[NDArray[np.floating], int] | None,
    sheet_indices: Sequence[int],
) -> list[Frame]:
    """Encode frames as they come and return the finished ones at `sheet_indices`.

    Args:
        store: Where the video goes.
        path: Its place in the store.
        frames: uint8 `[H, H, 3]`.
        style: Size, disclosure, rate.
        audio: (mono samples, rate in Hz), starting with frame 0.
        sheet_indices: Frames to keep for the contact sheet.
    """
    wanted, kept = set(sheet_indices), []
    with tempfile.TemporaryDirectory(prefix="nfs-render-") as folder:
        temporary = Path(folder) / "video.mp4"
        size = (style.size_px, style.size_px)
        with VideoWriter(temporary, style.fps, size, audio, comment=style.comment) as writer:
            for index, frame in enumerate(frames):
                finished = finish_frame(frame, style)
                writer.write(finished)
                if index in wanted:
                    kept.append(finished)
        store.write_bytes(path, temporary.read_bytes())
    return kept


def finish_frame(frame: Frame, style: VideoStyle) -> Frame:
    """Return a picture of the video: resized, and marked when the style says so."""
    resized = resize_frame(frame, style.size_px)
    return add_watermark(resized) if style.watermark else resized


def write_sheet(store: Store, path: str, frames: Sequence[Frame]) -> Frame:
    """Write a contact sheet and return it."""
    small = [resize_frame(f, min(f.shape[0], MAX_SHEET_SIDE_PX)) for f in frames]
    sheet = image_grid(small)
    store.write_bytes(path, encode_png(sheet))
    return sheet


def spread(count: int, wanted: int) -> list[int]:
    """Return up to `wanted` different indices, evenly spread over `range(count)`."""
    return sorted(set(np.linspace(0, count - 1, min(wanted, count)).round().astype(int).tolist()))
