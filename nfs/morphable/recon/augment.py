"""Augmentation of aligned pictures: shift, scale, rotation and mirroring (spec 2.10)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nfs.face.align import CROP_SIZE_DEEP3D
from nfs.media.images import apply_affine
from nfs.morphable.recon.alignment import MIRRORED_LANDMARKS

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Change:
    """One drawn change of a picture.

    Attributes:
        shift_px: Right and down, pixels at 224 px.
        scale: Factor of the size.
        rotation_deg: Clockwise as seen.
        flip: Mirrored before everything else.
    """

    shift_px: tuple[int, int] = (0, 0)
    scale: float = 1.0
    rotation_deg: float = 0.0
    flip: bool = False

    def matrix(self, size_px: int) -> Array:
        """Return the map `[2, 3]` of pixels: mirror, shift, then scale and rotate at the centre.

        Args:
            size_px: Side of the picture.
        """
        angle = math.radians(self.rotation_deg)
        cosine, sine = self.scale * math.cos(angle), self.scale * math.sin(angle)
        turn = np.array([[cosine, -sine], [sine, cosine]])
        centre = np.full(2, size_px // 2)
        shift = np.array(self.shift_px) * (size_px / CROP_SIZE_DEEP3D)
        linear = turn * (-1 if self.flip else 1, 1)
        offset = turn @ shift + centre - linear @ centre
        return np.column_stack([linear, offset])


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the changes, symmetric around none.

    Attributes:
        shift_px: Largest shift, pixels at 224 px.
        scale: Largest change of the size.
        rotation_deg: Largest rotation.
        flip_probability: Share of mirrored pictures.
    """

    shift_px: int = 10
    scale: float = 0.1
    rotation_deg: float = 10.0
    flip_probability: float = 0.5

    def draw(self, rng: np.random.Generator) -> Change:
        """Return a random change."""
        shift = rng.integers(-self.shift_px, self.shift_px + 1, size=2)
        scale, rotation = rng.uniform(-1, 1, size=2)
        return Change(
            shift_px=(int(shift[0]), int(shift[1])),
            scale=1 + self.scale * float(scale),
            rotation_deg=self.rotation_deg * float(rotation),
            flip=bool(rng.random() < self.flip_probability),
        )


def compose(outer: Array, inner: Array) -> Array:
    """Return the map `[2, 3]` that applies `inner`, then `outer`."""
    linear = outer[:, :2] @ inner[:, :2]
    return np.column_stack([linear, outer[:, :2] @ inner[:, 2] + outer[:, 2]])


def move_landmarks(landmarks_px: NDArray[np.floating], matrix: Array) -> Array:
    """Return landmarks `[68, 2]` under a map; a mirrored face has left and right exchanged."""
    moved = apply_affine(matrix, landmarks_px)
    return moved[MIRRORED_LANDMARKS] if np.linalg.det(matrix[:, :2]) < 0 else moved
