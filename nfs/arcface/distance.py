"""A trained backbone as perceptual distance of face crops (`nfs.perceptual` protocols).

Legend: B images, C channels, h and w positions, N tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from nfs.arcface.identity import FFHQ_BOX, ArcfaceIdentity
from nfs.arcface.iresnet import IResNet
from nfs.arcface.mobilefacenet import MobileFaceNet

_NUM_TRANSFORMER_TAPS = 4


class ArcfaceDistance(nn.Module):
    """Distance of the features that a face-recognition network computes on its way.

    The mean over taps of the squared difference of channel-normalised features, averaged over
    positions, as `DlibDistance`. It sees the aligned face only: combine it with `pixel`.

    Args:
        identity: The network and the place of the face in the crop.
    """

    def __init__(self, identity: ArcfaceIdentity) -> None:
        super().__init__()
        self.identity = identity
        self.name, self.checksum = identity.name, identity.checksum
        self.taps = tap_names(identity.backbone)
        self.num_features = len(self.taps)

    @classmethod
    def from_checkpoint(
        cls, directory: str | Path, box: tuple[float, float, float, float] = FFHQ_BOX
    ) -> ArcfaceDistance:
        """Load a checkpoint directory of `jobs.train_arcface`."""
        return cls(ArcfaceIdentity.from_checkpoint(directory, box))

    def features(self, images: Tensor) -> list[Tensor]:
        """Return channel-normalised taps of crops `[B, 3, H, W]`, RGB in [-1, 1].

        Each is `[B, C, h, w]`, or `[B, N, C]` of a transformer with the channels last.
        """
        with _recorded(self.identity.backbone, self.taps) as found:
            self.identity.backbone(self.identity.crop(images))
        return [functional.normalize(tap, dim=1 if tap.dim() == 4 else 2) for tap in found]

    def distance(self, first: list[Tensor], second: list[Tensor]) -> Tensor:
        """Return the tap distance `[B]`, 0 for equal features."""
        terms = [
            (a - b).square().sum(1 if a.dim() == 4 else 2).flatten(1).mean(1)
            for a, b in zip(first, second, strict=True)
        ]
        return torch.stack(terms).mean(0)

    def embed(self, images: Tensor) -> Tensor:
        """Return unit embeddings `[B, D]` of crops."""
        return self.identity.embed(images)


def tap_names(backbone: nn.Module) -> tuple[str, ...]:
    """Return the submodules whose outputs are compared: the ends of stages, or every few blocks."""
    if isinstance(backbone, IResNet):
        return ("layer1", "layer2", "layer3", "layer4")
    if isinstance(backbone, MobileFaceNet):
        return ("layers.1", "layers.3", "layers.5", "layers.7")
    depth = len(list(backbone.get_submodule("blocks").children()))
    ends = range(depth // _NUM_TRANSFORMER_TAPS, depth + 1, depth // _NUM_TRANSFORMER_TAPS)
    return tuple(f"blocks.{end - 1}" for end in ends)


@contextmanager
def _recorded(backbone: nn.Module, names: Sequence[str]) -> Iterator[list[Tensor]]:
    """Collect the outputs of submodules during one forward pass."""
    found: list[Tensor] = []
    handles = [
        backbone.get_submodule(name).register_forward_hook(lambda *args: found.append(args[2]))
        for name in names
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
