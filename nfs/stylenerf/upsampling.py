"""Doubling of a feature map: interpolations and small learned networks.

Legend: B batch, C channels, R resolution before doubling. Formulas: spec/stylenerf.md 2.2.

The networks' first layer is linear before its activation and commutes with copying pixels, so it
is applied at the low resolution: the same value at a quarter of the work.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nfs.stylenerf.layers import EqualConv2d, scaled_lrelu
from nfs.stylenerf.resampling import fir_filter

UpsampleMode = Literal[
    "default",
    "bilinear",
    "bilinear_all",
    "bilinear_ada",
    "bilinear_ada_blur",
    "nearest",
    "nearest_ada",
    "nearest_ada_blur",
    "bicubic",
    "bicubic_ada",
    "bicubic_ada_blur",
    "pixelshuffle",
    "pixelshuffle_noblur",
    "nn_cat",
    "nn_cat_noblur",
    "liif",
]
"""How a layer doubles its output; the names of the original.

`default`: inside the convolution, as StyleGAN2. `_all` and `_ada` of bilinear: the image is doubled
bilinearly too. `_ada`: followed by a small residual network; `_ada_blur`: and a 3x3 blur.
"""
UPSAMPLE_MODES: tuple[str, ...] = get_args(UpsampleMode)
_ADA_CHANNELS = 8


def build_upsampling(mode: str, channels: int, resolution: int) -> nn.Module | None:
    """Return the module that doubles `[B, channels, R, R]`, or None for `default`.

    Args:
        mode: One of `UPSAMPLE_MODES`.
        channels: Channels in and out.
        resolution: Pixels per side after doubling.

    Raises:
        ValueError: Unknown mode.
    """
    if mode not in UPSAMPLE_MODES:
        raise ValueError(f"upsample_mode={mode!r} is unknown; use one of {UPSAMPLE_MODES}")
    kind = "nn_cat" if mode.startswith("nn_cat") else mode.split("_")[0]
    options = mode.removeprefix(kind).split("_")
    if kind == "default":
        return None
    if kind == "nn_cat":
        return NearestCatUpsample(channels, blur="noblur" not in options)
    if kind == "pixelshuffle":
        return PixelShuffleUpsample(channels, blur="noblur" not in options)
    if kind == "liif":
        return LiifUpsample(channels, resolution)
    return InterpolatedUpsample(
        channels, kind=kind, adapted="ada" in options, blur="blur" in options
    )


def doubles_image_bilinearly(mode: str) -> bool:
    """Return whether the image is doubled bilinearly instead of with the FIR filter."""
    return mode == "bilinear_all" or mode.startswith("bilinear_ada")


def double_bilinear(x: Tensor) -> Tensor:
    """Double `[B, C, R, R]` bilinearly; the corner pixels keep their places."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)


def _double_nearest(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def _diagonal_neighbours(x: Tensor) -> Tensor:
    """Return `[B, C, 2R, 2R]`: each sub-pixel is the mean of the two neighbours on its side."""
    padded = F.pad(x, (1, 1, 1, 1))
    left, up = padded[..., 1:-1, :-2], padded[..., :-2, 1:-1]
    down, right = padded[..., 2:, 1:-1], padded[..., 1:-1, 2:]
    corners = torch.stack([left + up, up + right, left + down, down + right], dim=2) / 2
    return F.pixel_shuffle(corners.flatten(1, 2), 2)


class NearestCatUpsample(nn.Module):
    """`nn_cat`: nearest pixels corrected by a network that also sees diagonal neighbours.

    Args:
        channels: Channels in and out.
        blur: Filter the result.
    """

    def __init__(self, channels: int, *, blur: bool = True) -> None:
        super().__init__()
        hidden = channels // 4
        self.squeeze = EqualConv2d(2 * channels, hidden, 1)
        self.expand = EqualConv2d(hidden, channels, 1, activation="linear")
        self.blur = blur

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, R, R]` to `[B, C, 2R, 2R]`."""
        channels = x.shape[1]
        weight = self.squeeze.scaled_weight()
        from_nearest = F.conv2d(x, weight[:, :channels], self.squeeze.bias)
        from_neighbours = F.conv2d(x, weight[:, channels:])
        hidden = scaled_lrelu(_double_nearest(from_nearest) + _diagonal_neighbours(from_neighbours))
        x = _double_nearest(x) + self.expand(hidden)
        return fir_filter(x) if self.blur else x


class PixelShuffleUpsample(nn.Module):
    """`pixelshuffle`: nearest pixels plus four predicted sub-pixels.

    Args:
        channels: Channels in and out.
        blur: Filter the result.
    """

    def __init__(self, channels: int, *, blur: bool = True) -> None:
        super().__init__()
        hidden = channels // 4
        self.squeeze = EqualConv2d(channels, hidden, 1)
        self.expand = EqualConv2d(hidden, 4 * channels, 1, activation="linear")
        self.blur = blur

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, R, R]` to `[B, C, 2R, 2R]`."""
        x = _double_nearest(x) + F.pixel_shuffle(self.expand(self.squeeze(x)), 2)
        return fir_filter(x) if self.blur else x


class InterpolatedUpsample(nn.Module):
    """Bilinear, bicubic or blurred nearest pixels, optionally with a residual network.

    Args:
        channels: Channels in and out.
        kind: `bilinear`, `bicubic` (corner pixels keep their places) or `nearest`.
        adapted: Add the residual network; it starts as zero.
        blur: Blur with [1, 2, 1] per axis after the network, reflecting at the border.
    """

    def __init__(self, channels: int, *, kind: str, adapted: bool, blur: bool) -> None:
        super().__init__()
        self.kind = kind
        self.blur = blur
        self.squeeze = self.expand = None
        if adapted:
            self.squeeze = EqualConv2d(channels, _ADA_CHANNELS, 1)
            self.expand = EqualConv2d(_ADA_CHANNELS, channels, 1, activation="linear")
            nn.init.zeros_(self.expand.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, R, R]` to `[B, C, 2R, 2R]`."""
        if self.kind == "nearest":
            x = fir_filter(_double_nearest(x))
        else:
            x = F.interpolate(x, scale_factor=2.0, mode=self.kind, align_corners=True)
        if self.squeeze is None or self.expand is None:
            return x
        x = x + self.expand(self.squeeze(x))
        return _binomial_blur(x) if self.blur else x


class LiifUpsample(nn.Module):
    """`liif`: each new pixel is a network's answer at four old pixels, blended by area.

    The network sees a pixel's features and the way from it to the new pixel. After Chen et al.
    2021 (LIIF), but the weight of a corner is the area towards that same corner, as in the
    original.

    Args:
        channels: Channels in and out.
        resolution: Pixels per side after doubling.
    """

    corners: Tensor
    differences: Tensor
    coefficients: Tensor

    def __init__(self, channels: int, resolution: int) -> None:
        super().__init__()
        hidden = channels // 2
        self.squeeze = EqualConv2d(channels + 2, hidden, 1)
        self.expand = EqualConv2d(hidden, channels, 1, activation="linear")
        self.resolution = resolution
        index = torch.arange(resolution)
        low = ((index - 1).div(2, rounding_mode="floor")).clamp_min(0)
        high = ((index + 1) // 2).clamp_max(resolution // 2 - 1)
        new, old = _centres(resolution), _centres(resolution // 2)
        corners, differences = [], []
        for rows in (low, high):
            for columns in (low, high):
                corners.append(rows[:, None] * (resolution // 2) + columns)
                # (x right, y up), as the network was trained to read it.
                y, x = torch.broadcast_tensors(
                    (old[rows] - new)[:, None], (new - old[columns])[None]
                )
                differences.append(torch.stack([x, y], dim=-1))
        ways = torch.stack(differences)
        areas = ways.prod(dim=-1).abs()
        self.register_buffer("corners", torch.stack(corners).flatten(), persistent=False)
        self.register_buffer("differences", ways, persistent=False)
        self.register_buffer("coefficients", areas / areas.sum(dim=0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, R, R]` to `[B, C, 2R, 2R]`.

        Raises:
            ValueError: If R is not half the resolution of the constructor.
        """
        batch, channels, height, width = x.shape
        if (height, width) != (self.resolution // 2,) * 2:
            raise ValueError(
                f"liif upsampling to {self.resolution} px got a map of {height}x{width}"
            )
        weight = self.squeeze.scaled_weight()
        at_pixels = F.conv2d(x, weight[:, :channels], self.squeeze.bias).flatten(2)
        at_corners = at_pixels[:, :, self.corners].reshape(batch, -1, 4, *(self.resolution,) * 2)
        way = torch.einsum("oi,khwi->okhw", weight[:, channels:, 0, 0], self.differences)
        hidden = scaled_lrelu(at_corners + way)
        return self.expand((hidden * self.coefficients).sum(dim=2))


def _centres(resolution: int) -> Tensor:
    """Pixel centres in (-1, 1)."""
    return (torch.arange(resolution) * 2 + 1) / resolution - 1


def _binomial_blur(x: Tensor) -> Tensor:
    taps = x.new_tensor([0.25, 0.5, 0.25])
    kernel = torch.outer(taps, taps).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), kernel, groups=x.shape[1])
