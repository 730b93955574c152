"""Wav2Lip's audio encoder: one mel window to one 512-vector (spec/audio.md 2.3).

Parameter names equal the original's (`<i>.conv_block.0.*` convolution, `<i>.conv_block.1.*` norm).
"""

from torch import Tensor, nn

EMBEDDING_SIZE = 512

Stride = int | tuple[int, int]

# (channels in, channels out, kernel, stride (mel, time), padding, residual)
_LAYERS: tuple[tuple[int, int, int, Stride, int, bool], ...] = (
    (1, 32, 3, 1, 1, False),
    (32, 32, 3, 1, 1, True),
    (32, 32, 3, 1, 1, True),
    (32, 64, 3, (3, 1), 1, False),
    (64, 64, 3, 1, 1, True),
    (64, 64, 3, 1, 1, True),
    (64, 128, 3, 3, 1, False),
    (128, 128, 3, 1, 1, True),
    (128, 128, 3, 1, 1, True),
    (128, 256, 3, (3, 2), 1, False),
    (256, 256, 3, 1, 1, True),
    (256, 512, 3, 1, 0, False),
    (512, 512, 1, 1, 0, False),
)


class ConvLayer(nn.Module):
    """Convolution, BatchNorm, optional residual sum, ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: Stride,
        padding: int,
        residual: bool,
    ) -> None:
        """Build the layer; `residual` needs equal shapes in and out."""
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, kernel, stride, padding),
            nn.BatchNorm2d(out_channels),
        )
        self.residual = residual

    def forward(self, features: Tensor) -> Tensor:
        """Return the layer's output [N, C, mel, time]."""
        output = self.conv_block(features)
        if self.residual:
            output = output + features
        return output.relu_()


class AudioEncoder(nn.Sequential):
    """Thirteen layers from [N, 80, 16] mel windows to [N, 512] embeddings, all >= 0."""

    def __init__(self) -> None:
        """Build the layers, randomly initialised."""
        super().__init__(*(ConvLayer(*layer) for layer in _LAYERS))

    def forward(self, windows: Tensor) -> Tensor:
        """Return embeddings [N, 512] of mel windows [N, 80, 16] with values in [-4, 4]."""
        features = windows[:, None]
        for layer in self:
            features = layer(features)
        return features.flatten(1)
