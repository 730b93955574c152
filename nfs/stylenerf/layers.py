"""Primitive layers of the StyleGAN2 family: equalised weights, FIR resampling, modulation.

Legend: B batch, I/O channels in/out, H/W image size. Formulas: spec/stylenerf.md 2.1.
All operations are plain torch with double backward; there are no compiled extensions.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SQRT2 = math.sqrt(2.0)
_SLOPE = 0.2
_FIR_TAPS = (0.125, 0.375, 0.375, 0.125)


def scaled_lrelu(x: Tensor, *, clamp: float | None = None) -> Tensor:
    """Leaky ReLU that keeps the variance (gain sqrt 2), then a symmetric clamp."""
    x = F.leaky_relu(x, _SLOPE) * SQRT2
    return x if clamp is None else x.clamp(-clamp, clamp)


def normalize_second_moment(x: Tensor) -> Tensor:
    """Scale each row of `[B, C]` to a mean square of 1."""
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


def _fir_kernel(x: Tensor, gain: float) -> Tensor:
    taps = x.new_tensor(_FIR_TAPS)
    return (torch.outer(taps, taps) * gain).expand(x.shape[1], 1, 4, 4)


def fir_filter(x: Tensor, *, padding: tuple[int, int] = (2, 1)) -> Tensor:
    """Blur `[B, C, H, W]` with [1, 3, 3, 1] per axis; `padding` zeros before and after an axis."""
    before, after = padding
    if before == after:
        return F.conv2d(x, _fir_kernel(x, 1.0), padding=before, groups=x.shape[1])
    x = F.pad(x, (before, after, before, after))
    return F.conv2d(x, _fir_kernel(x, 1.0), groups=x.shape[1])


def fir_upsample(x: Tensor) -> Tensor:
    """Double the size of `[B, C, H, W]` with the FIR filter (gain 4)."""
    kernel = _fir_kernel(x, 4.0)
    return F.conv_transpose2d(x, kernel, stride=2, padding=1, groups=x.shape[1])


def fir_downsample(x: Tensor) -> Tensor:
    """Halve the size of `[B, C, H, W]` with the FIR filter."""
    return F.conv2d(x, _fir_kernel(x, 1.0), stride=2, padding=1, groups=x.shape[1])


def demodulated(weight: Tensor, styles: Tensor) -> Tensor:
    """Scale `weight [O, I, ...]` per sample by `styles [B, I]` and give each output unit norm.

    Returns:
        `[B, O, I, ...]`.
    """
    extra = weight.ndim - 2
    scaled = weight[None] * styles.reshape(len(styles), 1, -1, *(1,) * extra)
    axes = tuple(range(2, scaled.ndim))
    return scaled * (scaled.square().sum(dim=axes, keepdim=True) + 1e-8).rsqrt()


class EqualLinear(nn.Module):
    """Fully connected layer with equalised learning rate.

    Args:
        in_features: Inputs.
        out_features: Outputs.
        activation: `linear` or `lrelu` (leaky ReLU with gain sqrt 2).
        lr_multiplier: Factor on the effective learning rate of weight and bias.
        bias_init: Initial value of the bias.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        activation: str = "linear",
        lr_multiplier: float = 1.0,
        bias_init: float = 0.0,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full([out_features], bias_init))
        self.activation = activation
        self.weight_gain = lr_multiplier / math.sqrt(in_features)
        self.bias_gain = lr_multiplier

    def forward(self, x: Tensor) -> Tensor:
        """Map `[..., in_features]` to `[..., out_features]`."""
        x = F.linear(x, self.weight * self.weight_gain, self.bias * self.bias_gain)
        return scaled_lrelu(x) if self.activation == "lrelu" else x


def style_affine(w_dim: int, channels: int) -> EqualLinear:
    """Return the layer that turns a style `w` into one factor per input channel."""
    return EqualLinear(w_dim, channels, bias_init=1.0)


class EqualConv2d(nn.Module):
    """Convolution with equalised learning rate, leaky ReLU and optional halving of the image.

    Args:
        in_channels: Inputs.
        out_channels: Outputs.
        kernel_size: 1 or 3.
        activation: `linear` or `lrelu`.
        down: Halve the resolution (filter, then stride 2).
        clamp: Clamp of the activation, or None.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        activation: str = "lrelu",
        down: bool = False,
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        shape = (out_channels, in_channels, kernel_size, kernel_size)
        self.weight = nn.Parameter(torch.randn(shape))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)
        self.padding = kernel_size // 2
        self.activation = activation
        self.down = down
        self.clamp = clamp

    def scaled_weight(self) -> Tensor:
        """Return the weight as it is applied."""
        return self.weight * self.weight_gain

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, I, H, W]` to `[B, O, H, W]`, or half of H and W."""
        weight = self.scaled_weight()
        if not self.down:
            x = F.conv2d(x, weight, self.bias, padding=self.padding)
        elif self.padding == 0:
            x = F.conv2d(fir_downsample(x), weight, self.bias)
        else:
            x = F.conv2d(fir_filter(x, padding=(2, 2)), weight, self.bias, stride=2)
        if self.activation == "lrelu":
            return scaled_lrelu(x, clamp=self.clamp)
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)


def minibatch_std(x: Tensor, *, group_size: int, num_channels: int = 1) -> Tensor:
    """Append the standard deviation over groups of samples as channels (Karras et al. 2018).

    Args:
        x: `[B, C, H, W]`; B must be a multiple of the group in use.
        group_size: Samples per group; a smaller batch is one group.
        num_channels: Channels to append.
    """
    batch, channels, height, width = x.shape
    group = min(group_size, batch)
    if batch % group:
        raise ValueError(f"batch of {batch} is not a multiple of mbstd_group_size={group_size}")
    y = x.reshape(group, -1, num_channels, channels // num_channels, height, width)
    y = y - y.mean(dim=0)
    y = (y.square().mean(dim=0) + 1e-8).sqrt().mean(dim=(2, 3, 4))
    y = y.reshape(-1, num_channels, 1, 1).repeat(group, 1, height, width)
    return torch.cat([x, y], dim=1)
