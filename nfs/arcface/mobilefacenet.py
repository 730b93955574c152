"""MobileFaceNet, the small embedding network (Chen et al. 2018; spec/arcface.md 2.2).

Module names are those of the published weights. Images `[B, 3, S, S]` in [-1, 1], RGB.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nfs.arcface.prelu import ChannelPReLU


class _Stack(nn.Module):
    """Layers in sequence under the name `layers`, optionally with a residual connection."""

    def __init__(self, *layers: nn.Module, residual: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """Return the layers' output, plus the input if residual."""
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


def _conv(
    channels_in: int,
    channels: int,
    kernel: int,
    *,
    stride: int = 1,
    groups: int = 1,
    padding: int | None = None,
    activation: bool = True,
) -> _Stack:
    pad = kernel // 2 if padding is None else padding
    layers: list[nn.Module] = [
        nn.Conv2d(channels_in, channels, kernel, stride, pad, groups=groups, bias=False),
        nn.BatchNorm2d(channels),
    ]
    return _Stack(*layers, ChannelPReLU(channels)) if activation else _Stack(*layers)


def _depthwise(
    channels_in: int, channels: int, hidden: int, *, stride: int = 1, residual: bool = False
) -> _Stack:
    return _Stack(
        _conv(channels_in, hidden, 1),
        _conv(hidden, hidden, 3, stride=stride, groups=hidden),
        _conv(hidden, channels, 1, activation=False),
        residual=residual,
    )


def _residuals(channels: int, count: int, hidden: int) -> _Stack:
    return _Stack(*(_depthwise(channels, channels, hidden, residual=True) for _ in range(count)))


class MobileFaceNet(nn.Module):
    """Embedding network with depthwise convolutions.

    Args:
        blocks: Residual blocks of the four stages.
        width: Width factor: 2 for mbf, 4 for mbf_large, 1 for files from before August 2021.
        embedding_size: D.
        image_size_px: S; the published weights need 112.
    """

    def __init__(
        self,
        blocks: Sequence[int] = (1, 4, 6, 2),
        *,
        width: int = 2,
        embedding_size: int = 512,
        image_size_px: int = 112,
    ) -> None:
        super().__init__()
        narrow, wide = 64 * width, 128 * width
        first = (
            _conv(narrow, narrow, 3, groups=64)
            if blocks[0] == 1
            else _residuals(narrow, blocks[0], 128)
        )
        self.layers = nn.ModuleList(
            [
                _conv(3, narrow, 3, stride=2),
                first,
                _depthwise(narrow, narrow, 128, stride=2),
                _residuals(narrow, blocks[1], 128),
                _depthwise(narrow, wide, 256, stride=2),
                _residuals(wide, blocks[2], 256),
                _depthwise(wide, wide, 512, stride=2),
                _residuals(wide, blocks[3], 256),
            ]
        )
        side = -(-image_size_px // 16)
        self.conv_sep = _conv(wide, 512, 1)
        self.features = _Stack(
            _conv(512, 512, side, groups=512, padding=0, activation=False),
            nn.Flatten(),
            nn.Linear(512, embedding_size, bias=False),
            nn.BatchNorm1d(embedding_size),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Return embeddings `[B, D]`, float32, not normalised."""
        x = images
        for layer in self.layers:
            x = layer(x)
        with torch.autocast(images.device.type, enabled=False):
            embeddings: Tensor = self.features(self.conv_sep(x.float()))
        return embeddings
