"""The StyleGAN2 discriminator with progressive growth and its camera and dual variants.

Legend: B batch, R resolution, C channels. Formulas: spec/stylenerf.md 2.7.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nfs.stylenerf.discriminator_head import CAMERA_SIZES, CameraHead, LabelMapping
from nfs.stylenerf.layers import EqualConv2d, EqualLinear, at_least_single, minibatch_std
from nfs.stylenerf.resampling import fir_downsample
from nfs.stylenerf.spec import DiscriminatorSpec

RGB_CHANNELS = 3
_LAST_RESOLUTION = 4


class DiscriminatorBlock(nn.Module):
    """Colour to features at one resolution, two convolutions, half the size.

    Args:
        channels: Width at this resolution.
        out_channels: Width at half of it.
        architecture: `skip`: every block sees the image; `orig`, `resnet`: the first alone, and
            `resnet` blocks have a linear bypass.
        is_first: Whether this is the block of the full resolution.
        img_channels: Channels of the image.
        clamp: Clamp of activations, or None.
        num_frozen: Layers, counted from the image, that are not trained.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        architecture: str = "skip",
        is_first: bool = False,
        img_channels: int = RGB_CHANNELS,
        clamp: float | None,
        num_frozen: int = 0,
    ) -> None:
        super().__init__()
        self.uses_image = architecture == "skip"
        self.from_rgb: EqualConv2d | None = None
        self.bypass: EqualConv2d | None = None
        self.num_layers = 0

        def trainable() -> bool:
            self.num_layers += 1
            return self.num_layers > num_frozen

        if self.uses_image or is_first:
            self.from_rgb = EqualConv2d(
                img_channels, channels, 1, clamp=clamp, trainable=trainable()
            )
        self.conv0 = EqualConv2d(channels, channels, 3, clamp=clamp, trainable=trainable())
        gain = math.sqrt(0.5) if architecture == "resnet" else 1.0
        self.conv1 = EqualConv2d(
            channels, out_channels, 3, down=True, gain=gain, clamp=clamp, trainable=trainable()
        )
        if architecture == "resnet":
            self.bypass = EqualConv2d(
                channels,
                out_channels,
                1,
                activation="linear",
                bias=False,
                down=True,
                gain=gain,
                trainable=trainable(),
            )

    def forward(self, x: Tensor | None, image: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return features and image at half of R from `x [B, C, R, R]` and `image [B, 3, R, R]`.

        The image is None after the first block of an architecture other than `skip`.
        """
        if self.from_rgb is not None:
            assert image is not None
            seen = self.from_rgb(image)
            x = seen if x is None else x + seen
            image = fir_downsample(image) if self.uses_image else None
        assert x is not None
        y = self.conv1(self.conv0(x))
        return (y if self.bypass is None else self.bypass(x) + y), image


class DiscriminatorEpilogue(nn.Module):
    """From 4x4 features to one logit.

    Args:
        channels: Width.
        spec: Architecture.
    """

    def __init__(self, channels: int, spec: DiscriminatorSpec) -> None:
        super().__init__()
        self.group_size = spec.mbstd_group_size
        self.num_channels = spec.mbstd_num_channels
        self.from_rgb: EqualConv2d | None = None
        if spec.architecture == "skip":
            self.from_rgb = EqualConv2d(spec.input_channels, channels, 1)
        self.conv = EqualConv2d(channels + self.num_channels, channels, 3, clamp=spec.conv_clamp)
        self.fc = EqualLinear(channels * _LAST_RESOLUTION**2, channels, activation="lrelu")
        self.out = EqualLinear(channels, spec.cmap_features or 1)

    def forward(self, x: Tensor, image: Tensor | None, condition: Tensor | None = None) -> Tensor:
        """Return logits `[B, 1]`.

        Args:
            x: `[B, C, 4, 4]`.
            image: `[B, 3, 4, 4]`; unused where the architecture is not `skip`.
            condition: Weights of the output channels `[B, cmap_features]` (projection
                discriminator, Miyato & Koyama 2018), or None.
        """
        # Statistics over samples and the logits themselves need single precision.
        with torch.autocast(x.device.type, enabled=False):
            x = at_least_single(x)
            if self.from_rgb is not None:
                assert image is not None
                x = x + self.from_rgb(at_least_single(image))
            x = minibatch_std(x, group_size=self.group_size, num_channels=self.num_channels)
            logits: Tensor = self.out(self.fc(self.conv(x).flatten(1)))
            if condition is None:
                return logits
            weighted = (logits * at_least_single(condition)).sum(dim=1, keepdim=True)
            return weighted / math.sqrt(condition.shape[1])


class Discriminator(nn.Module):
    """Score images: large logits for real ones.

    Args:
        spec: Architecture.

    Raises:
        ValueError: If options of `spec` exclude each other; the message names them.
    """

    def __init__(self, spec: DiscriminatorSpec) -> None:
        super().__init__()
        spec.check()
        self.spec = spec
        self.resolutions = spec.resolutions(spec.img_resolution)
        self.blocks = self._trunk_of(self.resolutions, frozen=spec.num_frozen_layers)
        last = spec.channels(_LAST_RESOLUTION)
        self.epilogue = DiscriminatorEpilogue(last, spec)
        self.low_resolutions: list[int] = []
        self.low_blocks: nn.ModuleDict | None = None
        if spec.dual_discriminator or spec.separate_camera:
            assert spec.lowres_head is not None
            self.low_resolutions = spec.resolutions(spec.lowres_head)
            self.low_blocks = self._trunk_of(self.low_resolutions, frozen=0)
        self.camera_head = None if spec.camera is None else CameraHead(last, spec.camera)
        self.label_mapping: LabelMapping | None = None
        if spec.condition_dim:
            self.label_mapping = LabelMapping(
                spec.condition_dim, spec.cmap_features, num_layers=spec.mapping_num_layers
            )

    def first_resolution(self, alpha: float, image_resolution: int) -> int:
        """Return the resolution of the first active block."""
        if not self.spec.progressive or alpha in (-1, 1):
            return self.spec.img_resolution
        if alpha == 0:
            return self.spec.lowres_head or self.spec.img_resolution
        return min(image_resolution, self.spec.img_resolution)

    def forward(
        self,
        image: Tensor,
        *,
        alpha: float = 1.0,
        image_low: Tensor | None = None,
        c: Tensor | None = None,
        return_camera: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return logits `[B, 1]` of images `[B, 3, R, R]`.

        Args:
            image: Images; larger than the first active block are resized.
            alpha: Growth stage in [0, 1], or -1: everything is active.
            image_low: The low-resolution images `[B, 3, r, r]` that generated ones came with, for
                dual discriminators; None (real images): the images themselves, resized.
            c: Conditions `[B, c_dim]`.
            return_camera: Also return the predicted cameras, see `CameraHead`.

        Returns:
            Logits; of a dual discriminator `[2 B, 1]`, those of the low-resolution images last.
            With `return_camera` a pair.
        """
        first = self.first_resolution(alpha, image.shape[-1])
        self._check(image, c, first=first, alpha=alpha, return_camera=return_camera)
        if image.shape[-1] > first:
            image = _resized(image, first)
        seen = self._with_low(image, image_low) if self.spec.dual_input_ratio else image
        features, rest = self._features(seen, first, alpha)
        camera = self._camera(image, features)
        condition: Tensor | None = None
        if self.label_mapping is not None:
            source = c if c is not None or camera is None else camera.detach()
            condition = self.label_mapping(source)
        logits: Tensor = self.epilogue(features, rest, condition)
        if self.spec.dual_discriminator:
            low = self._low_features(image if image_low is None else image_low)
            logits = torch.cat([logits, self.epilogue(*low, condition)])
        if not return_camera:
            return logits
        assert camera is not None
        return logits, camera

    def _trunk_of(self, resolutions: list[int], *, frozen: int) -> nn.ModuleDict:
        spec, blocks = self.spec, nn.ModuleDict()
        for resolution in resolutions:
            block = DiscriminatorBlock(
                spec.channels(resolution),
                spec.channels(resolution // 2),
                architecture=spec.architecture,
                is_first=resolution == resolutions[0],
                img_channels=spec.input_channels,
                clamp=spec.conv_clamp,
                num_frozen=frozen,
            )
            frozen = max(0, frozen - block.num_layers)
            blocks[str(resolution)] = block
        return blocks

    def _features(self, image: Tensor, first: int, alpha: float) -> tuple[Tensor, Tensor | None]:
        """Return features and image at 4x4."""
        x: Tensor | None = None
        rest: Tensor | None = image
        if first != self.spec.img_resolution:
            # The original starts from the colours and then adds them again in the first block;
            # published weights were trained that way (Q16).
            x = self._from_rgb(first, image)
        fade = self._fade(first, alpha)
        for resolution in self.resolutions:
            if resolution > first:
                continue
            x, rest = self.blocks[str(resolution)](x, rest)
            if fade is not None and resolution == first:
                assert rest is not None
                half = _resized(image, first // 2)
                rest = half.lerp(rest, fade)
                x = self._from_rgb(first // 2, half).lerp(x, fade)
        assert x is not None
        return x, rest

    def _low_features(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return what `_features` does, from the blocks for low-resolution images."""
        assert self.low_blocks is not None
        rest: Tensor | None = _resized(image, self.low_resolutions[0])
        x: Tensor | None = None
        for block in self.low_blocks.values():
            x, rest = block(x, rest)
        assert x is not None
        return x, rest

    def _camera(self, image: Tensor, features: Tensor) -> Tensor | None:
        if self.camera_head is None:
            return None
        if self.spec.separate_camera:
            features, _ = self._low_features(image)
        camera: Tensor = self.camera_head(features)
        return camera

    def _with_low(self, image: Tensor, image_low: Tensor | None) -> Tensor:
        """Return `[B, 6, R, R]`: the image and what is left of it at a lower resolution."""
        assert self.spec.dual_input_ratio is not None
        size = image.shape[-1]
        if image_low is None:
            image_low = _resized(image, size // self.spec.dual_input_ratio)
        return torch.cat([image, _resized(image_low, size)], dim=1)

    def _fade(self, first: int, alpha: float) -> float | None:
        """Return the weight of the first active block, or None: it is used alone."""
        spec = self.spec
        if not spec.fade or not spec.progressive or not 0 < alpha < 1:
            return None
        assert spec.lowres_head is not None
        if first <= spec.lowres_head:
            return None
        return math.modf(alpha * math.log2(spec.img_resolution / spec.lowres_head))[0]

    def _from_rgb(self, resolution: int, image: Tensor) -> Tensor:
        block = self.blocks[str(resolution)]
        assert isinstance(block, DiscriminatorBlock)
        assert block.from_rgb is not None
        features: Tensor = block.from_rgb(image)
        return features

    def _check(
        self,
        image: Tensor,
        c: Tensor | None,
        *,
        first: int,
        alpha: float,
        return_camera: bool,
    ) -> None:
        if image.ndim != 4 or image.shape[1] != RGB_CHANNELS or image.shape[2] != image.shape[3]:
            raise ValueError(f"image must be [B, 3, R, R], got {list(image.shape)}")
        if image.shape[-1] < first:
            raise ValueError(
                f"image of {image.shape[-1]} px is smaller than the first active block "
                f"({first} px at alpha={alpha})"
            )
        expected = [len(image), self.spec.c_dim] if self.spec.c_dim else None
        given = None if c is None else list(c.shape)
        if given != expected:
            raise ValueError(
                f"c must be {expected} for a discriminator with c_dim={self.spec.c_dim}, "
                f"got {given}"
            )
        if return_camera and self.camera_head is None:
            raise ValueError(
                f"this discriminator predicts no camera; its spec's camera must be one of "
                f"{sorted(CAMERA_SIZES)}"
            )


def _resized(image: Tensor, size: int) -> Tensor:
    if image.shape[-1] == size:
        return image
    return F.interpolate(image, size=(size, size), mode="bilinear", align_corners=False)
