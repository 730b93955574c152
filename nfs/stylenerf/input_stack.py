"""The stack that turns styles into planes or volumes for a radiance field.

Legend: B batch, C channels, R resolution. Formulas: spec/stylenerf.md 2.2, 2.3, 2.5.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nfs.stylenerf.synthesis import LayerOptions, Noise, SynthesisBlock


class InputStack(nn.Module):
    """Blocks for every doubling from a start resolution, from a learned constant to planes.

    The planes are the "image" of the blocks: their colours, summed over resolutions or, with
    `orig`, of the last block alone. As in the original the first block is that of twice the start
    resolution.

    Args:
        out_channels: Channels of the result.
        options: Shared by all layers.
        in_resolution: Start resolution.
        out_resolution: Resolution of the result.
        channels: Width of the block at a resolution.
        architecture: `skip`, `orig` or `resnet`; see `synthesis.Architecture`.
        dims: 2 for planes, 3 for volumes.
        const_planes: 0: the first block starts from its constant. P: P constants at the start
            resolution go through the blocks with the same styles, one after the other.
    """

    def __init__(
        self,
        out_channels: int,
        options: LayerOptions,
        *,
        in_resolution: int,
        out_resolution: int,
        channels: Callable[[int], int],
        architecture: str = "skip",
        dims: int = 2,
        const_planes: int = 0,
    ) -> None:
        super().__init__()
        self.resolutions: list[int] = []
        while in_resolution * 2 ** len(self.resolutions) < out_resolution:
            self.resolutions.append(in_resolution * 2 ** (len(self.resolutions) + 1))
        if not self.resolutions or self.resolutions[-1] != out_resolution:
            raise ValueError(
                f"out_resolution={out_resolution} is not in_resolution={in_resolution} doubled "
                "once or more"
            )
        self.const_planes = const_planes
        self.const: nn.Parameter | None = None
        width = 0
        if const_planes:
            width = channels(in_resolution)
            self.const = nn.Parameter(torch.randn(const_planes, width, *(in_resolution,) * dims))
        self.blocks = nn.ModuleDict()
        self.num_ws = 1
        for resolution in self.resolutions:
            block = SynthesisBlock(
                width,
                channels(resolution),
                resolution,
                options,
                img_channels=out_channels,
                architecture=architecture,
                is_last=resolution == out_resolution,
                dims=dims,
            )
            self.blocks[str(resolution)] = block
            self.num_ws += block.num_conv
            width = channels(resolution)

    def forward(self, ws: Tensor, *, noise: Noise = None) -> Tensor:
        """Return planes or volumes `[B, out_channels, R, R(, R)]`.

        Args:
            ws: Styles `[B, num_ws, w_dim]`.
            noise: See `synthesis.Noise`.

        Returns:
            With constant planes `[B * const_planes, ...]`, the planes of a sample one after the
            other.
        """
        x: Tensor | None = None
        if self.const is not None:
            x = self.const.repeat(len(ws), *(1,) * (self.const.ndim - 1))
        image: Tensor | None = None
        first = 0
        for block in self.blocks.values():
            assert isinstance(block, SynthesisBlock)
            end = first + block.num_conv
            x, image = block(x, image, ws[:, first : end + block.num_to_rgb], noise=noise)
            first = end
        assert image is not None
        return image
