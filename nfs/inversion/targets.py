"""What is fitted: frames of one person with their cameras, and the cached features of them.

Legend: T frames, H image side in pixels; images float [-1, 1] `[T, 3, H, H]`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nfs.perceptual.protocol import ImageDistance, find_identity, identity_similarity


@dataclass(frozen=True)
class Comparison:
    """Frames to compare renderings with; their features are computed once.

    Attributes:
        images: `[T, 3, H, H]`; outside `mask` they do not count.
        mask: `[1, 1, H, H]` in {0, 1}, or None = everything counts.
        distance: Perceptual backend.
        features: Its features of the (masked) images.
        embeddings: `[T, E]` identity embeddings, or None when no backend embeds.
    """

    images: Tensor
    mask: Tensor | None
    distance: ImageDistance
    features: list[Tensor]
    embeddings: Tensor | None

    def losses(self, rendered: Tensor, frames: list[int]) -> dict[str, Tensor]:
        """Return `l2`, `perceptual` and, where possible, `identity` of some frames (scalars).

        Both the target and the rendering are masked: what the mask hides is filled with the target
        on both sides and counts nowhere.

        Args:
            rendered: `[B, 3, H, H]` renderings of these frames.
            frames: B frame numbers.
        """
        wanted = self.images[frames]
        if self.mask is not None:
            rendered = rendered * self.mask + wanted * (1 - self.mask)
        found = self.distance.features(rendered)
        losses = {
            "l2": (rendered - wanted).square().mean(),
            "perceptual": self.distance.distance(found, [f[frames] for f in self.features]).mean(),
        }
        backend = find_identity(self.distance)
        if backend is not None and self.embeddings is not None:
            similarity = identity_similarity(backend.embed(rendered), self.embeddings[frames])
            losses["identity"] = (1 - similarity).mean()
        return losses


def compare_with(
    images: Tensor, distance: ImageDistance, *, mask: Tensor | None = None, identity: bool = False
) -> Comparison:
    """Prepare frames for comparison.

    Args:
        images: `[T, 3, H, H]` in [-1, 1].
        distance: Perceptual backend.
        mask: `[1, 1, H, H]`, 1 where pixels count; None = everywhere.
        identity: Also embed the frames.

    Raises:
        ValueError: If an identity term is asked of a backend that embeds nobody.
    """
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
        raise ValueError(f"target must be [T, 3, H, H], got {list(images.shape)}")
    backend = find_identity(distance)
    if identity and backend is None:
        raise ValueError(f"backend {distance.name!r} has no identity embedding; use dlib")
    with torch.no_grad():
        features = distance.features(images)
        embeddings = backend.embed(images) if identity and backend is not None else None
    return Comparison(images, mask, distance, features, embeddings)


def tile_mask(size_px: int, *, tiles: int = 8, seed: int = 0, held_out: float = 0.15) -> Tensor:
    """Return `[1, 1, H, H]` that is 0 on randomly chosen square tiles: held-out parts of a photo.

    Args:
        size_px: H.
        tiles: Tiles per side.
        seed: Chooses the tiles.
        held_out: Share of tiles that is hidden, in (0, 1).
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(tiles * tiles, generator=generator).argsort()
    keep = torch.ones(tiles * tiles)
    keep[order[: max(1, round(held_out * tiles * tiles))]] = 0
    grid = keep.view(1, 1, tiles, tiles)
    return torch.nn.functional.interpolate(grid, size=(size_px, size_px), mode="nearest")
