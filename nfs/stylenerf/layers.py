"""Primitive layers of the StyleGAN2 family: equalised weights, modulation, minibatch statistics.

Legend: B batch, I/O channels in/out, H/W image size. Formulas: spec/stylenerf.md 2.1.
All operations are plain torch with double backward; there are no compiled extensions.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nfs.stylenerf.resampling import conv2d_down, conv2d_up, fir_upsample

SQRT2 = math.sqrt(2.0)
_SLOPE = 0.2


def scaled_lrelu(x: Tensor, *, gain: float = 1.0, clamp: float | None = None) -> Tensor:
    """Leaky ReLU that keeps the variance (gain sqrt 2), then a symmetric clamp.

    Args:
        x: Any shape.
        gain: Further factor, also of the clamp.
        clamp: Largest magnitude before that factor, or None.
    """
    x = F.leaky_relu(x, _SLOPE) * (SQRT2 * gain)
    return x if clamp is None else x.clamp(-clamp * gain, clamp * gain)


def at_least_single(x: Tensor) -> Tensor:
    """Return half and bfloat16 numbers as float32; others stay."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def normalize_second_moment(x: Tensor) -> Tensor:
    """Scale each row of `[B, C]` to a mean square of 1."""
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


def demodulated(weight: Tensor, styles: Tensor) -> Tensor:
    """Scale `weight [O, I, ...]` per sample by `styles [B, I]` and give each output unit norm.

    Returns:
        `[B, O, I, ...]`.
    """
    extra = weight.ndim - 2
    scaled = weight[None] * styles.reshape(len(styles), 1, -1, *(1,) * extra)
    axes = tuple(range(2, scaled.ndim))
    return scaled * (scaled.square().sum(dim=axes, keepdim=True) + 1e-8).rsqrt()


def modulated_conv(
    x: Tensor, weight: Tensor, styles: Tensor, *, scale: Tensor | None = None, up: bool = False
) -> Tensor:
    """Convolve `x [B, I, H, W]` or `[B, I, D, H, W]` with a kernel scaled per sample, demodulated.

    The published 1x1 kernels become one matrix per sample. Larger kernels stay shared: the input
    is scaled before and the output after, which is the same value. Those scales are kept near 1,
    so that half precision neither overflows nor underflows.

    Args:
        x: Features.
        weight: `[O, I]`, or `[O, I, k, k(, k)]` with an odd k.
        styles: Factors of the input channels `[B, I]`.
        scale: Factor of the input `[]` that is not demodulated away.
        up: Double the size of an image; a kernel of 1 convolves first.
    """
    if weight.ndim == 2:
        matrix = demodulated(weight, styles)
        matrix = matrix if scale is None else matrix * scale
        x = torch.bmm(matrix, x.flatten(2)).reshape(len(x), -1, *x.shape[2:])
        return fir_upsample(x) if up else x
    ones = (1,) * (weight.ndim - 2)
    with torch.autocast(x.device.type, enabled=False):
        energy = at_least_single(weight).square().flatten(2).sum(dim=2)
        norm = energy.detach().sum(dim=1).sqrt().clamp_min(1e-8)
        styles = at_least_single(styles)
        largest = styles.detach().abs().amax(dim=1, keepdim=True).clamp_min(1e-8)
        factor = (styles.square() @ energy.T + 1e-8).rsqrt() * (largest * norm)
        factor = factor if scale is None else factor * scale
    weight = weight / norm.reshape(-1, 1, *ones)
    x = x * (styles / largest).reshape(*styles.shape, *ones).to(x.dtype)
    if up:
        x = conv2d_up(x, weight)
    else:
        convolve = F.conv2d if weight.ndim == 4 else F.conv3d
        x = convolve(x, weight, padding=weight.shape[-1] // 2)
    return x * factor.reshape(*factor.shape, *ones).to(x.dtype)


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
        """Map `[..., in_features]` to `[..., out_features]`, in single precision at least."""
        with torch.autocast(x.device.type, enabled=False):
            x = at_least_single(x)
            x = F.linear(x, self.weight * self.weight_gain, self.bias * self.bias_gain)
            return scaled_lrelu(x) if self.activation == "lrelu" else x


def style_affine(w_dim: int, channels: int) -> EqualLinear:
    """Return the layer that turns a style `w` into one factor per input channel."""
    return EqualLinear(w_dim, channels, bias_init=1.0)


class EqualConv2d(nn.Module):
    """Convolution with equalised learning rate, activation and optional change of size.

    Args:
        in_channels: Inputs.
        out_channels: Outputs.
        kernel_size: Odd.
        activation: `linear` or `lrelu`.
        bias: Add a bias.
        up: Double the resolution.
        down: Halve the resolution (filter, then stride 2).
        gain: Factor of the result and of the clamp.
        clamp: Clamp of the activation before that factor, or None.
        trainable: False keeps weight and bias as they are, as buffers of the same names.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        activation: str = "lrelu",
        bias: bool = True,
        up: bool = False,
        down: bool = False,
        gain: float = 1.0,
        clamp: float | None = None,
        trainable: bool = True,
    ) -> None:
        super().__init__()
        if up and down:
            raise ValueError("a convolution cannot double and halve the resolution")
        shape = (out_channels, in_channels, kernel_size, kernel_size)
        values = {"weight": torch.randn(shape), "bias": torch.zeros(out_channels) if bias else None}
        for name, value in values.items():
            if trainable and value is not None:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)
        self.padding = kernel_size // 2
        self.activation = activation
        self.up = up
        self.down = down
        self.gain = gain
        self.clamp = clamp

    def scaled_weight(self) -> Tensor:
        """Return the weight as it is applied."""
        return self.weight * self.weight_gain

    def forward(self, x: Tensor, *, double: bool = True) -> Tensor:
        """Map `[B, I, H, W]` to `[B, O, H, W]`, twice or half of H and W.

        Without `double` a layer that would double the size keeps it.
        """
        weight = self.scaled_weight()
        if self.up and double:
            x = conv2d_up(x, weight)
            x = x if self.bias is None else x + self.bias[:, None, None].to(x.dtype)
        elif self.down:
            x = conv2d_down(x, weight, self.bias)
        else:
            x = F.conv2d(x, weight, self.bias, padding=self.padding)
        if self.activation == "lrelu":
            return scaled_lrelu(x, gain=self.gain, clamp=self.clamp)
        x = x if self.gain == 1 else x * self.gain
        limit = None if self.clamp is None else self.clamp * self.gain
        return x if limit is None else x.clamp(-limit, limit)


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
