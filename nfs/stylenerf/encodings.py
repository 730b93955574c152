"""Positional encodings: from points to the numbers a field sees (spec/stylenerf.md 2.3).

Legend: B batch, P points, D coordinates of a point (3 in the foreground, 4 in the background).
"""

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

EncodingKind = Literal["fourier", "gaussian", "none"]

_GAUSSIAN_SEED = 2021  # of the original; its checkpoints carry the drawn frequencies all the same
_GAUSSIAN_FACTOR = 20
_GAUSSIAN_DEVIATION = 10.0


def positional_encoding(points: Tensor, num_frequencies: int) -> Tensor:
    """Encode `[..., D]` as `[..., 2 * num_frequencies * D]`: sin and cos of `2^i pi p`, i outer."""
    scales = [2.0**i * math.pi for i in range(num_frequencies)]
    frequencies = torch.tensor(scales, dtype=points.dtype, device=points.device)
    angles = points[..., None, :] * frequencies[:, None]
    return torch.stack([angles.sin(), angles.cos()], dim=-2).flatten(-3)


def gaussian_encoding(points: Tensor, frequencies: Tensor) -> Tensor:
    """Encode `[..., D]` with random `frequencies [D, F]` as `[..., 2 F]`: sines, then cosines."""
    with torch.autocast(points.device.type, enabled=False):
        angles = (math.pi * points) @ frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class PointEncoding(nn.Module):
    """Encode points with fixed frequencies.

    Args:
        point_dim: Coordinates of a point.
        kind: `fourier`: powers of two; `gaussian`: random directions; `none`: the point itself.
        num_frequencies: Octaves of `fourier`.
        append_position: Append the point to its encoding.
        position_scale: Points are divided by it first.
    """

    frequencies: Tensor
    num_ws = 0

    def __init__(
        self,
        point_dim: int,
        *,
        kind: EncodingKind = "fourier",
        num_frequencies: int = 10,
        append_position: bool = False,
        position_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.num_frequencies = num_frequencies
        self.append_position = append_position
        self.position_scale = position_scale
        widths = {
            "fourier": 2 * num_frequencies * point_dim,
            "gaussian": 2 * _GAUSSIAN_FACTOR * point_dim,
            "none": point_dim,
        }
        self.dim = widths[kind] + (point_dim if append_position else 0)
        if kind == "gaussian":
            random = np.random.RandomState(_GAUSSIAN_SEED)
            drawn = torch.from_numpy(random.randn(point_dim, _GAUSSIAN_FACTOR * point_dim))
            self.register_buffer("frequencies", drawn.float() * _GAUSSIAN_DEVIATION)

    def forward(self, points: Tensor) -> Tensor:
        """Map `[B, P, D]` to `[B, P, dim]`."""
        if self.position_scale != 1.0:
            points = points / self.position_scale
        if self.kind == "fourier":
            encoded = positional_encoding(points, self.num_frequencies)
        elif self.kind == "gaussian":
            encoded = gaussian_encoding(points, self.frequencies)
        else:
            encoded = points
        return torch.cat([encoded, points], dim=-1) if self.append_position else encoded
