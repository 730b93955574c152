"""Reference crops of the originals with Pillow (spec/face_and_media.md 2.4, 2.5).

Landmarks are index coordinates as dlib gives them (the centre of the first pixel is 0). Clips use
`nfs.face.align.ffhq_square` and one antialiased warp instead; this is the published picture path.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from nfs.face.align import ffhq_square

Box = tuple[int, int, int, int]
_SADTALKER_SIZE = 512


def ffhq_crop_reference(
    image: NDArray[np.uint8], landmarks_index: NDArray[np.floating], size_px: int
) -> NDArray[np.uint8]:
    """Return the FFHQ crop uint8 [size, size, 3] exactly as the published recipe makes it.

    Args:
        image: uint8 RGB [H, W, 3].
        landmarks_index: [68, 2].
        size_px: Output side.
    """
    quad, side = _quad(landmarks_index)
    picture = Image.fromarray(image)
    picture, quad, side = _shrink(picture, quad, side, size_px)
    border = max(int(np.rint(side * 0.1)), 3)
    box = _crop_box(quad, border, picture.size)
    if box[2] - box[0] < picture.width or box[3] - box[1] < picture.height:
        picture = picture.crop(box)
        quad = quad - box[:2]
    picture, quad = _pad_blended(picture, quad, side, border)
    corners = tuple(float(v) for v in (quad + 0.5).ravel())
    square = (size_px, size_px)
    cropped = picture.transform(square, Image.Transform.QUAD, corners, Image.Resampling.BILINEAR)
    return np.asarray(cropped)


@dataclass(frozen=True)
class SadtalkerCrop:
    """Axis-aligned crop of a clip: resize to `resized` (w, h), cut `crop`, then int(`quad`)."""

    resized: tuple[int, int]
    crop: Box
    quad: tuple[float, float, float, float]


def sadtalker_crop(
    size: tuple[int, int],
    landmarks_index: NDArray[np.floating],
    *,
    size_px: int = _SADTALKER_SIZE,
    published: bool = True,
) -> SadtalkerCrop:
    """Return SadTalker's crop rectangles from the landmarks [68, 2] of one frame (spec 2.5).

    Args:
        size: (width, height) of the frame.
        landmarks_index: Landmarks of the frame that decides.
        size_px: Size that decides how much a large face is reduced first.
        published: Clamp the bottom by the width as the original does; otherwise by the height.
    """
    quad, side = _quad(landmarks_index)
    shrink = int(np.floor(side / size_px * 0.5))
    if shrink > 1:
        size = (int(np.rint(size[0] / shrink)), int(np.rint(size[1] / shrink)))
        quad, side = quad / shrink, side / shrink
    border = max(int(np.rint(side * 0.1)), 3)
    crop = _crop_box(quad, border, size)
    if crop[2] - crop[0] < size[0] or crop[3] - crop[1] < size[1]:
        quad = quad - crop[:2]
    flat = [float(v) for v in (quad + 0.5).ravel()]
    left, top = max(min(flat[0], flat[2]), 0.0), max(min(flat[1], flat[7]), 0.0)
    right = min(max(flat[4], flat[6]), float(size[0]))
    bottom = min(max(flat[3], flat[5]), float(size[0] if published else size[1]))
    return SadtalkerCrop(size, crop, (left, top, right, bottom))


def _quad(landmarks_index: NDArray[np.floating]) -> tuple[NDArray[np.float64], float]:
    square = ffhq_square(landmarks_index)
    return square.quad(), float(np.hypot(*square.half_side) * 2)


def _shrink(
    picture: Image.Image, quad: NDArray[np.float64], side: float, size_px: int
) -> tuple[Image.Image, NDArray[np.float64], float]:
    shrink = int(np.floor(side / size_px * 0.5))
    if shrink <= 1:
        return picture, quad, side
    size = (int(np.rint(picture.width / shrink)), int(np.rint(picture.height / shrink)))
    return picture.resize(size, Image.Resampling.LANCZOS), quad / shrink, side / shrink


def _crop_box(quad: NDArray[np.float64], border: int, size: tuple[int, int]) -> Box:
    low, high = _extent(quad)
    return (
        max(low[0] - border, 0),
        max(low[1] - border, 0),
        min(high[0] + border, size[0]),
        min(high[1] + border, size[1]),
    )


def _extent(quad: NDArray[np.float64]) -> tuple[tuple[int, int], tuple[int, int]]:
    low, high = np.floor(quad.min(0)).astype(int), np.ceil(quad.max(0)).astype(int)
    return (int(low[0]), int(low[1])), (int(high[0]), int(high[1]))


def _pad_blended(
    picture: Image.Image, quad: NDArray[np.float64], side: float, border: int
) -> tuple[Image.Image, NDArray[np.float64]]:
    """Reflect the border where the square leaves the picture; blend into blur, then the median."""
    low, high = _extent(quad)
    outside = (
        max(border - low[0], 0),
        max(border - low[1], 0),
        max(high[0] - picture.width + border, 0),
        max(high[1] - picture.height + border, 0),
    )
    if max(outside) <= border - 4:
        return picture, quad
    left, top, right, bottom = np.maximum(outside, int(np.rint(side * 0.3)))
    amounts = ((int(top), int(bottom)), (int(left), int(right)), (0, 0))
    padded = np.pad(np.asarray(picture).astype(np.float32), amounts, mode="reflect")
    height, width = padded.shape[:2]
    y, x = np.ogrid[:height, :width]
    across = np.minimum(np.float32(x) / left, np.float32(width - 1 - x) / right)
    along = np.minimum(np.float32(y) / top, np.float32(height - 1 - y) / bottom)
    mask = np.maximum(1.0 - across, 1.0 - along)[:, :, None]
    blur = side * 0.02
    padded += (gaussian_filter(padded, [blur, blur, 0]) - padded) * np.clip(3 * mask + 1, 0, 1)
    padded += (np.median(padded, axis=(0, 1)) - padded) * np.clip(mask, 0, 1)
    whole = np.uint8(np.clip(np.rint(padded), 0, 255))
    return Image.fromarray(whole), quad + np.array([left, top])
