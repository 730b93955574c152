"""What an image distance looks like to the rest of nfs.

Legend: B batch, H and W pixels, images float [-1, 1] `[B, 3, H, W]` RGB, E embedding size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn


class ImageDistance(Protocol):
    """A differentiable distance between images, computed from cached features.

    `name` and `checksum` belong to every value that is logged: numbers of two backends, or of two
    weight files, are not comparable. Metric keys are `perceptual_<name>`.
    """

    name: str
    checksum: str
    num_features: int

    def features(self, images: Tensor) -> list[Tensor]:
        """Return features of images `[B, 3, H, W]` in [-1, 1]; each tensor starts with B."""
        ...

    def distance(self, first: list[Tensor], second: list[Tensor]) -> Tensor:
        """Return the distance `[B]`, >= 0, between two lists of features (broadcast over B)."""
        ...

    def to(self, device: torch.device, /) -> object:
        """Move the weights, as `nn.Module.to` does."""
        ...


@runtime_checkable
class IdentityEmbedding(Protocol):
    """An embedding in which pictures of one person are close."""

    name: str
    checksum: str

    def embed(self, images: Tensor) -> Tensor:
        """Return `[B, E]` embeddings of face crops `[B, 3, H, W]` in [-1, 1]."""
        ...


def identity_similarity(first: Tensor, second: Tensor) -> Tensor:
    """Return the cosine `[B]` in [-1, 1] between two embeddings `[B, E]`."""
    return nn.functional.cosine_similarity(first, second, dim=-1)


def find_identity(distance: ImageDistance) -> IdentityEmbedding | None:
    """Return the part of a (combined) distance that embeds identities, or None."""
    for part in _parts(distance):
        if isinstance(part, IdentityEmbedding):
            return part
    return None


def _parts(distance: ImageDistance) -> Iterator[ImageDistance]:
    yield distance
    for part in getattr(distance, "parts", ()):
        yield from _parts(part)
