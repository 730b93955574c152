"""The 2-D stack: modulated 1x1 convolutions that double the feature map up to the image size.

Legend: B batch, I/O channels in/out, R resolution. Formulas: spec/stylenerf.md 2.2 (`nn_cat`).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nfs.stylenerf.layers import (
    EqualConv2d,
    demodulated,
    fir_filter,
    fir_upsample,
    scaled_lrelu,
    style_affine,
)


def _diagonal_neighbours(x: Tensor) -> Tensor:
    """Return `[B, C, 2R, 2R]`: each sub-pixel is the mean of the two neighbours on its side."""
    padded = F.pad(x, (1, 1, 1, 1))
    left, up = padded[..., 1:-1, :-2], padded[..., :-2, 1:-1]
    down, right = padded[..., 2:, 1:-1], padded[..., 1:-1, 2:]
    corners = torch.stack([left + up, up + right, left + down, down + right], dim=2) / 2
    return F.pixel_shuffle(corners.flatten(1, 2), 2)


class NearestCatUpsample(nn.Module):
    """Learned doubling of a feature map (`nn_cat`): nearest pixels corrected by a small network.

    The network sees nearest pixels and diagonal neighbours, concatenated. Its first layer is
    linear before the activation and commutes with both rearrangements, so it is applied at the low
    resolution: the same value at a quarter of the work.

    Args:
        channels: Channels in and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = channels // 4
        self.squeeze = EqualConv2d(2 * channels, hidden, 1)
        self.expand = EqualConv2d(hidden, channels, 1, activation="linear")

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, R, R]` to `[B, C, 2R, 2R]`."""
        channels = x.shape[1]
        weight = self.squeeze.scaled_weight()
        from_nearest = F.conv2d(x, weight[:, :channels], self.squeeze.bias)
        from_neighbours = F.conv2d(x, weight[:, channels:])
        nearest = F.interpolate(from_nearest, scale_factor=2.0, mode="nearest")
        hidden = scaled_lrelu(nearest + _diagonal_neighbours(from_neighbours))
        x = F.interpolate(x, scale_factor=2.0, mode="nearest") + self.expand(hidden)
        return fir_filter(x)


class SynthesisLayer(nn.Module):
    """Modulated 1x1 convolution with magnitude normalisation and optional doubling.

    Args:
        in_channels: Inputs.
        out_channels: Outputs.
        w_dim: Size of a style.
        up: Double the resolution after the convolution.
        clamp: Clamp of the activation, or None.
        magnitude_beta: Decay of the running mean square of the input.
    """

    magnitude: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        *,
        up: bool,
        clamp: float | None,
        magnitude_beta: float,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.affine = style_affine(w_dim, in_channels)
        self.upsample = NearestCatUpsample(out_channels) if up else None
        self.clamp = clamp
        self.magnitude_beta = magnitude_beta
        self.register_buffer("magnitude", torch.ones(()))

    def forward(self, x: Tensor, w: Tensor, *, double: bool = True) -> Tensor:
        """Map `[B, I, R, R]` with styles `w [B, w_dim]` to `[B, O, R, R]` or twice the size.

        Without `double` the size stays, also of a layer that would double it.
        """
        if self.training:
            with torch.no_grad():
                mean_square = x.float().square().mean()
                self.magnitude.copy_(mean_square.lerp(self.magnitude, self.magnitude_beta))
        weight = demodulated(self.weight, self.affine(w)) * self.magnitude.rsqrt()
        batch, _, height, width = x.shape
        x = torch.bmm(weight, x.flatten(2)).reshape(batch, -1, height, width)
        if self.upsample is not None and double:
            x = self.upsample(x)
        return scaled_lrelu(x + self.bias[:, None, None], clamp=self.clamp)


class ToRgb(nn.Module):
    """Modulated 1x1 convolution to colour, without demodulation.

    Args:
        in_channels: Inputs.
        w_dim: Size of a style.
        clamp: Clamp of the result, or None.
    """

    def __init__(self, in_channels: int, w_dim: int, *, clamp: float | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, in_channels))
        self.bias = nn.Parameter(torch.zeros(3))
        self.affine = style_affine(w_dim, in_channels)
        self.weight_gain = 1 / math.sqrt(in_channels)
        self.clamp = clamp

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Map `[B, I, R, R]` to `[B, 3, R, R]`."""
        weight = self.weight[None] * (self.affine(w) * self.weight_gain)[:, None]
        batch, _, height, width = x.shape
        rgb = torch.baddbmm(self.bias[None, :, None], weight, x.flatten(2))
        rgb = rgb.reshape(batch, 3, height, width)
        return rgb if self.clamp is None else rgb.clamp(-self.clamp, self.clamp)


class SynthesisBlock(nn.Module):
    """Two layers that double the features, and a colour that is added to the doubled image.

    Args:
        in_channels: Inputs.
        out_channels: Outputs.
        w_dim: Size of a style.
        clamp: Clamp of activations, or None.
        magnitude_beta: See `SynthesisLayer`.
    """

    num_layer_ws = 2

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        *,
        clamp: float | None,
        magnitude_beta: float,
    ) -> None:
        super().__init__()
        self.conv0 = SynthesisLayer(
            in_channels, out_channels, w_dim, up=True, clamp=clamp, magnitude_beta=magnitude_beta
        )
        self.conv1 = SynthesisLayer(
            out_channels, out_channels, w_dim, up=False, clamp=clamp, magnitude_beta=magnitude_beta
        )
        self.to_rgb = ToRgb(out_channels, w_dim, clamp=clamp)

    def forward(
        self, x: Tensor, image: Tensor, ws: Tensor, *, double: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Double `x [B, I, R, R]` and `image [B, 3, R, R]` with `ws [B, 3, w_dim]`.

        Without `double` both keep their size.
        """
        x = self.conv0(x, ws[:, 0], double=double)
        x = self.conv1(x, ws[:, 1])
        image = fir_upsample(image) if double else image
        return x, image + self.to_rgb(x, ws[:, 2])


class Upsampler(nn.Module):
    """Blocks for every doubling from the field's resolution to the image's.

    A block takes three rows of `ws` but advances by two: its colour layer shares the row of the
    next block's first layer.

    Args:
        in_channels: Channels of the feature map.
        w_dim: Size of a style.
        resolutions: Output resolution of each block, ascending.
        channels: Width of each block.
        clamp: Clamp of activations, or None.
        magnitude_beta: See `SynthesisLayer`.
    """

    def __init__(
        self,
        in_channels: int,
        w_dim: int,
        *,
        resolutions: list[int],
        channels: list[int],
        clamp: float | None,
        magnitude_beta: float,
    ) -> None:
        super().__init__()
        self.resolutions = resolutions
        widths = [in_channels, *channels]
        self.blocks = nn.ModuleDict(
            {
                str(resolution): SynthesisBlock(
                    a, b, w_dim, clamp=clamp, magnitude_beta=magnitude_beta
                )
                for resolution, a, b in zip(resolutions, widths[:-1], widths[1:], strict=True)
            }
        )
        self.num_ws = SynthesisBlock.num_layer_ws * len(resolutions) + 1 if resolutions else 0

    def forward(
        self, x: Tensor, image: Tensor, ws: Tensor, *, limit: int, double: bool = True
    ) -> list[Tensor]:
        """Return the images `[B, 3, R, R]` of all blocks with R <= `limit`, ascending.

        Args:
            x: Feature map `[B, C, r, r]`.
            image: Low-resolution image `[B, 3, r, r]`.
            ws: `[B, num_ws, w_dim]`.
            limit: Resolution of the last block to run.
            double: False keeps the size of `x` and `image` in all blocks (each pixel is a point
                on its own, as the path regulariser needs).
        """
        images = []
        for index, resolution in enumerate(self.resolutions):
            if resolution > limit:
                break
            first = SynthesisBlock.num_layer_ws * index
            rows = ws[:, first : first + 3]
            x, image = self.blocks[str(resolution)](x, image, rows, double=double)
            images.append(image)
        return images
