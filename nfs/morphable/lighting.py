"""Second-order spherical-harmonic light in BFM's convention (spec 2.7).

Source: Ramamoorthi and Hanrahan 2001, An efficient representation for irradiance maps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

NUM_HARMONICS = 9
AMBIENT = 0.8
"""Added to the constant term of every channel: zero coefficients mean white ambient light."""

_BAND_0 = math.pi / math.sqrt(4 * math.pi)
_BAND_1 = (2 * math.pi / math.sqrt(3)) * (math.sqrt(3) / math.sqrt(4 * math.pi))
_BAND_2 = (2 * math.pi / math.sqrt(8)) * (3 * math.sqrt(5) / math.sqrt(12 * math.pi))


def harmonics(normals: Tensor) -> Tensor:
    """Return the nine irradiance harmonics `[..., 9]` of unit normals `[..., 3]`."""
    x, y, z = normals.unbind(-1)
    terms = [
        torch.full_like(x, _BAND_0),
        -_BAND_1 * y,
        _BAND_1 * z,
        -_BAND_1 * x,
        _BAND_2 * x * y,
        -_BAND_2 * y * z,
        _BAND_2 / (2 * math.sqrt(3)) * (3 * z.square() - 1),
        -_BAND_2 * x * z,
        _BAND_2 / 2 * (x.square() - y.square()),
    ]
    return torch.stack(terms, dim=-1)


def irradiance(normals: Tensor, lighting: Tensor) -> Tensor:
    """Return the light that reaches each vertex, per channel, not clamped.

    Args:
        normals: `[B, V, 3]` unit normals in camera orientation (rotated with the head).
        lighting: `[B, 27]`, channel-major; `AMBIENT` is added to the constant terms.

    Returns:
        `[B, V, 3]`; multiply by albedo to get colour.
    """
    weights = lighting.reshape(-1, 3, NUM_HARMONICS)
    ambient = torch.zeros_like(weights)
    ambient[..., 0] = AMBIENT
    return harmonics(normals) @ (weights + ambient).transpose(1, 2)
