"""A trained backbone as identity embedding of face crops (`nfs.perceptual` protocol).

Legend: B images, H and W pixels in [-1, 1], D embedding size.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from nfs.arcface.export import load_backbone
from nfs.training.checkpoint import WEIGHTS, read_model

# Where the 112 px template lies in an FFHQ crop (left, top, right, bottom), parts of the side.
FFHQ_BOX = (0.125, 0.137, 0.859, 0.871)
WHOLE_BOX = (0.0, 0.0, 1.0, 1.0)


class ArcfaceIdentity(nn.Module):
    """Differentiable identity features of aligned crops.

    Args:
        backbone: In eval mode.
        image_size_px: Input side of the backbone.
        name: For logs.
        checksum: Of the weights, for logs.
        box: Part of the crop that is embedded; `WHOLE_BOX` for 112 px aligned pictures.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        image_size_px: int = 112,
        name: str = "arcface",
        checksum: str = "",
        box: tuple[float, float, float, float] = FFHQ_BOX,
    ) -> None:
        super().__init__()
        self.backbone = backbone.eval().requires_grad_(False)
        self.image_size_px, self.box = image_size_px, box
        self.name, self.checksum = name, checksum

    @classmethod
    def from_checkpoint(
        cls, directory: str | Path, box: tuple[float, float, float, float] = FFHQ_BOX
    ) -> ArcfaceIdentity:
        """Load a checkpoint directory of `jobs.train_arcface`."""
        model = read_model(directory)
        digest = hashlib.sha256((Path(directory) / WEIGHTS).read_bytes()).hexdigest()[:12]
        return cls(
            load_backbone(directory),
            image_size_px=int(model["options"]["image_size_px"]),
            name=f"arcface_{model['name']}",
            checksum=digest,
            box=box,
        )

    def embed(self, images: Tensor) -> Tensor:
        """Return unit embeddings `[B, D]` of crops `[B, 3, H, W]`, RGB in [-1, 1]."""
        return nn.functional.normalize(self.backbone(self.crop(images)), dim=1)

    def crop(self, images: Tensor) -> Tensor:
        """Return the backbone's input `[B, 3, S, S]`: the box of the crops, resized."""
        height, width = images.shape[-2:]
        left, top, right, bottom = self.box
        rows = slice(round(top * height), round(bottom * height))
        columns = slice(round(left * width), round(right * width))
        size = (self.image_size_px, self.image_size_px)
        return nn.functional.interpolate(
            images[..., rows, columns], size=size, mode="bilinear", antialias=True
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return `embed(images)`."""
        return self.embed(images)

    @torch.no_grad()
    def similarity(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the cosine `[B]` of two sets of crops."""
        return (self.embed(first) * self.embed(second)).sum(1)
