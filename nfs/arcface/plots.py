"""Pictures of a verification: ROC curve and spread of distances, drawn without a plot library."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from nfs.arcface.verification import Floats, roc

_SIZE, _MARGIN = (460, 380), 48
_MIN_FAR = 1e-4
_INK, _GRID, _SAME, _DIFFERENT = (20, 20, 20), (210, 210, 210), (30, 100, 190), (200, 80, 50)


def draw_roc(distances: Floats, same: NDArray[np.bool_], title: str) -> NDArray[np.uint8]:
    """Draw true accept rate over false accept rate (logarithmic from 1e-4): uint8 `[H, W, 3]`."""
    fars, tars = roc(distances, same)
    image, draw = _canvas(f"{title}: true accept rate over false accept rate")
    decades = -np.log10(_MIN_FAR)
    for decade in range(int(decades) + 1):
        x = _x(decade / decades)
        draw.line([(x, _y(0)), (x, _y(1))], fill=_GRID)
        draw.text((x - 12, _y(0) + 6), f"1e{decade - int(decades)}", fill=_INK)
    steps = np.log10(np.maximum(fars, _MIN_FAR)) / decades + 1
    points = [(_x(float(f)), _y(float(t))) for f, t in zip(steps, tars, strict=True)]
    draw.line(points, fill=_SAME, width=2)
    return np.asarray(image)


def draw_histogram(distances: Floats, same: NDArray[np.bool_], title: str) -> NDArray[np.uint8]:
    """Draw how distances of same (blue) and different (red) pairs are spread."""
    image, draw = _canvas(f"{title}: squared distance, same blue, different red")
    edges = np.linspace(0, 4, 81)
    for kind, colour in ((same, _SAME), (~same, _DIFFERENT)):
        counts = np.histogram(distances[kind], edges)[0]
        heights = counts / max(1, counts.max())
        centres = (edges[:-1] + edges[1:]) / 8
        points = [(_x(float(c)), _y(float(h))) for c, h in zip(centres, heights, strict=True)]
        draw.line(points, fill=colour, width=2)
    for tick in range(5):
        draw.text((_x(tick / 4) - 3, _y(0) + 6), str(tick), fill=_INK)
    return np.asarray(image)


def _canvas(title: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", _SIZE, "white")
    draw = ImageDraw.Draw(image)
    draw.text((_MARGIN, 12), title, fill=_INK)
    for tick in range(6):
        y = _y(tick / 5)
        draw.line([(_x(0), y), (_x(1), y)], fill=_GRID)
        draw.text((8, y - 6), f"{tick / 5:.1f}", fill=_INK)
    return image, draw


def _x(share: float) -> float:
    return _MARGIN + share * (_SIZE[0] - 1.5 * _MARGIN)


def _y(share: float) -> float:
    return _SIZE[1] - _MARGIN - share * (_SIZE[1] - 2 * _MARGIN)
