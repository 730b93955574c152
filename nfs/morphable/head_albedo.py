"""Procedural albedo of the open head: painted regions and a smooth colour basis.

The basis is designed, not learned from photographs: real spherical harmonics of the direction from
the middle of the head (degree 0 to 4) times three colour axes, and five regional axes. Colours are
linear weights on [0, 1] albedo. Legend: H vertices.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.polynomial import Polynomial
from numpy.polynomial.legendre import leg2poly

from nfs.morphable.makehuman import FloatArray, IntArray

SKIN = np.array([0.78, 0.57, 0.47])
LIPS = np.array([0.66, 0.33, 0.31])
BROWS = np.array([0.36, 0.26, 0.20])
INNER_MOUTH = np.array([0.40, 0.16, 0.15])
SCLERA = np.array([0.90, 0.88, 0.86])
IRIS = np.array([0.33, 0.24, 0.17])
PUPIL = np.array([0.05, 0.05, 0.05])
TEETH = np.array([0.90, 0.88, 0.82])
TONGUE = np.array([0.68, 0.35, 0.34])
EYE_PARTS, TEETH_PARTS, TONGUE_PART = (1, 2), (3, 4), 5
IRIS_ANGLE_RAD, PUPIL_ANGLE_RAD = 0.5, 0.2
BROW_SIGMA = 0.045
BROW_STRENGTH = 0.7
BROW_POINTS = (range(17, 22), range(22, 27))

COLOUR_AXES = np.array([[0.60, 0.58, 0.55], [0.75, -0.45, -0.40], [0.30, 0.25, -0.90]])
COLOUR_SIGMAS = np.array([0.14, 0.05, 0.03])
MAX_DEGREE = 4


def build_albedo(
    mean: FloatArray,
    part: IntArray,
    *,
    masks: Mapping[str, FloatArray],
    landmarks: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """Return the mean albedo and its basis.

    Args:
        mean: `[H, 3]` mean shape, dm.
        part: `[H]` index into `makehuman.PARTS`.
        masks: `lips`, `eyelids`, `inner_mouth`, each `[H]` in [0, 1].
        landmarks: `[68, 3]` on the mean shape.

    Returns:
        Mean `[H, 3]` in [0, 1] and basis `[H, 3, 80]` per unit of standard deviation.
    """
    skin = part == 0
    brows = _brow_weight(mean, landmarks) * skin
    colour = np.broadcast_to(SKIN, mean.shape).copy()
    for weight, target in (
        (masks["lips"], LIPS),
        (brows * BROW_STRENGTH, BROWS),
        (masks["inner_mouth"], INNER_MOUTH),
    ):
        colour += weight[:, None] * (target - colour)
    colour[np.isin(part, TEETH_PARTS)] = TEETH
    colour[part == TONGUE_PART] = TONGUE
    for eye in EYE_PARTS:
        colour[part == eye] = _eye_colour(mean[part == eye])
    regions = _regional_axes(mean, brows, masks["lips"], landmarks)
    basis = np.concatenate([_smooth_axes(mean), regions], axis=2)
    basis[~skin] = 0
    return colour, basis


def _smooth_axes(mean: FloatArray) -> FloatArray:
    """Return `[H, 3, 75]`: harmonics (25) times colour axes (3), weaker with the degree."""
    direction = mean - (mean.min(0) + mean.max(0)) / 2
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    columns = []
    for degree, values in _harmonics(direction):
        for axis, sigma in zip(COLOUR_AXES, COLOUR_SIGMAS, strict=True):
            strength = sigma / (degree + 1) ** 1.5
            columns.append(strength * values[:, None] * axis / np.linalg.norm(axis))
    return np.stack(columns, axis=2)


def _harmonics(direction: FloatArray) -> list[tuple[int, FloatArray]]:
    """Return (degree, values `[H]` of unit root mean square) of 25 real spherical harmonics.

    With the pole on y: Re and Im of (x + i z)^m times the m-th derivative of the Legendre
    polynomial.
    """
    x, y, z = direction.T
    harmonics = []
    for degree in range(MAX_DEGREE + 1):
        legendre = Polynomial(leg2poly([0.0] * degree + [1.0]))
        for order in range(degree + 1):
            profile = legendre.deriv(order)(y) if order else legendre(y)
            around = (x + 1j * z) ** order * profile
            for values in (around.real, around.imag)[: 1 if order == 0 else 2]:
                harmonics.append((degree, values / np.sqrt(np.square(values).mean())))
    return harmonics


def _regional_axes(
    mean: FloatArray, brows: FloatArray, lips: FloatArray, landmarks: FloatArray
) -> FloatArray:
    """Return `[H, 3, 5]`: lip colour, brow darkness, beard, eye sockets, hair."""
    dark = -np.array([0.60, 0.58, 0.55])
    eyes = np.stack([landmarks[36:42].mean(0), landmarks[42:48].mean(0)])
    to_eye = np.linalg.norm(mean[:, None] - eyes, axis=2).min(1)
    below = 1 / (1 + np.exp((mean[:, 1] - landmarks[33, 1]) / 0.06))
    jaw = landmarks[:17]
    to_jaw = np.linalg.norm(mean[:, None] - jaw, axis=2).min(1)
    beard = below * np.exp(-np.square(to_jaw / 0.45)) * (1 - lips)
    brow_height = landmarks[17:27, 1].max()
    hairline = brow_height + 0.45 + 0.9 * (mean[:, 2] - landmarks[17:27, 2].max())
    hair = 1 / (1 + np.exp((hairline - mean[:, 1]) / 0.08))
    weights = (
        (lips, 0.12 * np.array([0.75, -0.45, -0.40])),
        (brows, 0.20 * dark),
        (beard, 0.18 * dark),
        (np.exp(-np.square(to_eye / 0.2)), 0.10 * dark),
        (hair, 0.25 * dark),
    )
    return np.stack([weight[:, None] * colour for weight, colour in weights], axis=2)


def _brow_weight(mean: FloatArray, landmarks: FloatArray) -> FloatArray:
    """Return `[H]` in [0, 1]: a Gaussian of the distance to the two brow polylines."""
    distances = [
        _segment_distance(mean, landmarks[i], landmarks[i + 1])
        for points in BROW_POINTS
        for i in points[:-1]
    ]
    weight: FloatArray = np.exp(-np.square(np.min(distances, axis=0) / BROW_SIGMA) / 2)
    return weight


def _segment_distance(points: FloatArray, start: FloatArray, end: FloatArray) -> FloatArray:
    along = np.clip((points - start) @ (end - start) / np.square(end - start).sum(), 0, 1)
    distance: FloatArray = np.linalg.norm(points - start - along[:, None] * (end - start), axis=1)
    return distance


def _eye_colour(points: FloatArray) -> FloatArray:
    """Return sclera, iris and pupil colours by the angle from the gaze axis (+z)."""
    centre = (points.min(0) + points.max(0)) / 2
    direction = (points - centre) / np.linalg.norm(points - centre, axis=1, keepdims=True)
    angle = np.arccos(np.clip(direction[:, 2], -1, 1))[:, None]
    return np.where(angle < PUPIL_ANGLE_RAD, PUPIL, np.where(angle < IRIS_ANGLE_RAD, IRIS, SCLERA))
