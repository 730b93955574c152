"""Modulated layers and blocks of the 2-D networks, and their 3-D form for volumes.

Legend: B batch, C/I/O channels, R resolution, w_dim size of a style. Formulas: spec/stylenerf.md
2.1, 2.2, 2.5. Shapes are those of images; with `dims=3` there is one more R. Inputs may have a
multiple of the styles' rows: each style then serves consecutive rows.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nfs.stylenerf.layers import (
    EqualConv2d,
    at_least_single,
    modulated_conv,
    scaled_lrelu,
    style_affine,
)
from nfs.stylenerf.resampling import fir_upsample
from nfs.stylenerf.upsampling import build_upsampling, double_bilinear, doubles_image_bilinearly

Architecture = Literal["skip", "orig", "resnet"]
"""`skip`: every block adds a colour; `orig`, `resnet`: the last block alone has one, and `resnet`
blocks have a linear bypass."""
Noise = str | Iterator[Tensor] | None
"""Noise of layers that have it: `random`, `const` (the layer's stored map) or `none`; None is
random in training and const in evaluation. An iterator gives standard normal maps `[B, 1, R, R]`,
one for each such layer in the order of the blocks."""


@dataclass(frozen=True)
class LayerOptions:
    """What the layers of a stack have in common."""

    w_dim: int
    """Size of a style."""
    kernel_size: int = 1
    """1 or 3."""
    upsample_mode: str = "nn_cat"
    """How the first layer of a block doubles: one of `upsampling.UPSAMPLE_MODES`."""
    use_noise: bool = False
    """Add a learned amount of noise to each layer."""
    clamp: float | None = 256.0
    """Clamp of activations."""
    magnitude_beta: float | None = 0.999
    """Decay of the running mean square that inputs are divided by; None: they are not."""
    flip_up_kernel: bool = False
    """Mirror the 3x3 kernel of doubling layers, except where they do not double: the original
    does so (Q25). Matters for its checkpoints, has no effect on `default` and on 1x1 kernels."""


def layer_noise(noise: Noise, x: Tensor, stored: Tensor, *, training: bool) -> Tensor | float:
    """Return the noise map of one layer, `[B, 1, ...]` or the stored one, or 0.

    Args:
        noise: See `Noise`.
        x: Features `[B, C, ...]` that it is added to.
        stored: The layer's own map.
        training: Meaning of None.

    Raises:
        ValueError: Unknown name, or a map that does not fit.
    """
    if noise is None:
        noise = "random" if training else "const"
    if noise == "none":
        return 0.0
    if noise == "random":
        return torch.randn_like(x[:, :1])
    if noise == "const":
        found = stored
    elif isinstance(noise, str):
        raise ValueError(f"noise must be 'random', 'const', 'none' or maps, got {noise!r}")
    else:
        found = next(noise).to(x)
    if found.shape[2 - x.ndim :] != x.shape[2:]:
        raise ValueError(
            f"noise of {list(found.shape)} for features of {list(x.shape)}; use noise='random' "
            "or 'none' at another resolution than the network's"
        )
    return found


class SynthesisLayer(nn.Module):
    """Modulated convolution with magnitude normalisation, noise and optional doubling.

    Args:
        in_channels: Inputs.
        out_channels: Outputs.
        resolution: Pixels per side of the result.
        options: Shared by the stack.
        up: Double the resolution; volumes trilinearly before the convolution.
        gain: Factor of the result and of the clamp.
        dims: 2 for images, 3 for volumes.
    """

    magnitude: Tensor
    noise_const: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        resolution: int,
        options: LayerOptions,
        *,
        up: bool,
        gain: float = 1.0,
        dims: int = 2,
    ) -> None:
        super().__init__()
        size = options.kernel_size
        if size not in (1, 3):
            raise ValueError(f"kernel_size must be 1 or 3, got {size}")
        kernel = () if size == 1 else (size,) * dims
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, *kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.affine = style_affine(options.w_dim, in_channels)
        image_up = up and dims == 2
        self.upsample = (
            build_upsampling(options.upsample_mode, out_channels, resolution) if image_up else None
        )
        self.up_in_convolution = image_up and self.upsample is None
        self.up_before = up and dims == 3
        self.flipped = self.upsample is not None and options.flip_up_kernel and size > 1
        self.clamp = options.clamp
        self.gain = gain
        self.magnitude_beta = options.magnitude_beta
        if self.magnitude_beta is not None:
            self.register_buffer("magnitude", torch.ones(()))
        self.noise_strength: nn.Parameter | None = None
        if options.use_noise:
            self.noise_strength = nn.Parameter(torch.zeros(()))
            self.register_buffer("noise_const", torch.randn((resolution,) * dims))

    def forward(self, x: Tensor, w: Tensor, *, noise: Noise = None, double: bool = True) -> Tensor:
        """Map `[B, I, R, R]` with styles `w [B, w_dim]` to `[B, O, R, R]` or twice the size.

        Args:
            x: Features.
            w: Styles.
            noise: See `Noise`.
            double: False keeps the size, also of a layer that would double it, and adds no noise.
        """
        scale = None
        if self.magnitude_beta is not None:
            if self.training:
                with torch.no_grad():
                    mean_square = x.float().square().mean()
                    self.magnitude.copy_(mean_square.lerp(self.magnitude, self.magnitude_beta))
            scale = self.magnitude.rsqrt()
        styles = _repeated(self.affine(w), len(x))
        if self.up_before and double:
            x = _double_trilinear(x)
        weight = self.weight.flip((2, 3)) if self.flipped and double else self.weight
        up = self.up_in_convolution and double
        x = modulated_conv(x, weight, styles, scale=scale, up=up)
        if self.upsample is not None and double:
            x = self.upsample(x)
        if self.noise_strength is not None and double:
            noise_map = layer_noise(noise, x, self.noise_const, training=self.training)
            x = x + (noise_map * self.noise_strength).to(x.dtype)
        bias = self.bias.reshape(-1, *(1,) * (x.ndim - 2)).to(x.dtype)
        return scaled_lrelu(x + bias, gain=self.gain, clamp=self.clamp)


class ToRgb(nn.Module):
    """Modulated 1x1 convolution to colour, without demodulation.

    Args:
        in_channels: Inputs.
        out_channels: Colours, or channels of planes.
        w_dim: Size of a style.
        clamp: Clamp of the result, or None.
    """

    def __init__(
        self, in_channels: int, out_channels: int, w_dim: int, *, clamp: float | None
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.affine = style_affine(w_dim, in_channels)
        self.weight_gain = 1 / math.sqrt(in_channels)
        self.clamp = clamp

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Map `[B, I, ...]` with styles `w [B, w_dim]` to `[B, O, ...]`."""
        styles = _repeated(self.affine(w), len(x)) * self.weight_gain
        weight = self.weight[None] * styles[:, None]
        rgb = torch.baddbmm(self.bias[None, :, None], weight, x.flatten(2))
        rgb = rgb.reshape(len(x), -1, *x.shape[2:])
        return rgb if self.clamp is None else rgb.clamp(-self.clamp, self.clamp)


class SynthesisBlock(nn.Module):
    """Layers of one resolution, and a colour that is added to the doubled image.

    Args:
        in_channels: Inputs; 0: the block starts from a learned constant and has one layer.
        out_channels: Outputs.
        resolution: Pixels per side of the result.
        options: Shared by the stack.
        img_channels: Channels of the image.
        architecture: See `Architecture`.
        is_last: The last block has a colour in any architecture.
        single_layer: No second layer.
        dims: 2 for images, 3 for volumes.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        resolution: int,
        options: LayerOptions,
        *,
        img_channels: int = 3,
        architecture: str = "skip",
        is_last: bool = False,
        single_layer: bool = False,
        dims: int = 2,
    ) -> None:
        super().__init__()
        if architecture not in get_args(Architecture):
            raise ValueError(f"architecture must be skip, orig or resnet, got {architecture!r}")
        self.const: nn.Parameter | None = None
        self.conv0: SynthesisLayer | None = None
        self.conv1: SynthesisLayer | None = None
        self.skip: EqualConv2d | None = None
        self.to_rgb: ToRgb | None = None
        if in_channels == 0:
            self.const = nn.Parameter(torch.randn(out_channels, *(resolution,) * dims))
        else:
            self.conv0 = SynthesisLayer(
                in_channels, out_channels, resolution, options, up=True, dims=dims
            )
        root = math.sqrt(0.5)
        bypass = architecture == "resnet" and in_channels > 0
        if bypass and dims == 3:
            raise ValueError("architecture 'resnet' is for images, not for volumes")
        if in_channels == 0 or not single_layer:
            gain = root if bypass else 1.0
            self.conv1 = SynthesisLayer(
                out_channels, out_channels, resolution, options, up=False, gain=gain, dims=dims
            )
        if bypass:
            self.skip = EqualConv2d(
                in_channels, out_channels, 1, activation="linear", bias=False, up=True, gain=root
            )
        if architecture == "skip" or is_last:
            self.to_rgb = ToRgb(out_channels, img_channels, options.w_dim, clamp=options.clamp)
        self.num_conv = sum(layer is not None for layer in (self.conv0, self.conv1))
        self.num_to_rgb = int(self.to_rgb is not None)
        self.image_bilinear = doubles_image_bilinearly(options.upsample_mode)

    def forward(
        self,
        x: Tensor | None,
        image: Tensor | None,
        ws: Tensor,
        *,
        noise: Noise = None,
        double: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """Double `x` and `image`.

        Args:
            x: `[B, I, R, R]`; None for a block that starts from its constant.
            image: `[B, img_channels, R, R]`, or None: the block's colour starts it.
            ws: Styles of the layers and the colour `[B, num_conv + num_to_rgb, w_dim]`.
            noise: See `Noise`.
            double: False keeps the size of both.
        """
        rows = iter(ws.unbind(dim=1))
        bypass: Tensor | None = None
        if self.const is not None:
            x = self.const[None].expand(len(ws), *(-1,) * self.const.ndim)
        else:
            assert x is not None
            assert self.conv0 is not None
            if self.skip is not None:
                bypass = self.skip(x, double=double)
            x = self.conv0(x, next(rows), noise=noise, double=double)
        if self.conv1 is not None:
            x = self.conv1(x, next(rows), noise=noise, double=double)
        assert x is not None
        if bypass is not None:
            x = bypass + x
        if image is not None and double:
            image = self._doubled(image)
        if self.to_rgb is not None:
            colour = at_least_single(self.to_rgb(x, next(rows)))
            image = colour if image is None else image + colour
        return x, image

    def _doubled(self, image: Tensor) -> Tensor:
        # The image is a running sum over blocks: single precision also where features have half.
        with torch.autocast(image.device.type, enabled=False):
            image = at_least_single(image)
            if image.ndim == 5:
                return _double_trilinear(image)
            return double_bilinear(image) if self.image_bilinear else fir_upsample(image)


def _double_trilinear(x: Tensor) -> Tensor:
    """Double `[B, C, R, R, R]`; the corners keep their places."""
    return F.interpolate(x, scale_factor=2.0, mode="trilinear", align_corners=True)


def _repeated(styles: Tensor, rows: int) -> Tensor:
    """Repeat each row of `styles` for `rows` inputs in all."""
    if len(styles) == rows:
        return styles
    times, rest = divmod(rows, len(styles))
    if rest:
        raise ValueError(f"{rows} inputs are not a multiple of {len(styles)} styles")
    return styles.repeat_interleave(times, dim=0)
