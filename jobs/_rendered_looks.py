"""What makes rendered open heads different people: skin, hair, brows, beard, eyes.

Drawn once per identity and painted on the vertices. Legend: V vertices, N images.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nfs.morphable import MorphableModel

_HAIR_COLOURS = np.array(
    [
        [0.05, 0.04, 0.04],
        [0.12, 0.08, 0.06],
        [0.25, 0.16, 0.10],
        [0.42, 0.28, 0.16],
        [0.75, 0.58, 0.36],
        [0.50, 0.22, 0.10],
        [0.55, 0.54, 0.53],
        [0.85, 0.84, 0.82],
    ]
)
_HAIR_SHARES = np.array([0.3, 0.2, 0.15, 0.1, 0.1, 0.03, 0.08, 0.04])
_IRIS_COLOURS = np.array(
    [[0.20, 0.12, 0.08], [0.35, 0.22, 0.12], [0.35, 0.45, 0.60], [0.38, 0.45, 0.32]]
)
_BROWS = (range(17, 22), range(22, 27))
_NOISE_WAVES = 48


@dataclass(frozen=True)
class Look:
    """One person's appearance beside the model's shape and texture coefficients.

    Attributes:
        tone: Gain of the skin's albedo per channel `[3]`.
        hair: Colour of hair, brows and beard `[3]`.
        hairline: Height over the brows, dm.
        thickness: Hair over the skull, dm; 0 is bald.
        long_hair: Half width of hair beside the face over that of the head; 0 is none.
        brows: Strength, height over the model's brows (dm), half width (dm).
        beard: Strength on jaw and upper lip.
        iris: Colour `[3]`.
        lips: Gain of the lips per channel `[3]`.
        glasses: Line width over the distance of the eyes; 0 is none.
        waves: Directions and phases of the skin's small colour differences `[48, 4]`.
        wave_size: Their size.
    """

    tone: NDArray[np.float64]
    hair: NDArray[np.float64]
    hairline: float
    thickness: float
    long_hair: float
    brows: tuple[float, float, float]
    beard: float
    iris: NDArray[np.float64]
    lips: NDArray[np.float64]
    glasses: float
    waves: NDArray[np.float64]
    wave_size: float


def draw_look(rng: np.random.Generator) -> Look:
    """Draw a person's appearance."""
    tone = rng.uniform(0.35, 1.1)
    hair = _HAIR_COLOURS[rng.choice(len(_HAIR_COLOURS), p=_HAIR_SHARES)]
    hair = np.clip(hair * rng.uniform(0.8, 1.25) + rng.normal(0, 0.01, 3), 0.02, 0.95)
    waves = np.column_stack(
        [rng.normal(0, 1, (_NOISE_WAVES, 3)) * 12, rng.uniform(0, 2 * np.pi, _NOISE_WAVES)]
    )
    return Look(
        tone=tone ** np.array([1.0, 1.08, 1.12]) * rng.uniform(0.95, 1.05, 3),
        hair=hair,
        hairline=rng.uniform(0.28, 0.62),
        thickness=0.0 if rng.random() < 0.12 else rng.uniform(0.02, 0.22),
        long_hair=rng.uniform(1.05, 1.5) if rng.random() < 0.4 else 0.0,
        brows=(rng.uniform(0.0, 0.75), rng.uniform(-0.05, 0.06), rng.uniform(0.02, 0.045)),
        beard=rng.uniform(0.15, 0.95) if rng.random() < 0.3 else 0.0,
        iris=_IRIS_COLOURS[rng.integers(len(_IRIS_COLOURS))] * rng.uniform(0.7, 1.3),
        lips=rng.uniform((0.8, 0.55, 0.55), (1.25, 1.05, 1.1)),
        glasses=rng.uniform(0.02, 0.08) if rng.random() < 0.12 else 0.0,
        waves=waves,
        wave_size=rng.uniform(0.0, 0.10),
    )


def vary_look(look: Look, rng: np.random.Generator) -> Look:
    """Return the same person on another day: other hair style, beard, make-up or glasses."""
    other = draw_look(rng)
    return replace(
        look,
        hair=look.hair if rng.random() < 0.7 else other.hair,
        hairline=look.hairline + rng.normal(0, 0.05),
        thickness=max(0.0, look.thickness + rng.normal(0, 0.06)),
        long_hair=other.long_hair,
        beard=other.beard if look.beard else 0.0,
        lips=other.lips,
        glasses=other.glasses,
    )


class Painter:
    """Paints looks on the vertices of the open head.

    Args:
        model: The open head.
    """

    def __init__(self, model: MorphableModel) -> None:
        nothing = torch.zeros(1, model.num_identity)
        resting = torch.zeros(1, model.expression_basis.shape[-1])
        self.model = model
        self.mean = model.vertices(nothing, resting)[0]
        self.landmarks = model.landmarks(nothing, resting)[0]
        groups = model.vertex_groups
        count = len(self.mean)
        self.skin = _members(groups["skin"], count)
        self.lips = _members(groups["lips"], count)
        eyes = _members(groups["eyes"], count)
        colour = model.albedo(torch.zeros(1, model.texture_basis.shape[-1]))[0]
        brown = (colour - torch.tensor([0.33, 0.24, 0.17])).abs().amax(1) < 0.02
        self.iris = eyes * brown
        centre = (self.mean.amin(0) + self.mean.amax(0)) / 2
        self.outward = torch.nn.functional.normalize(self.mean - centre, dim=1)
        self.brow_top = float(self.landmarks[17:27, 1].max())
        self.brow_front = float(self.landmarks[17:27, 2].max())

    def paint_all(self, albedo: Tensor, looks: list[Look]) -> tuple[Tensor, Tensor]:
        """Return painted albedos `[N, V, 3]` and the offsets of hair from the skull `[N, V, 3]`."""
        painted = {id(look): self.paint(albedo, look) for look in looks}
        colours, heights = zip(*(painted[id(look)] for look in looks), strict=True)
        return torch.stack(colours), torch.stack(heights)[..., None] * self.outward

    def paint(self, albedo: Tensor, look: Look) -> tuple[Tensor, Tensor]:
        """Return the painted albedo `[V, 3]` and the hair's height over the skull `[V]`, dm.

        Args:
            albedo: Of the model's texture coefficients `[V, 3]`.
            look: The person.
        """
        colour = albedo * (1 + self.skin[:, None] * (_tensor(look.tone) - 1))
        colour = colour * (1 + (self.skin * self._mottling(look))[:, None])
        colour = colour * (1 + self.lips[:, None] * (_tensor(look.lips) - 1))
        hair = _tensor(look.hair)
        strength, height, width = look.brows
        scalp = self._scalp(look)
        for weight, target in (
            (self._brows(height, width) * strength * self.skin, hair * 0.8),
            (self._beard() * look.beard * self.skin * (1 - self.lips), hair),
            (scalp, hair * (1 + 3 * self._mottling(look)[:, None])),
            (self.iris, _tensor(look.iris)),
        ):
            colour = colour + weight[:, None] * (target - colour)
        rough = 1 + 2 * self._mottling(look)
        return colour.clamp(0.01, 1), scalp * look.thickness * rough.clamp(0.3, 2)

    def _scalp(self, look: Look) -> Tensor:
        if not look.thickness:
            return torch.zeros(len(self.mean))
        depth = self.mean[:, 2] - self.brow_front
        line = self.brow_top + look.hairline + 0.9 * depth
        return self.skin * torch.sigmoid((self.mean[:, 1] - line) / 0.035)

    def _brows(self, height: float, width: float) -> Tensor:
        points = self.landmarks + torch.tensor([0.0, height, 0.0])
        distance = torch.stack(
            [
                _segment_distance(self.mean, points[i], points[i + 1])
                for brow in _BROWS
                for i in brow[:-1]
            ]
        ).amin(0)
        return torch.exp(-(distance / width).square() / 2)

    def _beard(self) -> Tensor:
        below = torch.sigmoid((self.landmarks[33, 1] - 0.05 - self.mean[:, 1]) / 0.04)
        to_jaw = torch.cdist(self.mean, self.landmarks[2:15]).amin(1)
        lip = torch.cdist(self.mean, self.landmarks[48:55]).amin(1)
        near = torch.maximum(
            torch.exp(-(to_jaw / 0.32).square()), torch.exp(-(lip / 0.14).square())
        )
        return below * near

    def _mottling(self, look: Look) -> Tensor:
        waves = _tensor(look.waves)
        phases = self.mean @ waves[:, :3].T + waves[:, 3]
        return look.wave_size * torch.cos(phases).mean(1) * (2 * len(waves)) ** 0.5


def _members(vertices: Tensor, count: int) -> Tensor:
    weight = torch.zeros(count)
    if vertices.dtype == torch.bool:
        weight[vertices] = 1
    else:
        weight[vertices.long()] = 1
    return weight


def _segment_distance(points: Tensor, start: Tensor, end: Tensor) -> Tensor:
    line = end - start
    along = ((points - start) @ line / line.square().sum()).clamp(0, 1)
    return (points - start - along[:, None] * line).norm(dim=1)


def _tensor(values: NDArray[np.float64]) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32)
