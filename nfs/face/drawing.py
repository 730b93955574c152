"""Pictures for people: landmarks drawn on crops."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

# Contours of the 68 points: (first, last + 1, closed).
_CONTOURS = (
    (0, 17, False),
    (17, 22, False),
    (22, 27, False),
    (27, 31, False),
    (31, 36, False),
    (36, 42, True),
    (42, 48, True),
    (48, 60, True),
    (60, 68, True),
)
_LINE = (0, 230, 90)
_POINT = (255, 60, 60)


def draw_landmarks(
    image: NDArray[np.uint8], landmarks: NDArray[np.floating], caption: str = ""
) -> NDArray[np.uint8]:
    """Return a copy with the 68 landmarks [68, 2] (pixels) drawn, and an optional caption."""
    picture = Image.fromarray(image)
    pen = ImageDraw.Draw(picture)
    points = [(float(x), float(y)) for x, y in landmarks]
    for first, last, closed in _CONTOURS:
        contour = points[first:last] + ([points[first]] if closed else [])
        for start, end in itertools.pairwise(contour):
            pen.line([start, end], fill=_LINE)
    for x, y in points:
        pen.ellipse([x - 1, y - 1, x + 1, y + 1], fill=_POINT)
    if caption:
        pen.text((3, 2), caption, fill=(255, 255, 0))
    return np.array(picture)
