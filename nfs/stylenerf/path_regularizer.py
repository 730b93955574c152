"""The NeRF-path regulariser: keeps the 2-D stack consistent with the radiance field.

Along some rays every sample's features go through the 2-D blocks without upsampling; the colours,
composited as usual, should be those of the image at the rays' pixels (Gu et al. 2022, section 3.3;
spec/stylenerf.md 2.6).

Legend: B batch, n regulariser pixels per side, K = n * n rays, S samples per ray (all passes and
the background), C feature channels, R current image resolution.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nfs.geometry.rays import pixel_grid
from nfs.stylenerf.field import RGB_CHANNELS
from nfs.stylenerf.rendering import RaySamples
from nfs.stylenerf.upsampler import Upsampler


@dataclass(frozen=True)
class StridedPixels:
    """An evenly spaced sub-grid of an image's pixels, shifted at random per image."""

    coordinates: Tensor
    """`[B, K, 2]` (x right, y up) in (-1, 1)."""
    index: Tensor
    """`[B, K]` position in the flattened image."""


def strided_pixels(resolution: int, count: int, uniforms: Tensor) -> StridedPixels:
    """Return `count` x `count` pixels of an image of `resolution`.

    Args:
        resolution: Pixels per side of the image, R.
        count: Pixels per side of the sub-grid, n.
        uniforms: Shift (x, y) in strides, `[B, 2]` in [0, 1).

    Raises:
        ValueError: If the image has fewer pixels than the sub-grid.
    """
    stride = resolution // count
    if stride == 0:
        raise ValueError(f"{count} regulariser pixels per side exceed an image of {resolution} px")
    shift = (uniforms * stride).floor().long()
    grid = torch.arange(count, device=uniforms.device) * stride
    column = (grid + shift[:, :1])[:, None, :]
    row = (grid + shift[:, 1:])[:, :, None]
    index = (row * resolution + column).flatten(1)
    return StridedPixels(pixel_grid(resolution, device=uniforms.device)[index], index)


def path_loss(
    upsampler: Upsampler,
    samples: RaySamples,
    ws: Tensor,
    target: tuple[Tensor, StridedPixels],
    *,
    fade: float | Tensor | None = None,
    white: bool = False,
) -> Tensor:
    """Return the squared difference `[B]` between the image and colours composited late.

    Args:
        upsampler: The 2-D stack.
        samples: The rays of the pixels.
        ws: Styles of the 2-D stack `[B, num_ws, w_dim]`.
        target: The image `[B, 3, R, R]` and the pixels of the rays.
        fade: Weight of the newest block's colour against the one before; None: the newest alone,
            as the original compares even while its image fades (Q13).
        white: Rays that may stay empty end on white.
    """
    image, pixels = target
    count = int(pixels.index.shape[1] ** 0.5)
    maps = _tile(samples.features, count)
    image_low, features = maps[:, :RGB_CHANNELS], maps[:, RGB_CHANNELS:]
    colours = upsampler(features, image_low, ws, limit=image.shape[-1], double=False)
    colour = colours[-1] if colours else image_low
    if fade is not None and colours:
        colour = ([image_low, *colours])[-2] * (1 - fade) + colour * fade
    rgb = (_untile(colour, count) * samples.weights[..., None]).sum(dim=2)
    if white:
        rgb = rgb + (1 - samples.weights.sum(dim=2, keepdim=True))
    index = pixels.index[:, None].expand(-1, RGB_CHANNELS, -1)
    seen = image.flatten(2).gather(2, index).transpose(1, 2)
    return 2 * (seen - rgb).square().sum(dim=2).mean(dim=1)


def _tile(values: Tensor, count: int) -> Tensor:
    """Lay `[B, K, S, C]` out as an image `[B, C, a n, b n]`, with a * b = S nearly square."""
    batch, _, samples, channels = values.shape
    rows = max(r for r in range(1, int(samples**0.5) + 1) if samples % r == 0)
    grid = values.reshape(batch, count, count, rows, samples // rows, channels)
    return grid.permute(0, 5, 3, 1, 4, 2).reshape(batch, channels, rows * count, -1)


def _untile(image: Tensor, count: int) -> Tensor:
    """Undo `_tile`."""
    batch, channels, height, width = image.shape
    grid = image.reshape(batch, channels, height // count, count, width // count, count)
    return grid.permute(0, 3, 5, 2, 4, 1).reshape(batch, count * count, -1, channels)
