"""Wavelet filters of the augmentation pipeline, and its sampling with all derivatives.

Taps are those of the symlets sym6 and sym2 (Daubechies 1992, ch. 8). Use: spec/stylenerf.md 2.9.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nfs.stylenerf.resampling import fir_taps

_SYM6 = (
    *(0.015404109327027373, 0.0034907120842174702, -0.11799011114819057),
    *(-0.048311742585633, 0.4910559419267466, 0.787641141030194),
    *(0.3379294217276218, -0.07263752278646252, -0.021060292512300564),
    *(0.04472490177066578, 0.0017677118642428036, -0.007800708325034148),
)
_ROOT3 = math.sqrt(3.0)
_SYM2 = tuple(v / math.sqrt(32.0) for v in (1 - _ROOT3, 3 - _ROOT3, 3 + _ROOT3, 1 + _ROOT3))
NUM_BANDS = 4


def resampling_taps() -> Tensor:
    """Return the low-pass filter of geometric transforms `[12]`, with sum 1."""
    return fir_taps(_SYM6)


def band_filters() -> Tensor:
    """Return zero-phase filters of four octave bands `[4, 43]`, low to high; their sum is 1.

    Row 0 passes the lowest eighth of frequencies, row 3 the upper half.
    """
    low = np.array(_SYM2)
    high = low * np.array([1.0, -1.0, 1.0, -1.0])
    low_power = np.convolve(low, low[::-1]) / 2
    high_power = np.convolve(high, high[::-1]) / 2
    bands = [np.ones(1)]
    for _ in range(NUM_BANDS - 1):
        bands = [np.convolve(_dilated(band), low_power) for band in bands]
        margin = (len(bands[0]) - len(high_power)) // 2
        bands.append(np.pad(high_power, margin))
    return torch.from_numpy(np.stack(bands)).float()


def _dilated(taps: np.ndarray) -> np.ndarray:
    """Put a zero between neighbouring taps."""
    wide = np.zeros(2 * len(taps) - 1)
    wide[::2] = taps
    return wide


def filter_each(x: Tensor, taps: Tensor) -> Tensor:
    """Filter image b of `[B, C, H, W]` with `taps[b]` (`[B, odd]`) along both axes, reflecting.

    Raises:
        ValueError: If an image is not larger than half the filter.
    """
    batch, channels, height, width = x.shape
    pad = taps.shape[1] // 2
    if min(height, width) <= pad:
        raise ValueError(f"imgfilter needs images of more than {pad} px, got {height} x {width}")
    kernel = taps.repeat_interleave(channels, dim=0)[:, None, None, :]
    x = F.pad(x.reshape(1, -1, height, width), (pad, pad, pad, pad), mode="reflect")
    x = F.conv2d(x, kernel, groups=batch * channels)
    x = F.conv2d(x, kernel.transpose(2, 3), groups=batch * channels)
    return x.reshape(batch, channels, height, width)


def sample_at(x: Tensor, grid: Tensor) -> Tensor:
    """Read `[B, C, H, W]` at a constant `grid [B, h, w, 2]` in [-1, 1]: bilinear, zeros outside.

    Linear in `x`, so its derivatives of any order are itself and its adjoint; torch's own second
    derivative of `grid_sample` does not exist on every device and version.
    """
    sampled: Tensor = _Sample.apply(x, grid)  # type: ignore[no-untyped-call]
    return sampled


class _Sample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.size = x.shape
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (grid,) = ctx.saved_tensors
        return _Adjoint.apply(gradient, grid, ctx.size), None  # type: ignore[no-untyped-call]


class _Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, grid: Tensor, size: torch.Size) -> Tensor:
        ctx.save_for_backward(grid)
        # 0, 0, False: bilinear, zeros, not corner aligned; of `x` only the size matters here.
        spread: Tensor = torch.ops.aten.grid_sampler_2d_backward(
            y.contiguous(), y.new_empty(size), grid, 0, 0, False, (True, False)
        )[0]
        return spread

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (grid,) = ctx.saved_tensors
        return _Sample.apply(gradient, grid), None, None  # type: ignore[no-untyped-call]
