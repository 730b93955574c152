"""The StyleGAN2 discriminator with progressive growth.

Legend: B batch, R resolution, C channels. Formulas: spec/stylenerf.md 2.7.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from nfs.stylenerf.layers import EqualConv2d, EqualLinear, minibatch_std
from nfs.stylenerf.resampling import fir_downsample
from nfs.stylenerf.spec import DiscriminatorSpec

_LAST_RESOLUTION = 4


class DiscriminatorBlock(nn.Module):
    """Colour to features at one resolution, two convolutions, half the size.

    Args:
        channels: Width at this resolution.
        out_channels: Width at half of it.
        clamp: Clamp of activations, or None.
    """

    def __init__(self, channels: int, out_channels: int, *, clamp: float | None) -> None:
        super().__init__()
        self.from_rgb = EqualConv2d(3, channels, 1, clamp=clamp)
        self.conv0 = EqualConv2d(channels, channels, 3, clamp=clamp)
        self.conv1 = EqualConv2d(channels, out_channels, 3, down=True, clamp=clamp)

    def forward(self, x: Tensor | None, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return features and image at half of R from `x [B, C, R, R]` and `image [B, 3, R, R]`."""
        seen = self.from_rgb(image)
        x = seen if x is None else x + seen
        return self.conv1(self.conv0(x)), fir_downsample(image)


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
        self.from_rgb = EqualConv2d(3, channels, 1)
        self.conv = EqualConv2d(channels + self.num_channels, channels, 3, clamp=spec.conv_clamp)
        self.fc = EqualLinear(channels * _LAST_RESOLUTION**2, channels, activation="lrelu")
        self.out = EqualLinear(channels, 1)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        """Map `x [B, C, 4, 4]` and `image [B, 3, 4, 4]` to logits `[B, 1]`."""
        x = x + self.from_rgb(image)
        x = minibatch_std(x, group_size=self.group_size, num_channels=self.num_channels)
        logits: Tensor = self.out(self.fc(self.conv(x).flatten(1)))
        return logits


class Discriminator(nn.Module):
    """Score images: large logits for real ones.

    Args:
        spec: Architecture.
    """

    def __init__(self, spec: DiscriminatorSpec) -> None:
        super().__init__()
        self.spec = spec
        self.resolutions: list[int] = []
        resolution = spec.img_resolution
        while resolution > _LAST_RESOLUTION:
            self.resolutions.append(resolution)
            resolution //= 2
        self.blocks = nn.ModuleDict(
            {
                str(r): DiscriminatorBlock(
                    spec.channels(r), spec.channels(r // 2), clamp=spec.conv_clamp
                )
                for r in self.resolutions
            }
        )
        self.epilogue = DiscriminatorEpilogue(spec.channels(_LAST_RESOLUTION), spec)

    def first_resolution(self, alpha: float, image_resolution: int) -> int:
        """Return the resolution of the first active block."""
        if not self.spec.progressive or alpha in (-1, 1):
            return self.spec.img_resolution
        if alpha == 0:
            return self.spec.lowres_head or self.spec.img_resolution
        return min(image_resolution, self.spec.img_resolution)

    def forward(self, image: Tensor, *, alpha: float = 1.0) -> Tensor:
        """Return logits `[B, 1]` of images `[B, 3, R, R]`.

        Args:
            image: Images; larger than the first active block are resized.
            alpha: Growth stage in [0, 1], or -1: everything is active.
        """
        if image.ndim != 4 or image.shape[1] != 3 or image.shape[2] != image.shape[3]:
            raise ValueError(f"image must be [B, 3, R, R], got {list(image.shape)}")
        first = self.first_resolution(alpha, image.shape[-1])
        if image.shape[-1] < first:
            raise ValueError(
                f"image of {image.shape[-1]} px is smaller than the first active block "
                f"({first} px at alpha={alpha})"
            )
        if image.shape[-1] > first:
            size = (first, first)
            image = F.interpolate(image, size=size, mode="bilinear", align_corners=False)
        x: Tensor | None = None
        if self.spec.progressive and first != self.spec.img_resolution:
            # The original starts from the colours and then adds them again in the first block;
            # published weights were trained that way (Q16).
            block = self.blocks[str(first)]
            assert isinstance(block, DiscriminatorBlock)
            x = block.from_rgb(image)
        for resolution in self.resolutions:
            if resolution <= first:
                x, image = self.blocks[str(resolution)](x, image)
        assert x is not None
        logits: Tensor = self.epilogue(x, image)
        return logits
