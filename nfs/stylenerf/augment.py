"""Adaptive discriminator augmentation (Karras et al. 2020, appendix B).

Legend: B images. Everything that is drawn per image is drawn and composed on the CPU: the sizes
of the padded images depend on it, and so no accelerator has to be waited for.
Formulas: spec/stylenerf.md 2.9. Only plain differentiable operations, so R1 can go through it.
"""

import math
from collections.abc import Collection, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nfs.stylenerf.augment_filters import (
    NUM_BANDS,
    band_filters,
    filter_each,
    resampling_taps,
    sample_at,
)
from nfs.stylenerf.resampling import downsample2d, upsample2d

_BLIT = ("xflip", "rotate90", "xint")
_GEOMETRY = ("scale", "rotate", "aniso", "xfrac")
_COLOUR = ("brightness", "contrast", "lumaflip", "hue", "saturation")
_REST = ("imgfilter", "noise", "cutout")
OPERATIONS = (*_BLIT, *_GEOMETRY, *_COLOUR, *_REST)
SETS: dict[str, tuple[str, ...]] = {
    "blit": _BLIT,
    "geom": _GEOMETRY,
    "color": _COLOUR,
    "filter": _REST[:1],
    "noise": _REST[1:2],
    "cutout": _REST[2:],
    "bg": (*_BLIT, *_GEOMETRY),
    "bgc0": ("xint", "scale", "aniso", "xfrac", *_COLOUR),
    "bgc": (*_BLIT, *_GEOMETRY, *_COLOUR),
    "bgcf": (*_BLIT, *_GEOMETRY, *_COLOUR, *_REST[:1]),
    "bgcfn": (*_BLIT, *_GEOMETRY, *_COLOUR, *_REST[:2]),
    "bgcfnc": OPERATIONS,
}
_INTEGER_SHIFT, _SCALE_STD, _ANISO_STD, _SHIFT_STD = 0.125, 0.2, 0.2, 0.125
_BRIGHTNESS_STD, _CONTRAST_STD, _SATURATION_STD = 0.2, 0.5, 1.0
_NOISE_STD, _CUTOUT_SIZE = 0.1, 0.5
_BAND_POWER = (10 / 13, 1 / 13, 1 / 13, 1 / 13)
"""Expected share of each band in the power of natural images."""


class Draws(Protocol):
    """Where a call's random numbers come from; each is asked for once, by name, on the CPU."""

    def gate(self, name: str, count: int, probability: float) -> Tensor:
        """Return bool `[count]`: which images an operation applies to."""
        ...

    def uniform(self, name: str, shape: Sequence[int]) -> Tensor:
        """Return numbers in [0, 1)."""
        ...

    def normal(self, name: str, shape: Sequence[int]) -> Tensor:
        """Return standard normal numbers."""
        ...


class RandomDraws:
    """Numbers of torch's global CPU generator, so a seeded step repeats on every device."""

    def gate(self, name: str, count: int, probability: float) -> Tensor:  # noqa: ARG002
        """Open each gate with `probability`."""
        return torch.rand(count) < probability

    def uniform(self, name: str, shape: Sequence[int]) -> Tensor:  # noqa: ARG002
        """Draw from [0, 1)."""
        return torch.rand(*shape)

    def normal(self, name: str, shape: Sequence[int]) -> Tensor:  # noqa: ARG002
        """Draw from the standard normal."""
        return torch.randn(*shape)


class AugmentPipe(nn.Module):
    """Random differentiable distortions whose strength is one number.

    Args:
        operations: A name of `SETS`, or names of `OPERATIONS`.

    Raises:
        ValueError: If a name is unknown.
    """

    geometry_taps: Tensor
    bands: Tensor

    def __init__(self, operations: str | Collection[str]) -> None:
        super().__init__()
        if isinstance(operations, str):
            if operations not in SETS:
                raise ValueError(f"unknown augmentation set {operations!r}; known: {sorted(SETS)}")
            operations = SETS[operations]
        unknown = sorted(set(operations) - set(OPERATIONS))
        if unknown:
            raise ValueError(f"unknown augmentations {unknown}; known: {OPERATIONS}")
        self.operations = frozenset(operations)
        self.register_buffer("geometry_taps", resampling_taps(), persistent=False)
        self.register_buffer("bands", band_filters(), persistent=False)

    def forward(self, images: Tensor, p: float | Tensor, *, draws: Draws | None = None) -> Tensor:
        """Distort each image independently; computed in float32.

        Args:
            images: `[B, 3, H, W]` in about [-1, 1].
            p: Probability of each operation; 0 returns `images`. A tensor on an accelerator is
                waited for.
            draws: Source of random numbers; None for `RandomDraws()`.
        """
        probability = float(p)
        if probability <= 0 or not self.operations:
            return images
        batch, channels, height, width = images.shape
        if channels != 3:
            raise ValueError(f"augmentation needs 3 channels, got {channels}")
        plan = _Plan(self.operations, draws or RandomDraws(), batch, probability)
        with torch.autocast(images.device.type, enabled=False):
            x = images.float()
            inverse = plan.inverse_geometry(height, width)
            if inverse is not None:
                x = _warp(x, inverse, self.geometry_taps)
            colour = plan.colour()
            if colour is not None:
                colour = colour.to(x.device)
                x = (colour[:, :3, :3] @ x.flatten(2) + colour[:, :3, 3:]).reshape(x.shape)
            gains = plan.band_gains()
            if gains is not None:
                x = filter_each(x, gains.to(x.device) @ self.bands)
            noise_std = plan.noise_std()
            if noise_std is not None:
                x = x + torch.randn_like(x) * noise_std.to(x.device)[:, None, None, None]
            keep = plan.cutout_mask(height, width)
            return x if keep is None else x * keep.to(x.device)


class _Plan:
    """What one call does to each image; methods return None where no operation is chosen."""

    def __init__(
        self, operations: frozenset[str], draws: Draws, batch: int, probability: float
    ) -> None:
        self.operations, self.draws = operations, draws
        self.batch, self.probability = batch, probability

    def inverse_geometry(self, height: int, width: int) -> Tensor | None:
        """Map target to source pixels, relative to the centre: `[B, 3, 3]`."""
        if not self.operations & set(SETS["bg"]):
            return None
        matrix = torch.eye(3).expand(self.batch, 3, 3)
        if "xflip" in self.operations:
            flip = self._gated("xflip", (2 * self._uniform("xflip")).floor(), 0.0)
            matrix = matrix @ _scaling(1 - 2 * flip, torch.ones_like(flip))
        if "rotate90" in self.operations:
            turns = self._gated("rotate90", (4 * self._uniform("rotate90")).floor(), 0.0)
            matrix = matrix @ _rotation(math.pi / 2 * turns)
        if "xint" in self.operations:
            share = (2 * self._uniform("xint", 2) - 1) * _INTEGER_SHIFT
            x, y = self._gated("xint", share, 0.0).unbind(dim=1)
            matrix = matrix @ _translation(-(x * width).round(), -(y * height).round())
        if "scale" in self.operations:
            scale = self._gated("scale", (_SCALE_STD * self._normal("scale")).exp2(), 1.0)
            matrix = matrix @ _scaling(1 / scale, 1 / scale)
        if "rotate" in self.operations:
            matrix = matrix @ self._rotated("rotate_before")
        if "aniso" in self.operations:
            scale = self._gated("aniso", (_ANISO_STD * self._normal("aniso")).exp2(), 1.0)
            matrix = matrix @ _scaling(1 / scale, scale)
        if "rotate" in self.operations:
            matrix = matrix @ self._rotated("rotate_after")
        if "xfrac" in self.operations:
            share = self._gated("xfrac", _SHIFT_STD * self._normal("xfrac", 2), 0.0)
            x, y = share.unbind(dim=1)
            matrix = matrix @ _translation(-x * width, -y * height)
        return matrix

    def colour(self) -> Tensor | None:
        """Affine map of RGB: `[B, 4, 4]`."""
        if not self.operations & set(_COLOUR):
            return None
        matrix = torch.eye(4).expand(self.batch, 4, 4)
        grey = torch.tensor([1.0, 1.0, 1.0, 0.0]) / math.sqrt(3.0)
        along = torch.outer(grey, grey)
        if "brightness" in self.operations:
            shift = self._gated("brightness", _BRIGHTNESS_STD * self._normal("brightness"), 0.0)
            matrix = _with_column(torch.eye(4), shift) @ matrix
        if "contrast" in self.operations:
            gain = self._gated("contrast", (_CONTRAST_STD * self._normal("contrast")).exp2(), 1.0)
            matrix = (
                torch.diag_embed(F.pad(gain[:, None].expand(-1, 3), (0, 1), value=1.0)) @ matrix
            )
        if "lumaflip" in self.operations:
            flip = self._gated("lumaflip", (2 * self._uniform("lumaflip")).floor(), 0.0)
            matrix = (torch.eye(4) - 2 * along * flip[:, None, None]) @ matrix
        if "hue" in self.operations:
            angle = self._gated("hue", (2 * self._uniform("hue") - 1) * math.pi, 0.0)
            matrix = _rotation_about(grey[:3], angle) @ matrix
        if "saturation" in self.operations:
            gain = (_SATURATION_STD * self._normal("saturation")).exp2()
            gain = self._gated("saturation", gain, 1.0)[:, None, None]
            matrix = (along + (torch.eye(4) - along) * gain) @ matrix
        return matrix

    def band_gains(self) -> Tensor | None:
        """Gain of each frequency band, keeping the expected power: `[B, 4]`."""
        if "imgfilter" not in self.operations:
            return None
        gains = torch.ones(self.batch, NUM_BANDS)
        power = torch.tensor(_BAND_POWER)
        for band in range(NUM_BANDS):
            name = f"imgfilter{band}"
            step = torch.ones(self.batch, NUM_BANDS)
            step[:, band] = self._gated(name, self._normal(name).exp2(), 1.0)
            gains = gains * step / (power * step.square()).sum(dim=1, keepdim=True).sqrt()
        return gains

    def noise_std(self) -> Tensor | None:
        """Standard deviation of added noise: `[B]`."""
        if "noise" not in self.operations:
            return None
        return self._gated("noise", self._normal("noise").abs() * _NOISE_STD, 0.0)

    def cutout_mask(self, height: int, width: int) -> Tensor | None:
        """Zero inside a rectangle of half the image's sides: `[B, 1, H, W]`."""
        if "cutout" not in self.operations:
            return None
        half = self._gated("cutout", torch.full([self.batch], _CUTOUT_SIZE / 2), 0.0)
        x, y = self._uniform("cutout", 2)[:, :, None].unbind(dim=1)
        outside_x = ((torch.arange(width) + 0.5) / width - x).abs() >= half[:, None]
        outside_y = ((torch.arange(height) + 0.5) / height - y).abs() >= half[:, None]
        return (outside_x[:, None, None, :] | outside_y[:, None, :, None]).float()

    def _rotated(self, name: str) -> Tensor:
        # Two chances of a rotation make `probability` together.
        each = 1 - math.sqrt(max(0.0, 1 - self.probability))
        angle = (2 * self._uniform(name) - 1) * math.pi
        return _rotation(self._gated(name, angle, 0.0, probability=each))

    def _uniform(self, name: str, *extra: int) -> Tensor:
        return self.draws.uniform(name, (self.batch, *extra))

    def _normal(self, name: str, *extra: int) -> Tensor:
        return self.draws.normal(name, (self.batch, *extra))

    def _gated(
        self, name: str, value: Tensor, neutral: float, *, probability: float | None = None
    ) -> Tensor:
        chance = self.probability if probability is None else probability
        gate = self.draws.gate(name, self.batch, chance)
        return torch.where(gate.reshape(-1, *(1,) * (value.ndim - 1)), value, neutral)


def _warp(x: Tensor, inverse: Tensor, taps: Tensor) -> Tensor:
    """Resample `x` where `inverse` says, at twice the resolution and over reflected borders."""
    height, width = x.shape[2:]
    edge = len(taps) // 4
    left, right, top, bottom = _margins(inverse, height, width, edge)
    x = F.pad(x, (left, right, top, bottom), mode="reflect")
    inverse = _shift((left - right) / 2, (top - bottom) / 2) @ inverse
    x = upsample2d(x, taps)
    inverse = _zoom(2, 2) @ inverse @ _zoom(0.5, 0.5)
    inverse = _shift(-0.5, -0.5) @ inverse @ _shift(0.5, 0.5)
    size = (len(x), 3, (height + 2 * edge) * 2, (width + 2 * edge) * 2)
    inverse = _zoom(2 / x.shape[3], 2 / x.shape[2]) @ inverse @ _zoom(size[3] / 2, size[2] / 2)
    grid = F.affine_grid(inverse[:, :2].to(x.device), list(size), align_corners=False)
    return downsample2d(sample_at(x, grid), taps, padding=-2 * edge, flip=True)


def _margins(inverse: Tensor, height: int, width: int, edge: int) -> list[int]:
    """Pixels that the batch needs beyond the left, right, top and bottom border."""
    half_x, half_y = (width - 1) / 2, (height - 1) / 2
    corners = torch.tensor(
        [[-half_x, -half_y, 1], [half_x, -half_y, 1], [half_x, half_y, 1], [-half_x, half_y, 1]]
    )
    x, y = (inverse @ corners.T)[:, :2].unbind(dim=1)
    reach = torch.stack(
        [(-x).max() - half_x, x.max() - half_x, (-y).max() - half_y, y.max() - half_y]
    )
    limit = torch.tensor([width - 1, width - 1, height - 1, height - 1])
    needed = (reach + 2 * edge).clamp(min=0).minimum(limit).ceil()
    return [int(v) for v in needed]


def _shift(x: float, y: float) -> Tensor:
    return torch.tensor([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def _zoom(x: float, y: float) -> Tensor:
    return torch.tensor([[x, 0.0, 0.0], [0.0, y, 0.0], [0.0, 0.0, 1.0]])


def _translation(x: Tensor, y: Tensor) -> Tensor:
    """`[B, 3, 3]` from `[B]` each."""
    matrix = torch.eye(3).repeat(len(x), 1, 1)
    matrix[:, 0, 2], matrix[:, 1, 2] = x, y
    return matrix


def _scaling(x: Tensor, y: Tensor) -> Tensor:
    """`[B, 3, 3]` from `[B]` each."""
    return torch.diag_embed(torch.stack([x, y, torch.ones_like(x)], dim=1))


def _rotation(angle: Tensor) -> Tensor:
    """`[B, 3, 3]` from radians `[B]`."""
    matrix = torch.eye(3).repeat(len(angle), 1, 1)
    cos, sin = angle.cos(), angle.sin()
    matrix[:, 0, 0], matrix[:, 0, 1] = cos, -sin
    matrix[:, 1, 0], matrix[:, 1, 1] = sin, cos
    return matrix


def _rotation_about(axis: Tensor, angle: Tensor) -> Tensor:
    """Rodrigues' rotation of RGB about a unit `axis [3]` by radians `[B]`: `[B, 4, 4]`."""
    x, y, z = axis.tolist()
    cross = torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    matrix = torch.eye(4).repeat(len(angle), 1, 1)
    matrix[:, :3, :3] = torch.eye(3) * cos + cross * sin + torch.outer(axis, axis) * (1 - cos)
    return matrix


def _with_column(matrix: Tensor, shift: Tensor) -> Tensor:
    """Put `shift [B]` into the first three rows of the last column: `[B, 4, 4]`."""
    matrix = matrix.repeat(len(shift), 1, 1)
    matrix[:, :3, 3] = shift[:, None]
    return matrix
