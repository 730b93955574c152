"""Features of image sets, and what a distance between sets of them may be called.

Numbers of two networks, or of two weight files, are not comparable, so the network is part of every
metric's name; `fid` and `kid` are Inception's alone.

Legend: B images, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from nfs.config.evaluate import ArcfaceFeatures, FaceFeatures, InceptionFile
from nfs.errors import ConfigError
from nfs.perceptual.dlib_face import DlibDistance, face_chip
from nfs.perceptual.frechet import (
    Features,
    as_features,
    frechet_distance,
    kernel_distance_of_subsets,
)
from nfs.perceptual.neighbours import NUM_NEIGHBOURS, precision_recall
from nfs.perceptual.protocol import IdentityEmbedding


@dataclass(frozen=True)
class MetricNames:
    """Names of the distances between two sets of one network's features."""

    frechet: str
    kernel: str
    precision: str
    recall: str

    @classmethod
    def of(cls, network: str) -> MetricNames:
        """Return names that carry the network's."""
        return cls(*(f"{kind}_{network}" for kind in ("frechet", "kernel", "precision", "recall")))


INCEPTION_NAMES = MetricNames("fid", "kid", "precision_inception", "recall_inception")


class FeatureExtractor(Protocol):
    """A frozen network that describes images by vectors."""

    names: MetricNames
    checksum: str
    """Of the weights."""

    def extract(self, images: Tensor) -> Tensor:
        """Return `[B, D]` of uint8 RGB images `[B, 3, H, W]`."""
        ...

    def to(self, device: torch.device, /) -> object:
        """Move the weights."""
        ...


class FaceNetFeatures:
    """The 256 pooled activations below dlib's face embedding; they see the face, not the hair.

    Args:
        net: The face network.
    """

    names = MetricNames.of("face")

    def __init__(self, net: DlibDistance):
        self.net = net
        self.checksum = net.checksum

    def to(self, device: torch.device) -> Self:
        """Move the weights."""
        self.net.to(device)
        return self

    @torch.no_grad()
    def extract(self, images: Tensor) -> Tensor:
        """Return `[B, 256]`."""
        last: Tensor = self.net.net(face_chip(_to_float(images)))[1][-1]
        return last.mean((2, 3))


class IdentityFeatures:
    """Any identity embedding as features.

    Args:
        identity: E.g. a trained ArcFace backbone.
    """

    def __init__(self, identity: IdentityEmbedding):
        self.identity = identity
        self.names, self.checksum = MetricNames.of(identity.name), identity.checksum

    def to(self, device: torch.device) -> Self:
        """Move the weights."""
        if isinstance(self.identity, torch.nn.Module):
            self.identity.to(device)
        return self

    @torch.no_grad()
    def extract(self, images: Tensor) -> Tensor:
        """Return `[B, E]`."""
        return self.identity.embed(_to_float(images))


def build_extractor(
    config: FaceFeatures | InceptionFile | ArcfaceFeatures,
    load_identity: Callable[[str], IdentityEmbedding] | None = None,
) -> FeatureExtractor:
    """Return the configured features.

    Args:
        config: Which network.
        load_identity: Reads an ArcFace checkpoint directory; the caller knows that family.

    Raises:
        ConfigError: If ArcFace is asked for where it cannot be read.
        InputError: If a file is missing or not the named one.
    """
    if isinstance(config, FaceFeatures):
        return FaceNetFeatures(DlibDistance.load())
    if isinstance(config, InceptionFile):
        from nfs.perceptual.inception import InceptionFeatures

        return InceptionFeatures.load(config.path, config.sha256)
    if load_identity is None:
        raise ConfigError("features.kind=arcface is not available here; use face or inception")
    return IdentityFeatures(load_identity(config.checkpoint))


def compare_sets(
    real: Features, generated: Features, names: MetricNames, *, seed: int = 0
) -> dict[str, float]:
    """Return the distances between two feature sets by name.

    Args:
        real: `[N, D]`, N >= 2.
        generated: `[M, D]`, M >= 2.
        names: Of the network.
        seed: Seed of the subsets of the kernel distance.

    Returns:
        Frechet and kernel distance; precision and recall where both sets have more than 3 rows.
    """
    real, generated = as_features(real), as_features(generated)
    metrics = {
        names.frechet: frechet_distance(real, generated),
        names.kernel: kernel_distance_of_subsets(real, generated, seed=seed),
    }
    if min(len(real), len(generated)) > NUM_NEIGHBOURS:
        metrics[names.precision], metrics[names.recall] = precision_recall(real, generated)
    return metrics


def _to_float(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1
