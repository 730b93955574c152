"""The 2-D stack: blocks that double the rendered feature map up to the size of the image.

Legend: B batch, C channels, R resolution. Formulas: spec/stylenerf.md 2.2.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nfs.stylenerf.synthesis import LayerOptions, Noise, SynthesisBlock


class Upsampler(nn.Module):
    """Blocks for every doubling from the field's resolution to the image's.

    A block takes the rows of `ws` of its layers and its colour but advances by those of its layers
    only: its colour shares the row of the next block's first layer.

    Args:
        in_channels: Channels of the feature map.
        options: Shared by all layers.
        resolutions: Output resolution of each block, ascending.
        channels: Width of each block.
        architecture: `skip`, `orig` or `resnet`; see `synthesis.Architecture`.
        single_layer: One layer per block instead of two.
        shared_rgb_style: All colours take the last row of `ws`.
        residual_image: Add colours to the doubled image; False: a block's colour replaces it.
    """

    def __init__(
        self,
        in_channels: int,
        options: LayerOptions,
        *,
        resolutions: list[int],
        channels: list[int],
        architecture: str = "skip",
        single_layer: bool = False,
        shared_rgb_style: bool = False,
        residual_image: bool = True,
    ) -> None:
        super().__init__()
        self.resolutions = resolutions
        self.shared_rgb_style = shared_rgb_style
        self.residual_image = residual_image
        widths = [in_channels, *channels]
        self.blocks = nn.ModuleDict(
            {
                str(resolution): SynthesisBlock(
                    a,
                    b,
                    resolution,
                    options,
                    architecture=architecture,
                    is_last=resolution == resolutions[-1],
                    single_layer=single_layer,
                )
                for resolution, a, b in zip(resolutions, widths[:-1], widths[1:], strict=True)
            }
        )
        self.num_ws = sum(self._block(r).num_conv for r in resolutions) + int(bool(resolutions))

    def forward(
        self,
        x: Tensor,
        image: Tensor,
        ws: Tensor,
        *,
        limit: int,
        noise: Noise = None,
        double: bool = True,
    ) -> list[Tensor]:
        """Return the images `[B, 3, R, R]` of all blocks with R <= `limit`, ascending.

        Args:
            x: Feature map `[B, C, r, r]`.
            image: Low-resolution image `[B, 3, r, r]`.
            ws: `[B, num_ws, w_dim]`.
            limit: Resolution of the last block to run.
            noise: See `synthesis.Noise`.
            double: False keeps the size of `x` and `image` in all blocks (each pixel is a point
                on its own, as the path regulariser needs); there is no noise then.
        """
        images: list[Tensor] = []
        first = 0
        for resolution in self.resolutions:
            if resolution > limit:
                break
            block = self._block(resolution)
            end = first + block.num_conv
            rows = ws[:, first : end + block.num_to_rgb]
            if self.shared_rgb_style and block.num_to_rgb:
                rows = torch.cat([ws[:, first:end], ws[:, -1:]], dim=1)
            seen = image if self.residual_image else None
            x, made = block(x, seen, rows, noise=noise, double=double)
            assert made is not None
            image = made
            images.append(image)
            first = end
        return images

    def _block(self, resolution: int) -> SynthesisBlock:
        block = self.blocks[str(resolution)]
        assert isinstance(block, SynthesisBlock)
        return block


def framed(image: Tensor, rectangle: tuple[int, int] | None, full_px: int) -> Tensor:
    """Return `[B, C, H, H]` black outside the middle `rectangle`; None: all of it is kept.

    Args:
        image: Of any growth stage.
        rectangle: Height and width at full size, in pixels.
        full_px: Side of the full image.
    """
    if rectangle is None:
        return image
    size = image.shape[-1]
    top, left = ((size - side * size // full_px) // 2 for side in rectangle)
    kept = image[:, :, top : size - top, left : size - left]
    return F.pad(kept, (left, left, top, top), value=-1.0)
