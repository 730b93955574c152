"""A small line plot as an image, for evaluation pictures."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

_WIDTH, _HEIGHT, _MARGIN = 960, 320, 36
_COLOURS = ((30, 30, 30), (200, 60, 40), (40, 110, 190), (120, 150, 60))
_GREY = (190, 190, 190)


def line_plot(series: Mapping[str, NDArray[np.floating]], title: str) -> NDArray[np.uint8]:
    """Return an RGB image [320, 960, 3] of curves over a shared axis of frames.

    Args:
        series: Curves [T] by name, drawn in order; all of the same length.
        title: Text above, with the unit.
    """
    image = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    values = np.stack([np.asarray(v, np.float64) for v in series.values()])
    low, high = float(values.min()), float(values.max())
    span = max(high - low, 1e-9)
    columns = np.linspace(_MARGIN, _WIDTH - _MARGIN, values.shape[1])
    rows = _HEIGHT - _MARGIN - (values - low) / span * (_HEIGHT - 2 * _MARGIN)
    draw.rectangle((_MARGIN, _MARGIN, _WIDTH - _MARGIN, _HEIGHT - _MARGIN), outline=_GREY)
    draw.text((_MARGIN, 4), title, fill=_COLOURS[0])
    draw.text((2, _MARGIN), f"{high:.1f}", fill=_COLOURS[0])
    draw.text((2, _HEIGHT - _MARGIN - 10), f"{low:.1f}", fill=_COLOURS[0])
    draw.text((_WIDTH - 2 * _MARGIN, _HEIGHT - 24), f"{values.shape[1]} frames", fill=_GREY)
    for number, (name, curve) in enumerate(zip(series, rows, strict=True)):
        colour = _COLOURS[number % len(_COLOURS)]
        draw.line(list(zip(columns.tolist(), curve.tolist(), strict=True)), fill=colour, width=2)
        draw.text((_MARGIN + 160 * number, _HEIGHT - 24), name, fill=colour)
    return np.asarray(image)
