"""IResNet, the residual network of ArcFace (Duta et al. 2020; spec/arcface.md 2.1).

Module names are those of the published weights. Images `[B, 3, S, S]` in [-1, 1], RGB.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from nfs.arcface.prelu import ChannelPReLU

WIDTHS = (64, 128, 256, 512)


class ResidualBlock(nn.Module):
    """`bn, conv, bn, prelu, strided conv, bn` plus the shortcut; nothing after the sum."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.prelu = ChannelPReLU(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels_in != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, channels, H / stride, W / stride]`."""
        y = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        y = self.bn3(self.conv2(y))
        return y + (x if self.downsample is None else self.downsample(x))


class IResNet(nn.Module):
    """Embedding network.

    Args:
        blocks: Residual blocks of the four stages.
        embedding_size: D.
        image_size_px: S; the published weights need 112.
        dropout: Probability before the last linear layer.
        checkpoint_segments: Segments of each stage whose activations are recomputed in the backward
            pass; 0 keeps a stage's activations, -1 recomputes block by block.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        *,
        embedding_size: int = 512,
        image_size_px: int = 112,
        dropout: float = 0.0,
        checkpoint_segments: Sequence[int] = (0, 0, 0, 0),
    ) -> None:
        super().__init__()
        self.checkpoint_segments = tuple(checkpoint_segments)
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.prelu = ChannelPReLU(WIDTHS[0])
        channels_in, side = WIDTHS[0], image_size_px
        for stage, (width, count) in enumerate(zip(WIDTHS, blocks, strict=True), start=1):
            layers = [ResidualBlock(channels_in, width, 2)]
            layers += [ResidualBlock(width, width, 1) for _ in range(count - 1)]
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
            channels_in, side = width, -(-side // 2)
        self.bn2 = nn.BatchNorm2d(WIDTHS[-1])
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(WIDTHS[-1] * side * side, embedding_size)
        self.features = nn.BatchNorm1d(embedding_size)
        self.features.weight.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.1)

    def forward(self, images: Tensor) -> Tensor:
        """Return embeddings `[B, D]`, float32, not normalised."""
        x = self.prelu(self.bn1(self.conv1(images)))
        for stage, segments in enumerate(self.checkpoint_segments, start=1):
            x = self._stage(self.get_submodule(f"layer{stage}"), x, segments)
        x = self.dropout(self.bn2(x).flatten(1))
        with torch.autocast(images.device.type, enabled=False):
            embeddings: Tensor = self.features(self.fc(x.float()))
        return embeddings

    def _stage(self, stage: nn.Module, x: Tensor, segments: int) -> Tensor:
        if not self.training or not segments:
            return stage(x)
        assert isinstance(stage, nn.Sequential)
        if segments > 0:
            return checkpoint_sequential(stage, segments, x, use_reentrant=False)
        for block in stage:
            x = checkpoint(block, x, use_reentrant=False)
        return x
