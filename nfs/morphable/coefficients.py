"""The 257 numbers that describe a face: the only place that knows where each part is stored.

Layout of BFM code (spec 2.2): identity 80, expression 64, texture 80, rotation 3, lighting 27,
translation 3. Legend: B faces or frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from nfs.geometry.rotations import euler_to_matrix

PACKED_SIZES = {
    "identity": 80,
    "expression": 64,
    "texture": 80,
    "rotation": 3,
    "lighting": 27,
    "translation": 3,
}
NUM_COEFFICIENTS = sum(PACKED_SIZES.values())


@dataclass(frozen=True)
class Coefficients:
    """Coefficients of B faces; they mean something only with the model they were fitted with.

    Attributes:
        identity: `[B, 80]`, standard deviations.
        expression: `[B, 64]`; open head: weights in [0, 1] then free axes; BFM: standard
            deviations.
        texture: `[B, 80]`, standard deviations.
        rotation: `[B, 3]` BFM Euler angles (x, y, z), radians; R = Rz Ry Rx, y = R x + t.
        translation: `[B, 3]` dm.
        lighting: `[B, 27]` spherical harmonics, 9 per colour channel, channel-major.
    """

    identity: Tensor
    expression: Tensor
    texture: Tensor
    rotation: Tensor
    translation: Tensor
    lighting: Tensor

    def __post_init__(self) -> None:
        """Check the widths and the common number of rows."""
        rows = self.identity.shape[0] if self.identity.dim() else 0
        for name, width in PACKED_SIZES.items():
            shape = tuple(getattr(self, name).shape)
            if shape != (rows, width):
                raise ValueError(
                    f"Coefficients.{name} has shape {shape}, expected ({rows}, {width})"
                )

    @classmethod
    def zeros(cls, rows: int, *, device: torch.device | str = "cpu") -> Coefficients:
        """Return `rows` mean faces at the origin under ambient light."""
        parts = {n: torch.zeros(rows, width, device=device) for n, width in PACKED_SIZES.items()}
        return cls(**parts)

    @classmethod
    def unpack(cls, packed: Tensor) -> Coefficients:
        """Split `[B, 257]` (views, no copy).

        Raises:
            ValueError: If the shape is not `[B, 257]`.
        """
        if packed.dim() != 2 or packed.shape[1] != NUM_COEFFICIENTS:
            raise ValueError(f"expected coefficients [B, 257], got {tuple(packed.shape)}")
        parts = packed.split(list(PACKED_SIZES.values()), dim=1)
        return cls(**dict(zip(PACKED_SIZES, parts, strict=True)))

    def pack(self) -> Tensor:
        """Return `[B, 257]`; `unpack` of the result is equal to this object."""
        return torch.cat([getattr(self, name) for name in PACKED_SIZES], dim=1)

    def __len__(self) -> int:
        """Return B."""
        return len(self.identity)

    def __getitem__(self, rows: slice | Tensor) -> Coefficients:
        """Return some rows (a slice, index tensor or mask)."""
        return self._map(lambda part: part[rows])

    def to(self, device: torch.device | str) -> Coefficients:
        """Return a copy on `device`."""
        return self._map(lambda part: part.to(device))

    @property
    def rotation_matrix(self) -> Tensor:
        """`[B, 3, 3]` with y = R x + t."""
        return euler_to_matrix(self.rotation)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Coefficients:
        return Coefficients(**{f.name: change(getattr(self, f.name)) for f in fields(self)})
