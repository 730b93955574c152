"""Orbit videos: faces side by side over their depths, frame by frame.

Legend: B batch, K faces, F frames, R image side in pixels, h and w of the depth map.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from nfs.media.images import image_grid
from nfs.media.writer import VideoWriter
from nfs.stylenerf.views import Gallery, depth_levels, quantised


def orbit_rows(
    gallery: Gallery, positions: Sequence[int], *, num_subjects: int, num_frames: int
) -> dict[str, Tensor]:
    """Render orbit positions (`Gallery.orbit`).

    Returns:
        `image` uint8 `[B, 3, R, R]` and `depth` uint8 `[B, 1, h, w]`.
    """
    rendering = gallery.orbit(positions, num_subjects=num_subjects, num_frames=num_frames)
    return {
        "image": quantised(rendering.image),
        "depth": depth_levels(rendering.depth, gallery.generator.spec.depth_range),
    }


def orbit_frames(rows: Mapping[str, Tensor], num_subjects: int) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames that rows of whole frames make: K faces over K depths, even sides."""
    images = rows["image"].unflatten(0, (-1, num_subjects))
    depths = rows["depth"].unflatten(0, (-1, num_subjects))
    for faces, maps in zip(images, depths, strict=True):
        size_px = faces.shape[-1]
        cells = [picture(face, size_px) for face in faces]
        cells += [picture(depth, size_px) for depth in maps]
        frame = image_grid(cells, columns=num_subjects, gap_px=0)
        height, width = frame.shape[:2]
        yield frame[: height - height % 2, : width - width % 2]


def write_frames(
    file: str | Path, frames: Iterable[NDArray[np.uint8]], fps: float, comment: str | None = None
) -> int:
    """Write frames of one size as mp4 and return their number.

    Args:
        file: Target; its folder is made.
        frames: uint8 `[H, W, 3]`, even sides.
        fps: Frames per second.
        comment: Text of the file's comment tag.
    """
    frames = iter(frames)
    first = next(frames)
    with VideoWriter(file, fps, (first.shape[0], first.shape[1]), comment=comment) as writer:
        writer.write(first)
        for frame in frames:
            writer.write(frame)
        return writer.num_frames


def picture(levels: Tensor, size_px: int) -> NDArray[np.uint8]:
    """Return uint8 `[C, h, w]`, C 1 or 3, as a picture `[size_px, size_px, 3]` of hard pixels."""
    image = levels.expand(3, -1, -1).permute(1, 2, 0).cpu().numpy()
    rows = (np.arange(size_px) + 0.5) * image.shape[0] / size_px
    columns = (np.arange(size_px) + 0.5) * image.shape[1] / size_px
    return np.ascontiguousarray(image[rows.astype(int)][:, columns.astype(int)])
