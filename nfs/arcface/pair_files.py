"""Verification sets: `.bin` files of JPEG pairs, read without running what a pickle asks for.

Pair i is images 2i and 2i + 1 (spec/arcface.md 2.11).
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nfs.errors import InputError
from nfs.media.images import decode_jpeg

SIZE_PX = 112
# Everything that the files in use ask for; anything else could run code.
_ALLOWED = {
    (module, name)
    for package in ("numpy.core", "numpy._core")
    for module, name in ((f"{package}.multiarray", "_reconstruct"),)
} | {("numpy", "ndarray"), ("numpy", "dtype")}


class _PairUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        if name == "_reconstruct":
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined] # private in numpy's stubs
        return getattr(np, name)


@dataclass(frozen=True)
class PairSet:
    """Encoded images `[2n]` and whether pairs show one person `[n]`."""

    name: str
    images: list[bytes]
    same: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.same)


def read_pairs(path: str | Path) -> PairSet:
    """Read a `.bin` file: lists of bytes or uint8 arrays, from Python 2 or 3.

    Raises:
        InputError: If it is missing, asks for anything but plain data and numpy arrays, or has
            another structure.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{path}: no such verification set")
    try:
        content = _PairUnpickler(io.BytesIO(file.read_bytes()), encoding="bytes").load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, IndexError, KeyError) as error:
        raise InputError(f"{path}: not a plain verification set: {error}") from None
    except (AttributeError, ImportError, MemoryError, OverflowError) as error:
        raise InputError(f"{path}: damaged verification set: {error}") from None
    if not (isinstance(content, tuple | list) and len(content) == 2):
        raise InputError(f"{path}: holds no pair of image list and label list")
    images, same = content
    if len(images) != 2 * len(same) or not len(same):
        raise InputError(f"{path}: {len(images)} images do not make {len(same)} pairs")
    plain = [_bytes(path, number, image) for number, image in enumerate(images)]
    return PairSet(file.stem, plain, np.asarray([bool(s) for s in same]))


def write_pairs(path: str | Path, images: Sequence[bytes], same: Sequence[bool]) -> None:
    """Write a `.bin` file that the original reads too.

    Raises:
        ValueError: If images do not make pairs.
    """
    if len(images) != 2 * len(same):
        raise ValueError(f"{len(images)} images do not make {len(same)} pairs")
    data = pickle.dumps((list(map(bytes, images)), [bool(s) for s in same]), protocol=4)
    target = Path(path)
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.write_bytes(data)
    temporary.replace(target)


def draw_pairs(
    recordings: Sequence[Sequence[int]], num_pairs: int, rng: np.random.Generator
) -> tuple[list[tuple[int, int]], list[bool]]:
    """Draw pairs of (identity, image), alternately of one person and of two.

    Two images of one person come from two recordings where the person has them. Else they lie at
    least a third of the recording apart: neighbouring frames are the same picture.

    Args:
        recordings: Per identity the recording (clip or photo) of each image, in order of time.
        num_pairs: Pairs.
        rng: Source of the choice.

    Raises:
        InputError: If there are not two identities, one of them with two images.
    """
    repeated = [i for i, images in enumerate(recordings) if len(images) > 1]
    if len(recordings) < 2 or not repeated:
        raise InputError("pairs need two identities, at least one of them with two images")
    images: list[tuple[int, int]] = []
    same = [number % 2 == 0 for number in range(num_pairs)]
    for one_person in same:
        if one_person:
            identity = repeated[int(rng.integers(len(repeated)))]
            images += [(identity, i) for i in _two_images(recordings[identity], rng)]
        else:
            chosen = rng.choice(len(recordings), 2, replace=False)
            images += [(int(i), int(rng.integers(len(recordings[i])))) for i in chosen]
    return images, same


def _two_images(recordings: Sequence[int], rng: np.random.Generator) -> tuple[int, int]:
    of = np.asarray(recordings)
    different = np.unique(of)
    if len(different) > 1:
        first, second = (
            int(rng.choice(np.flatnonzero(of == r)))
            for r in rng.choice(different, 2, replace=False)
        )
        return first, second
    gap = max(1, len(of) // 3)
    first = int(rng.integers(len(of) - gap))
    return first, int(rng.integers(first + gap, len(of)))


def decode_pair_image(data: bytes, where: str = "image") -> NDArray[np.uint8]:
    """Decode to uint8 RGB `[112, 112, 3]`; other sizes are resized as the original does.

    Raises:
        InputError: If it is not a picture, or not square.
    """
    try:
        pixels = decode_jpeg(data)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
    if pixels.shape[1] != SIZE_PX:
        pixels = resize_short_side(pixels, SIZE_PX)
    if pixels.shape[:2] != (SIZE_PX, SIZE_PX):
        raise InputError(
            f"{where}: {pixels.shape[1]} x {pixels.shape[0]} px after resizing; need a square image"
        )
    return pixels


def resize_short_side(pixels: NDArray[np.uint8], size_px: int) -> NDArray[np.uint8]:
    """Resize uint8 `[H, W, 3]`, short side to `size_px`: bicubic without antialiasing."""
    height, width = pixels.shape[:2]
    short = min(height, width)
    size = (size_px * height // short, size_px * width // short)
    tensor = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None].float()
    resized = torch.nn.functional.interpolate(tensor, size=size, mode="bicubic")
    return resized[0].round().clamp(0, 255).byte().permute(1, 2, 0).numpy()


def _bytes(path: str | Path, number: int, image: object) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, np.ndarray) and image.dtype == np.uint8:
        return image.tobytes()
    raise InputError(f"{path}: image {number} is a {type(image).__name__}, not encoded bytes")
