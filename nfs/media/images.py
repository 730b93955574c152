"""Pictures: decode, encode, value ranges, grids and the antialiased affine warp.

On disk and between stages images are uint8 RGB [H, W, 3]; in models float [-1, 1] [B, 3, H, W].
Positions are continuous pixels: pixel i covers [i, i + 1), its centre is i + 0.5.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from nfs.errors import ClipError

if TYPE_CHECKING:
    from torch import Tensor

PHOTO_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
_DEEP_GREY_MODES = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})
_BACKGROUND = (255, 255, 255)


def is_photo(path: str | Path) -> bool:
    """Return whether the file name is that of a still picture."""
    return Path(path).suffix.lower() in PHOTO_SUFFIXES


def read_photo(path: str | Path) -> NDArray[np.uint8]:
    """Read a picture as uint8 RGB [H, W, 3], upright (EXIF orientation applied).

    Grey becomes RGB, 16-bit becomes 8-bit (divided by 257), transparency is laid over white.

    Raises:
        ClipError: `decode_error` if the file is not a readable picture.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ClipError("decode_error", f"{path}: not a readable picture: {error}") from None


def decode_jpeg(data: bytes) -> NDArray[np.uint8]:
    """Decode JPEG, PNG or WebP bytes to uint8 RGB [H, W, 3].

    Raises:
        ValueError: If the bytes are not a whole picture.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return _to_rgb(image)
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{len(data)} bytes are not a readable picture: {error}") from None


def encode_jpeg(image: NDArray[np.uint8], quality: int = 95) -> bytes:
    """Encode uint8 RGB [H, W, 3] (or grey [H, W]) as JPEG without chroma subsampling.

    Args:
        image: Picture.
        quality: 1 to 100.
    """
    buffer = io.BytesIO()
    Image.fromarray(_checked(image)).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """Encode uint8 [H, W, 3] or [H, W] as PNG (lossless)."""
    buffer = io.BytesIO()
    Image.fromarray(_checked(image)).save(buffer, "PNG")
    return buffer.getvalue()


def to_uint8(images: Tensor) -> NDArray[np.uint8]:
    """Convert model images [B, C, H, W] in [-1, 1] to uint8 [B, H, W, C] (clipped, rounded)."""
    levels = ((images.detach().float() + 1.0) * 127.5).round().clamp(0, 255)
    return levels.permute(0, 2, 3, 1).cpu().numpy().astype(np.uint8)


def to_float(images: NDArray[np.uint8]) -> Tensor:
    """Convert uint8 [B, H, W, C] to model images float32 [B, C, H, W] in [-1, 1]."""
    import torch

    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"expected uint8 [B, H, W, C], got {images.dtype} {images.shape}")
    channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return torch.from_numpy(channels_first).float() / 127.5 - 1.0


def image_grid(
    images: Sequence[NDArray[np.uint8]], *, columns: int | None = None, gap_px: int = 2
) -> NDArray[np.uint8]:
    """Return one uint8 RGB picture with the images in rows on white; smaller ones are centred.

    Args:
        images: uint8 [H, W, 3], sizes may differ.
        columns: Most images per row; by default about square, with as few empty places as can be.
        gap_px: Space between images.
    """
    if not images:
        raise ValueError("image_grid needs at least one image")
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    count = min(columns or _columns(len(images), width / height), len(images))
    rows = -(-len(images) // count)
    step_y, step_x = height + gap_px, width + gap_px
    sheet = np.full((rows * step_y - gap_px, count * step_x - gap_px, 3), _BACKGROUND, np.uint8)
    for index, image in enumerate(images):
        top = index // count * step_y + (height - image.shape[0]) // 2
        left = index % count * step_x + (width - image.shape[1]) // 2
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return sheet


def _columns(num_images: int, aspect: float) -> int:
    """Return the number of columns of a sheet that is at most about twice as wide as high."""
    square = int(np.ceil(np.sqrt(num_images / aspect)))
    widest = max(square, int(np.sqrt(2 * num_images / aspect)))
    return min(range(square, widest + 1), key=lambda count: (-num_images % count, count))


def warp_affine(
    image: NDArray[np.uint8],
    matrix: NDArray[np.floating],
    size_px: int | tuple[int, int],
    *,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
    antialias: bool = True,
) -> NDArray[np.uint8]:
    """Resample an image under an affine map; what lies outside is mirrored at the border.

    A reduction is done with a Hamming filter over the needed region, then the (near) unit-scale
    rest of the map with `resample`.

    Args:
        image: uint8 [H, W, 3] or [H, W].
        matrix: [2, 3] from source to output, continuous pixels.
        size_px: Output side, or (height, width).
        resample: Filter of the final step.
        antialias: Whether to filter before a reduction.
    """
    height, width = (size_px, size_px) if isinstance(size_px, int) else size_px
    inverse = invert_affine(matrix)
    scale = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    left, top, right, bottom = source_box(inverse, height, width, margin_px=3.0 + 3.0 / scale)
    region = Image.fromarray(mirror_crop(image, (left, top, right, bottom)))
    inverse = inverse - np.array([[0, 0, left], [0, 0, top]])
    if antialias and scale < 0.9:
        reduced = (max(round(region.width * scale), 1), max(round(region.height * scale), 1))
        ratio = np.array([[reduced[0] / region.width], [reduced[1] / region.height]])
        region = region.resize(reduced, Image.Resampling.HAMMING, reducing_gap=3.0)
        inverse = inverse * ratio
    coefficients = tuple(float(v) for v in inverse.ravel())
    warped = region.transform((width, height), Image.Transform.AFFINE, coefficients, resample)
    return np.asarray(warped)


def invert_affine(matrix: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the inverse of affine maps [..., 2, 3]."""
    linear = np.linalg.inv(np.asarray(matrix, np.float64)[..., :2])
    return np.concatenate([linear, -linear @ np.asarray(matrix)[..., 2:]], axis=-1)


def apply_affine(matrix: NDArray[np.floating], points: NDArray[np.floating]) -> NDArray[np.float64]:
    """Map points [..., N, 2] by affine maps [..., 2, 3]."""
    affine = np.asarray(matrix, np.float64)
    mapped: NDArray[np.float64] = points @ np.swapaxes(affine[..., :2], -1, -2)
    return mapped + affine[..., None, :, 2]


def source_box(
    inverse: NDArray[np.float64], height: int, width: int, margin_px: float
) -> tuple[int, int, int, int]:
    """Return the source rectangle that an output of this size needs, given output to source."""
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]], np.float64)
    mapped = apply_affine(inverse, corners)
    low = np.floor(mapped.min(axis=0) - margin_px).astype(int)
    high = np.ceil(mapped.max(axis=0) + margin_px).astype(int)
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def mirror_crop(image: NDArray[np.uint8], box: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """Return the rectangle (left, top, right, bottom); what lies outside is mirrored."""
    left, top, right, bottom = box
    height, width = image.shape[:2]
    if left >= 0 and top >= 0 and right <= width and bottom <= height:
        return np.ascontiguousarray(image[top:bottom, left:right])
    rows = _mirror_index(np.arange(top, bottom), height)
    columns = _mirror_index(np.arange(left, right), width)
    return np.ascontiguousarray(image[rows][:, columns])


def _mirror_index(index: NDArray[np.integer], size: int) -> NDArray[np.integer]:
    folded = np.mod(index, 2 * size)
    return np.where(folded < size, folded, 2 * size - 1 - folded)


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode in _DEEP_GREY_MODES:
        deep = np.clip(np.asarray(image, np.float64), 0, 65535)
        grey = np.round(deep / 257.0).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (*_BACKGROUND, 255)), rgba)
    return np.array(image.convert("RGB"))


def _checked(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if image.dtype != np.uint8 or image.ndim not in (2, 3):
        raise ValueError(f"expected uint8 [H, W, 3] or [H, W], got {image.dtype} {image.shape}")
    return np.ascontiguousarray(image)
