"""Mouth interior for frames whose generator has never seen one.

The warp moves lips apart but the generator has no matter for what appears between them. Until a
LipaintNet supplies it (spec/inversion_and_talker.md 4.4), the part of the mouth that opens beyond
the reference is filled with a dark colour taken from the lips: no teeth, no tongue.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

INNER_LIPS = slice(60, 68)
"""Inner-lip contour within the 68 landmarks, a closed polygon."""
UPPER_LIP, LOWER_LIP = [61, 62, 63], [67, 66, 65]
"""Facing points of the inner lips, right to left."""
EYE_OUTER_CORNERS = [36, 45]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class MouthInterior:
    """How the opening is painted."""

    full_opening: float = 0.25
    """Added opening, as a fraction of the mouth width, from which paint is opaque."""
    feather: float = 0.12
    """Width of the soft border, fraction of the mouth width (at least 1.5 pixels)."""
    darkness: float = 0.28
    """Brightness of the interior relative to the lips' median colour."""


def mouth_opening(landmarks: Tensor) -> Tensor:
    """Return the gap between the inner lips over the distance of the outer eye corners.

    Args:
        landmarks: `[..., 68, D]` in any unit, model space or image plane.
    """
    gap = (landmarks[..., UPPER_LIP, :] - landmarks[..., LOWER_LIP, :]).norm(dim=-1).mean(-1)
    right, left = EYE_OUTER_CORNERS
    return gap / (landmarks[..., right, :] - landmarks[..., left, :]).norm(dim=-1)


def smooth_contour(polygon: Array, per_edge: int = 6) -> Array:
    """Return a closed Catmull-Rom curve through the corners of a polygon `[P, 2]`."""
    before, after = np.roll(polygon, 1, 0), np.roll(polygon, -1, 0)
    later = np.roll(polygon, -2, 0)
    t = (np.arange(per_edge) / per_edge)[None, :, None]
    p0, p1, p2, p3 = (p[:, None] for p in (before, polygon, after, later))
    curve = 0.5 * (
        2 * p1
        + (p2 - p0) * t
        + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2
        + (3 * p1 - p0 - 3 * p2 + p3) * t**3
    )
    return np.asarray(curve.reshape(-1, 2))


def polygon_mask(polygon: Array, size_px: int, feather_px: float) -> Array:
    """Return the soft inside of a closed polygon, `[size, size]` in [0, 1].

    Args:
        polygon: `[P, 2]` pixels, continuous coordinates (pixel i covers [i, i + 1)).
        size_px: Side of the image.
        feather_px: The mask climbs from 0 at the border to 1 this far inside.
    """
    mask = np.zeros((size_px, size_px))
    low = np.clip(np.floor(polygon.min(0)), 0, size_px).astype(int)
    high = np.clip(np.ceil(polygon.max(0)), 0, size_px).astype(int)
    if (high <= low).any():
        return mask
    x, y = np.meshgrid(np.arange(low[0], high[0]) + 0.5, np.arange(low[1], high[1]) + 0.5)
    points = np.stack((x.ravel(), y.ravel()), 1)
    a, b = polygon, np.roll(polygon, -1, 0)
    edge, relative = (b - a)[None], points[:, None] - a[None]
    length = np.maximum((edge**2).sum(-1), 1e-12)
    along = np.clip((relative * edge).sum(-1) / length, 0, 1)
    distance = np.sqrt(((relative - along[..., None] * edge) ** 2).sum(-1)).min(1)
    crosses = (a[None, :, 1] > points[:, None, 1]) != (b[None, :, 1] > points[:, None, 1])
    rise = np.where(edge[..., 1] == 0, 1.0, edge[..., 1])
    at_x = a[None, :, 0] + relative[..., 1] / rise * edge[..., 0]
    inside = (crosses & (points[:, None, 0] < at_x)).sum(1) % 2 == 1
    value = np.where(inside, np.clip(distance / feather_px, 0, 1), 0.0)
    mask[low[1] : high[1], low[0] : high[0]] = value.reshape(x.shape)
    return mask


def darken_mouth(
    image: Tensor, moved: Tensor, reference: Tensor, settings: MouthInterior | None = None
) -> Tensor:
    """Blend a dark interior into the part of the mouth that opened.

    Strength grows with the opening added to the reference; where nothing was added the image is
    returned bit for bit.

    Args:
        image: `[3, H, H]` in [-1, 1].
        moved: `[68, 2]` landmarks of the frame, plane coordinates.
        reference: `[68, 2]` landmarks of the undeformed face, same camera.
        settings: Look of the interior.
    """
    settings = settings or MouthInterior()
    size = image.shape[-1]
    corners = (moved[60] - moved[64]).norm().item() * size
    added = _gap(moved) - _gap(reference)
    strength = min(max(added * size / max(settings.full_opening * corners, 1e-9), 0.0), 1.0)
    if strength == 0.0:
        return image
    contour = moved[INNER_LIPS].detach().cpu().double().numpy() * size
    mask = polygon_mask(smooth_contour(contour), size, max(1.5, settings.feather * corners))
    alpha = torch.as_tensor(mask, dtype=image.dtype).to(image.device) * strength
    colour = _lip_colour(image, moved) * settings.darkness
    target = (2 * colour - 1)[:, None, None]
    return image + alpha * (target - image)


def _gap(landmarks: Tensor) -> float:
    return float((landmarks[LOWER_LIP, 1] - landmarks[UPPER_LIP, 1]).mean())


def _lip_colour(image: Tensor, landmarks: Tensor) -> Tensor:
    """Return the median colour `[3]` in [0, 1] at the outer-lip landmarks."""
    pixels = (landmarks[48:60] * image.shape[-1]).long().clamp(0, image.shape[-1] - 1)
    colours = image[:, pixels[:, 1].to(image.device), pixels[:, 0].to(image.device)]
    return (colours.median(1).values.clamp(-1, 1) + 1) / 2
