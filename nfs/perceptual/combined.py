"""Weighted sums of distances, and building a distance from its name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from nfs.errors import ConfigError
from nfs.perceptual.dlib_face import DlibDistance
from nfs.perceptual.pixel import PixelDistance
from nfs.perceptual.protocol import ImageDistance

BACKENDS: dict[str, Callable[[], ImageDistance]] = {
    "dlib": DlibDistance.load,
    "pixel": PixelDistance,
}


class CombinedDistance(nn.Module):
    """Weighted sum of distances; its name joins the parts, e.g. `dlib_pixel`.

    Args:
        parts: The distances.
        weights: One weight per part, > 0.
    """

    def __init__(self, parts: Sequence[ImageDistance], weights: Sequence[float]):
        super().__init__()
        if len(parts) != len(weights) or not parts:
            raise ValueError(f"{len(parts)} distances and {len(weights)} weights")
        if len({part.name for part in parts}) < len(parts):
            raise ValueError(f"a backend is named twice: {[part.name for part in parts]}")
        self.parts = tuple(parts)
        self._modules_of_parts = nn.ModuleList(p for p in parts if isinstance(p, nn.Module))
        self.weights = tuple(weights)
        self.name = "_".join(part.name for part in parts)
        text = ",".join(f"{p.checksum}*{w:g}" for p, w in zip(parts, weights, strict=True))
        self.checksum = hashlib.sha256(text.encode()).hexdigest()
        self.num_features = sum(part.num_features for part in parts)

    def features(self, images: Tensor) -> list[Tensor]:
        """Return the features of all parts, one after the other."""
        return [tensor for part in self.parts for tensor in part.features(images)]

    def distance(self, first: list[Tensor], second: list[Tensor]) -> Tensor:
        """Return the weighted sum `[B]`."""
        return torch.stack(list(self.terms(first, second).values())).sum(0)

    def terms(self, first: list[Tensor], second: list[Tensor]) -> dict[str, Tensor]:
        """Return the weighted distance `[B]` of each part by name."""
        result = {}
        start = 0
        for part, weight in zip(self.parts, self.weights, strict=True):
            chosen = slice(start, start + part.num_features)
            result[part.name] = weight * part.distance(first[chosen], second[chosen])
            start += part.num_features
        return result


def build_distance(
    spec: str, others: Mapping[str, Callable[[], ImageDistance]] | None = None
) -> ImageDistance:
    """Return the distance named by `spec`.

    Args:
        spec: A backend (`dlib`, `pixel`) or a weighted sum such as `dlib+pixel` or
            `dlib+0.5*pixel`.
        others: Makers of further backends by name, for networks that need a file.

    Raises:
        ConfigError: If a backend is unknown or a weight is not a positive number.
    """
    known = {**BACKENDS, **(others or {})}
    parts: list[ImageDistance] = []
    weights: list[float] = []
    for term in spec.split("+"):
        factor, _, name = term.strip().rpartition("*")
        if name not in known:
            raise ConfigError(
                f"perceptual={spec!r}: unknown backend {name!r}; known: {', '.join(known)}"
            )
        if any(part.name == name for part in parts):
            raise ConfigError(f"perceptual={spec!r}: {name!r} is named twice; add the weights")
        weights.append(_positive(factor, spec))
        parts.append(known[name]())
    if len(parts) == 1 and weights[0] == 1.0:
        return parts[0]
    return CombinedDistance(parts, weights)


def _positive(factor: str, spec: str) -> float:
    try:
        weight = float(factor) if factor else 1.0
    except ValueError:
        weight = -1.0
    if not weight > 0:
        raise ConfigError(f"perceptual={spec!r}: weight {factor!r} is not a positive number")
    return weight
