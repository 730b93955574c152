"""StyleNeRF in the original's order of operations, on the weights of `nfs.stylenerf`.

Written from spec/stylenerf.md section 2 as a baseline to measure against, with the layout the
original works in: the field is a stack of modulated convolutions over images `[B*S, C, h, w]`, its
heads run on every sample, both passes are joined by sorting and gathering 259 channels, and
resampling inserts zeros and filters at the full size. Rays, depths and compositing weights, which
cost little, are the product's own. Gradients go to the same parameters.

Legend: B batch, N = h*w rays, S samples per ray, C channels, H hidden size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nfs.geometry import volume
from nfs.geometry.rays import Rays, camera_rays, pixel_grid
from nfs.stylenerf.discriminator import Discriminator
from nfs.stylenerf.field import PlainLinear, StyleHead, StyleLinear
from nfs.stylenerf.generator import Generator
from nfs.stylenerf.layers import EqualConv2d, EqualLinear
from nfs.stylenerf.rendering import RenderDraws
from nfs.stylenerf.resampling import filtered
from nfs.stylenerf.synthesis import SynthesisLayer, ToRgb
from nfs.stylenerf.upsampling import NearestCatUpsample

SQRT2 = math.sqrt(2)


def filter_kernel(x: Tensor, gain: float) -> Tensor:
    taps = x.new_tensor([1.0, 3.0, 3.0, 1.0])
    return (torch.outer(taps, taps) / 64 * gain).expand(x.shape[1], 1, 4, 4)


def upfirdn(
    x: Tensor, *, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0), gain: float = 1.0
) -> Tensor:
    """Insert zeros, pad, filter densely, keep every `down`-th pixel."""
    batch, channels, height, width = x.shape
    if up > 1:
        x = x.reshape(batch, channels, height, 1, width, 1)
        x = F.pad(x, (0, up - 1, 0, 0, 0, up - 1))
        x = x.reshape(batch, channels, height * up, width * up)
    x = F.pad(x, (*pad, *pad))
    kernel = filter_kernel(x, gain)
    # On a GPU the original's extension has its own second derivative, too.
    x = filtered(x, kernel) if x.is_cuda else F.conv2d(x, kernel, groups=channels)
    return x[:, :, ::down, ::down]


def upsample(x: Tensor) -> Tensor:
    return upfirdn(x, up=2, pad=(2, 1), gain=4.0)


def downsample(x: Tensor) -> Tensor:
    return upfirdn(x, down=2, pad=(1, 1))


def bias_act(x: Tensor, bias: Tensor, *, clamp: float | None = None) -> Tensor:
    x = x + bias.reshape(1, -1, 1, 1)
    x = F.leaky_relu(x, 0.2)
    x = x * SQRT2
    return x if clamp is None else x.clamp(-clamp, clamp)


def modulated_conv(
    x: Tensor, weight: Tensor, styles: Tensor, *, demodulate: bool, grouped: bool
) -> Tensor:
    """1x1 convolution of `x [B, I, h, w]` with `weight [O, I]` scaled by `styles [B, I]`.

    Grouped, as the original evaluates, or scaled before and after, as it trains.
    """
    weight = weight[..., None, None]
    scaled = weight[None] * styles[:, None, :, None, None]
    factor = None
    if demodulate:
        factor = (scaled.square().sum(dim=(2, 3, 4)) + 1e-8).rsqrt()
    if grouped:
        if factor is not None:
            scaled = scaled * factor[:, :, None, None, None]
        batch, _, height, width = x.shape
        x = F.conv2d(x.reshape(1, -1, height, width), scaled.flatten(0, 1), groups=batch)
        return x.reshape(batch, -1, height, width)
    x = F.conv2d(x * styles[..., None, None], weight)
    return x if factor is None else x * factor[..., None, None]


def encode(points: Tensor, num_frequencies: int) -> Tensor:
    waves = []
    for octave in range(num_frequencies):
        angle = 2.0**octave * math.pi * points
        waves += [torch.sin(angle), torch.cos(angle)]
    return torch.cat(waves, dim=-1)


def equal_conv(layer: EqualConv2d, x: Tensor) -> Tensor:
    weight = layer.weight * layer.weight_gain
    if layer.down:
        x = F.conv2d(upfirdn(x, pad=(2, 2)), weight, stride=2)
    else:
        x = F.conv2d(x, weight, padding=layer.padding)
    if layer.activation == "lrelu":
        return bias_act(x, layer.bias, clamp=layer.clamp)
    return x + layer.bias.reshape(1, -1, 1, 1)


def equal_linear(layer: EqualLinear, x: Tensor) -> Tensor:
    x = F.linear(x, layer.weight * layer.weight_gain, layer.bias * layer.bias_gain)
    return F.leaky_relu(x, 0.2) * SQRT2 if layer.activation == "lrelu" else x


@dataclass(frozen=True)
class PlainRendering:
    """What the benchmark compares."""

    image: Tensor
    depths: tuple[Tensor, Tensor]


class PlainGenerator:
    """The generator in the original's order.

    Args:
        generator: Weights; its mode (train or eval) counts.
    """

    def __init__(self, generator: Generator) -> None:
        self.source = generator

    def __call__(
        self,
        ws: Tensor,
        cam2world: Tensor,
        code: Tensor,
        *,
        depths: tuple[Tensor, Tensor] | None = None,
        draws: RenderDraws | None = None,
    ) -> PlainRendering:
        """Render `ws [B, num_ws, w]` at full resolution."""
        source, draws = self.source, draws or RenderDraws()
        size = source.spec.resolution_vol
        grid = pixel_grid(size, device=ws.device)
        rays = camera_rays(grid, cam2world, fov_deg=source.spec.fov_deg)
        front, passed, used = self._foreground(rays, ws[:, : source.num_field_ws], depths, draws)
        maps = front + passed[..., None] * self._background(rays, code, draws)
        maps = maps.transpose(1, 2).reshape(len(ws), -1, size, size)
        image, x = maps[:, :3], maps[:, 3:]
        ws = ws[:, source.num_field_ws :]
        for index, block in enumerate(source.upsampler.blocks.values()):
            x = self._layer(block.conv0, x, ws[:, 2 * index])
            x = self._layer(block.conv1, x, ws[:, 2 * index + 1])
            image = upsample(image) + self._to_rgb(block.to_rgb, x, ws[:, 2 * index + 2])
        return PlainRendering(image, used)

    def _foreground(
        self,
        rays: Rays,
        ws: Tensor,
        depths: tuple[Tensor, Tensor] | None,
        draws: RenderDraws,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        source = self.source
        training, near_far = source.training, source.spec.depth_range
        batch, num_rays, _ = rays.directions.shape
        scale = rays.directions.norm(dim=-1, keepdim=True)
        device = scale.device
        start = torch.linspace(0, 1, source.spec.num_samples, device=device)
        start = start.expand(batch, num_rays, -1)
        if depths is not None:
            start = depths[0]
        elif training:
            start = volume.jitter_depths(start, torch.rand_like(start))
        features, sigma = self._field(rays, start, ws, draws.sigma_noise_coarse)
        with torch.no_grad():
            along = volume.scene_depths(start, near_far)
            weights = volume.ray_weights(sigma, along, scale=scale, last=0.0).weights
            uniforms = torch.linspace(0, 1, start.shape[-1], device=device).expand_as(start)
            uniforms = torch.rand_like(start) if training else uniforms
            fine = volume.importance_depths(start, weights, uniforms)
        fine = fine if depths is None else depths[1]
        fine_features, fine_sigma = self._field(rays, fine, ws, draws.sigma_noise_fine)
        merged, order = torch.cat([fine, start], dim=-1).sort(dim=-1)
        features = torch.cat([fine_features, features], dim=2)
        features = features.gather(2, order[..., None].expand_as(features))
        sigma = torch.cat([fine_sigma, sigma], dim=-1).gather(-1, order)
        along = volume.scene_depths(merged, near_far)
        result = volume.ray_weights(sigma, along, scale=scale, last=0.0)
        composed = torch.einsum("bns,bnsc->bnc", result.weights, features)
        return composed, result.transmittance, (start, fine)

    def _field(
        self, rays: Rays, depths: Tensor, ws: Tensor, noise: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return features `[B, N, S, 3 + C]` and densities `[B, N, S]`."""
        source = self.source
        field = source.foreground
        batch, num_rays, samples = depths.shape
        size = math.isqrt(num_rays)
        points = rays.at(volume.scene_depths(depths, source.spec.depth_range))
        x = encode(points.reshape(batch, -1, 3), source.spec.num_frequencies)
        x = x.reshape(batch, size, size, samples, -1).permute(0, 3, 4, 1, 2).flatten(0, 1)
        for index, layer in enumerate(field.layers):
            x = self._style(layer, x, ws[:, index])
        sigma = self._style(field.sigma_head, x, ws[:, len(field.layers)])
        features = self._style(field.feature_head, x, ws[:, -1])
        head = field.colour_head
        rgb = F.conv2d(features, (head.weight * head.weight_gain)[..., None, None])
        features = torch.cat([rgb + head.bias.reshape(1, -1, 1, 1), features], dim=1)
        features = features.reshape(batch, samples, -1, size, size).permute(0, 3, 4, 1, 2)
        features = features.reshape(batch, num_rays, samples, -1)
        sigma = sigma.reshape(batch, samples, num_rays).transpose(1, 2)
        if source.training:
            sigma = sigma + (torch.randn_like(sigma) if noise is None else noise)
        return features, F.relu(sigma)

    def _style(self, layer: StyleLinear | StyleHead, x: Tensor, w: Tensor) -> Tensor:
        grouped = not self.source.training
        styles = equal_linear(layer.affine, w)
        styles = styles.repeat_interleave(len(x) // len(w), dim=0)
        if isinstance(layer, StyleLinear):
            x = modulated_conv(x, layer.weight, styles, demodulate=True, grouped=grouped)
            return bias_act(x, layer.bias)
        styles = styles * layer.weight_gain
        x = modulated_conv(x, layer.weight, styles, demodulate=False, grouped=grouped)
        return x + layer.bias.reshape(1, -1, 1, 1)

    def _background(self, rays: Rays, code: Tensor, draws: RenderDraws) -> Tensor:
        source = self.source
        spec, field = source.spec, source.background
        batch, num_rays, _ = rays.directions.shape
        samples = spec.num_background_samples
        depths = torch.linspace(-1, 0, samples, device=code.device) * spec.background_start
        depths = depths.expand(batch, num_rays, -1)
        if source.training:
            jitter = draws.background_jitter
            jitter = torch.rand_like(depths) if jitter is None else jitter
            depths = volume.jitter_depths(depths, jitter)
        unit = rays.directions / rays.directions.norm(dim=-1, keepdim=True)
        points = volume.inverted_sphere_points(rays.origins, unit, -depths)
        x = encode(points.reshape(batch, -1, 4), source.spec.num_frequencies)
        x = torch.cat([x, code[:, None].expand(-1, x.shape[1], -1)], dim=-1)
        for layer in field.layers:
            x = F.relu(self._plain(layer, x))
        sigma = self._plain(field.sigma_head, x).reshape(batch, num_rays, samples)
        features = self._plain(field.feature_head, x)
        head = field.colour_head
        rgb = F.linear(features, head.weight * head.weight_gain) + head.bias
        features = torch.cat([rgb, features], dim=-1).reshape(batch, num_rays, samples, -1)
        if source.training:
            noise = draws.sigma_noise_background
            sigma = sigma + (torch.randn_like(sigma) if noise is None else noise)
        weights = volume.ray_weights(sigma, depths, scale=1.0, last=volume.OPAQUE).weights
        return torch.einsum("bns,bnsc->bnc", weights, features)

    @staticmethod
    def _plain(layer: PlainLinear, x: Tensor) -> Tensor:
        return F.linear(x, layer.weight) + layer.bias

    def _layer(self, layer: SynthesisLayer, x: Tensor, w: Tensor) -> Tensor:
        training = self.source.training
        if training:
            with torch.no_grad():
                now = x.float().square().mean()
                layer.magnitude.copy_(now.lerp(layer.magnitude, layer.magnitude_beta))
        x = x * layer.magnitude.rsqrt()
        styles = equal_linear(layer.affine, w)
        x = modulated_conv(x, layer.weight, styles, demodulate=True, grouped=not training)
        if layer.upsample is not None:
            x = self._nn_cat(layer.upsample, x)
        return bias_act(x, layer.bias, clamp=layer.clamp)

    @staticmethod
    def _nn_cat(layer: NearestCatUpsample, x: Tensor) -> Tensor:
        nearest = F.interpolate(x, scale_factor=2.0, mode="nearest")
        padded = F.pad(x, (1, 1, 1, 1))
        left, up = padded[..., 1:-1, :-2], padded[..., :-2, 1:-1]
        down, right = padded[..., 2:, 1:-1], padded[..., 1:-1, 2:]
        corners = torch.stack([left + up, up + right, left + down, down + right], dim=2) / 2
        both = torch.cat([nearest, F.pixel_shuffle(corners.flatten(1, 2), 2)], dim=1)
        x = nearest + equal_conv(layer.expand, equal_conv(layer.squeeze, both))
        return upfirdn(x, pad=(2, 1))

    def _to_rgb(self, layer: ToRgb, x: Tensor, w: Tensor) -> Tensor:
        styles = equal_linear(layer.affine, w) * layer.weight_gain
        grouped = not self.source.training
        x = modulated_conv(x, layer.weight, styles, demodulate=False, grouped=grouped)
        x = x + layer.bias.reshape(1, -1, 1, 1)
        return x if layer.clamp is None else x.clamp(-layer.clamp, layer.clamp)


class PlainDiscriminator:
    """The discriminator in the original's order, everything active.

    Args:
        discriminator: Weights.
    """

    def __init__(self, discriminator: Discriminator) -> None:
        self.source = discriminator

    def __call__(self, image: Tensor) -> Tensor:
        """Return logits `[B, 1]`."""
        x: Tensor | None = None
        for block in self.source.blocks.values():
            seen = equal_conv(block.from_rgb, image)
            x = seen if x is None else x + seen
            image = downsample(image)
            x = equal_conv(block.conv1, equal_conv(block.conv0, x))
        last = self.source.epilogue
        x = x + equal_conv(last.from_rgb, image)
        group = min(last.group_size, len(x))
        y = x.reshape(group, -1, last.num_channels, x.shape[1] // last.num_channels, 4, 4)
        y = y - y.mean(dim=0)
        y = (y.square().mean(dim=0) + 1e-8).sqrt().mean(dim=(2, 3, 4))
        y = y.reshape(-1, last.num_channels, 1, 1).repeat(group, 1, 4, 4)
        x = equal_conv(last.conv, torch.cat([x, y], dim=1))
        return equal_linear(last.out, equal_linear(last.fc, x.flatten(1)))


def repair_gradients(module: nn.Module) -> Tensor:
    """Replace non-finite gradients, one parameter after the other, and return the total norm."""
    norms = []
    for parameter in module.parameters():
        if parameter.grad is not None:
            torch.nan_to_num(parameter.grad, nan=0, posinf=1e5, neginf=-1e5, out=parameter.grad)
            norms.append(parameter.grad.norm())
    return torch.stack(norms).norm()
