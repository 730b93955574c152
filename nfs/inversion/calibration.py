"""The stop threshold of tuning, measured on the target itself.

A threshold belongs to one backend, one resolution and one kind of picture: 0.06 is LPIPS-alex at
1024 px. Here the unit is the distance of the target to copies that look the same to a person.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from nfs.media.images import decode_jpeg, encode_jpeg, to_float, to_uint8
from nfs.perceptual.protocol import ImageDistance

JPEG_QUALITY = 75


@dataclass(frozen=True)
class Calibration:
    """Distances of images to near copies of themselves.

    Attributes:
        jpeg: Median over frames of the distance to the JPEG-75 copy.
        shift: Median over frames and four directions of the distance to the 1 px shifted copy.
        unit: Median over all of these copies; the stop threshold is a factor times this.
    """

    jpeg: float
    shift: float
    unit: float


@torch.no_grad()
def calibrate(distance: ImageDistance, images: Tensor) -> Calibration:
    """Measure the distance of images to JPEG-75 and 1 px shifted copies.

    Args:
        distance: Perceptual backend.
        images: `[T, 3, H, H]` in [-1, 1].
    """
    features = distance.features(images)
    jpeg = distance.distance(features, distance.features(jpeg_copy(images)))
    shifts = [
        distance.distance(features, distance.features(shifted_copy(images, dx, dy)))
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1))
    ]
    every = torch.stack([jpeg, *shifts])
    return Calibration(
        float(jpeg.median()), float(torch.stack(shifts).median()), float(every.median())
    )


def jpeg_copy(images: Tensor, quality: int = JPEG_QUALITY) -> Tensor:
    """Return images after JPEG compression."""
    pixels = [decode_jpeg(encode_jpeg(image, quality)) for image in to_uint8(images)]
    return torch.cat([to_float(image[None]) for image in pixels]).to(images)


def shifted_copy(images: Tensor, right_px: int, down_px: int) -> Tensor:
    """Return images moved by whole pixels; the border is repeated."""
    height, width = images.shape[-2:]
    reach = max(abs(right_px), abs(down_px))
    padded = functional.pad(images, (reach, reach, reach, reach), mode="replicate")
    top, left = reach - down_px, reach - right_px
    return padded[:, :, top : top + height, left : left + width]
