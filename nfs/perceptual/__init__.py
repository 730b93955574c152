"""Differentiable image distances and identity embeddings; Frechet distances between sets."""

from nfs.perceptual.combined import CombinedDistance, build_distance
from nfs.perceptual.dlib_face import DlibDistance
from nfs.perceptual.frechet import frechet_distance, kernel_distance
from nfs.perceptual.pixel import PixelDistance
from nfs.perceptual.protocol import (
    IdentityEmbedding,
    ImageDistance,
    find_identity,
    identity_similarity,
)

__all__ = [
    "CombinedDistance",
    "DlibDistance",
    "IdentityEmbedding",
    "ImageDistance",
    "PixelDistance",
    "build_distance",
    "find_identity",
    "frechet_distance",
    "identity_similarity",
    "kernel_distance",
]
