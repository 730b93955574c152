"""FIR resampling and resampled convolutions, without inserting zeros.

Legend: B batch, C/I/O channels, H/W image size, k taps. Formulas: spec/stylenerf.md 2.1.

A filter is `[k]` (separable, applied per axis) or `[k, k]`. Everything is a depthwise convolution
or its transpose, so it needs no compiled extension. The two are each other's gradient, which
`_Filter` says outright: torch's second derivative of a grouped convolution would also work out the
gradient of the constant filter, channel after channel, with the image as the kernel.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Padding = int | tuple[int, int] | tuple[int, int, int, int]
"""Pixels added on all sides; (x, y); or (left, right, top, bottom). Negative values crop."""

_FIR_TAPS = (0.125, 0.375, 0.375, 0.125)
_SEPARABLE_FROM = 8


def fir_taps(taps: Sequence[float]) -> Tensor:
    """Return a filter of unit sum: `[k, k]`, or `[k]` (separable) from 8 taps on."""
    values = torch.tensor(taps, dtype=torch.float32)
    values = values / values.sum()
    return values if len(values) >= _SEPARABLE_FROM else torch.outer(values, values)


def upfirdn(
    x: Tensor,
    taps: Tensor,
    *,
    up: int = 1,
    down: int = 1,
    padding: Padding = 0,
    gain: float = 1.0,
    flip: bool = False,
) -> Tensor:
    """Upsample, pad or crop, filter and downsample `[B, C, H, W]`.

    The result is that of putting `up - 1` zeros after each pixel, padding, convolving with `taps`
    (correlating if `flip`) times `gain`, and keeping every `down`-th pixel.

    Args:
        x: Images.
        taps: Filter.
        up: Factor of upsampling.
        down: Factor of downsampling.
        padding: At the upsampled resolution.
        gain: Factor of the whole filter; a separable one takes its root per axis.
        flip: Correlate instead of convolving.

    Raises:
        ValueError: If `taps` is neither `[k]` nor `[k, k]`, or nothing is left of the image.
    """
    left, right, top, bottom = _sides(padding)
    if taps.ndim == 1:
        root = math.sqrt(gain)
        x = _convolve(x, taps[None] * root, (1, up), (1, down), (left, right, 0, 0), flip)
        return _convolve(x, taps[:, None] * root, (up, 1), (down, 1), (0, 0, top, bottom), flip)
    if taps.ndim != 2 or taps.shape[0] != taps.shape[1]:
        raise ValueError(f"taps must be [k] or [k, k], got {list(taps.shape)}")
    sides = (left, right, top, bottom)
    return _convolve(x, taps * gain, (up, up), (down, down), sides, flip)


def filter2d(
    x: Tensor, taps: Tensor, *, padding: Padding = 0, gain: float = 1.0, flip: bool = False
) -> Tensor:
    """Filter `[B, C, H, W]`; without `padding` the size stays. See `upfirdn`."""
    k = taps.shape[-1]
    sides = _added(padding, k // 2, (k - 1) // 2)
    return upfirdn(x, taps, padding=sides, gain=gain, flip=flip)


def upsample2d(
    x: Tensor,
    taps: Tensor,
    *,
    up: int = 2,
    padding: Padding = 0,
    gain: float = 1.0,
    flip: bool = False,
) -> Tensor:
    """Upsample `[B, C, H, W]`; without `padding` to `up` times the size. See `upfirdn`."""
    k = taps.shape[-1]
    sides = _added(padding, (k + up - 1) // 2, (k - up) // 2)
    return upfirdn(x, taps, up=up, padding=sides, gain=gain * up**2, flip=flip)


def downsample2d(
    x: Tensor,
    taps: Tensor,
    *,
    down: int = 2,
    padding: Padding = 0,
    gain: float = 1.0,
    flip: bool = False,
) -> Tensor:
    """Downsample `[B, C, H, W]`; without `padding` to `1 / down` of the size. See `upfirdn`."""
    k = taps.shape[-1]
    sides = _added(padding, (k - down + 1) // 2, (k - down) // 2)
    return upfirdn(x, taps, down=down, padding=sides, gain=gain, flip=flip)


def fir_filter(x: Tensor, *, padding: tuple[int, int] = (2, 1), gain: float = 1.0) -> Tensor:
    """Blur `[B, C, H, W]` with [1, 3, 3, 1] per axis; `padding` zeros before and after an axis."""
    before, after = padding
    if before == after:
        return filtered(x, _fir_kernel(x, gain), padding=before)
    x = F.pad(x, (before, after, before, after))
    return filtered(x, _fir_kernel(x, gain))


def fir_upsample(x: Tensor) -> Tensor:
    """Double the size of `[B, C, H, W]` with [1, 3, 3, 1] (gain 4)."""
    kernel = _fir_kernel(x, 4.0)
    return filtered(x, kernel, stride=(2, 2), padding=1, transposed=True)


def fir_downsample(x: Tensor) -> Tensor:
    """Halve the size of `[B, C, H, W]` with [1, 3, 3, 1]."""
    return filtered(x, _fir_kernel(x, 1.0), stride=(2, 2), padding=1)


def conv2d_up(x: Tensor, weight: Tensor) -> Tensor:
    """Double the size of `x [B, I, H, W]` while convolving with `weight [O, I, k, k]`.

    A kernel of 1 convolves first; a kernel of 3 is a transposed convolution, then the filter.
    """
    if weight.shape[-1] == 1:
        return fir_upsample(F.conv2d(x, weight))
    x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
    return fir_filter(x, padding=(1, 1), gain=4.0)


def conv2d_down(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Halve the size of `x [B, I, H, W]`, then convolve with `weight [O, I, k, k]` and add."""
    if weight.shape[-1] == 1:
        return F.conv2d(fir_downsample(x), weight, bias)
    return F.conv2d(fir_filter(x, padding=(2, 2)), weight, bias, stride=2)


class _Filter(torch.autograd.Function):
    """Depthwise convolution with a constant, or its transpose; differentiable any number of times.

    Args (of `apply`): x `[B, C, H, W]`, kernel `[C, 1, ky, kx]`, stride (y, x), padding, whether
    transposed, and the size (H, W) of the result of a transposed one.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        kernel: Tensor,
        stride: tuple[int, int],
        padding: int,
        transposed: bool,
        size: tuple[int, int] | None,
    ) -> Tensor:
        ctx.save_for_backward(kernel)
        ctx.arguments = stride, padding, not transposed, (x.shape[2], x.shape[3])
        channels = x.shape[1]
        # In a backward pass the types are those of the forward pass, whatever autocast says.
        with torch.autocast(x.device.type, enabled=False):
            if not transposed:
                return F.conv2d(x, kernel, stride=stride, padding=padding, groups=channels)
            rest = [0, 0]
            if size is not None:
                rest = [
                    size[axis] - (x.shape[2 + axis] - 1) * stride[axis] - k + 2 * padding
                    for axis, k in enumerate(kernel.shape[2:])
                ]
            return F.conv_transpose2d(
                x, kernel, stride=stride, padding=padding, output_padding=rest, groups=channels
            )

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (kernel,) = ctx.saved_tensors
        found: Tensor = _Filter.apply(grad, kernel, *ctx.arguments)  # type: ignore[no-untyped-call]
        return found, None, None, None, None, None


def filtered(
    x: Tensor,
    kernel: Tensor,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: int = 0,
    transposed: bool = False,
) -> Tensor:
    """Convolve each channel with its constant `kernel [C, 1, ky, kx]`, or apply the transpose."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(device))
    result: Tensor = _Filter.apply(  # type: ignore[no-untyped-call]
        x, kernel.to(x), stride, padding, transposed, None
    )
    return result


def _fir_kernel(x: Tensor, gain: float) -> Tensor:
    taps = x.new_tensor(_FIR_TAPS)
    return (torch.outer(taps, taps) * gain).expand(x.shape[1], 1, 4, 4)


def _sides(padding: Padding) -> tuple[int, int, int, int]:
    if isinstance(padding, int):
        return padding, padding, padding, padding
    if len(padding) == 2:
        x, y = padding
        return x, x, y, y
    return padding


def _added(padding: Padding, before: int, after: int) -> tuple[int, int, int, int]:
    left, right, top, bottom = _sides(padding)
    return left + before, right + after, top + before, bottom + after


def _convolve(
    x: Tensor,
    taps: Tensor,
    up: tuple[int, int],
    down: tuple[int, int],
    padding: tuple[int, int, int, int],
    flip: bool,
) -> Tensor:
    """Resample with the dense filter `taps [ky, kx]`; factors are (y, x)."""
    channels, (height, width) = x.shape[1], taps.shape
    left, right, top, bottom = padding
    rows = x.shape[2] * up[0] + top + bottom - height + 1
    columns = x.shape[3] * up[1] + left + right - width + 1
    if rows < 1 or columns < 1:
        raise ValueError(
            f"nothing is left of {list(x.shape[2:])} pixels after padding {padding} and "
            f"{list(taps.shape)} taps"
        )
    taps = taps.to(x)
    if up == (1, 1):
        x = F.pad(x, padding)
        kernel = (taps if flip else taps.flip((0, 1))).expand(channels, 1, height, width)
        return filtered(x, kernel, stride=down)
    kernel = (taps.flip((0, 1)) if flip else taps).expand(channels, 1, height, width)
    x = filtered(x, kernel, stride=up, transposed=True)
    # The wanted window of the complete convolution; where it reaches beyond, there is nothing.
    y0, x0 = height - 1 - top, width - 1 - left
    x = F.pad(x, (-x0, x0 + columns - x.shape[3], -y0, y0 + rows - x.shape[2]))
    return x[:, :, :: down[0], :: down[1]]
