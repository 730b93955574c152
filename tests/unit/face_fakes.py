"""Synthetic faces for tests: bright squares that fake detectors find."""

from collections.abc import Sequence

import numpy as np

from nfs.face.protocols import Detections

BRIGHT = 200


def face_points(centre: tuple[float, float], side_px: float) -> np.ndarray:
    """Return 68 plausible points [68, 2] of a face about `side_px` wide and high."""
    jaw = np.linspace(np.pi, 0, 17)
    points = [(0.5 * np.cos(a), 0.6 * np.sin(a) - 0.05) for a in jaw]
    points += [(x, -0.28) for x in np.linspace(-0.4, -0.1, 5)]
    points += [(x, -0.28) for x in np.linspace(0.1, 0.4, 5)]
    points += [(0.0, y) for y in np.linspace(-0.18, 0.1, 4)]
    points += [(x, 0.15) for x in np.linspace(-0.1, 0.1, 5)]
    ring = np.linspace(np.pi, 3 * np.pi, 7)[:-1]
    for x in (-0.22, 0.22):
        points += [(x + 0.09 * np.cos(a), -0.18 + 0.03 * np.sin(a)) for a in ring]
    for radius, count in ((1.0, 12), (0.6, 8)):
        angles = np.linspace(np.pi, 3 * np.pi, count + 1)[:-1]
        points += [(0.2 * radius * np.cos(a), 0.33 + 0.08 * radius * np.sin(a)) for a in angles]
    return np.array(points) * side_px + np.array(centre)


def picture(
    size: tuple[int, int], faces: Sequence[tuple[float, float, int]], grey: int = 60
) -> np.ndarray:
    """Return a picture (height, width) with bright squares at (centre x, centre y, side)."""
    image = np.full((*size, 3), grey, np.uint8)
    for x, y, side in faces:
        left, top = round(x - side / 2), round(y - side / 2)
        image[max(top, 0) : top + side, max(left, 0) : left + side] = 255
    return image


class SquareDetector:
    """Finds bright squares, left to right halves of the picture apart; counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def detect(self, images):
        self.calls += len(images)
        return [self._detect(image) for image in images]

    def _detect(self, image):
        boxes = [b for b in (self._half(image, 0), self._half(image, 1)) if b is not None]
        boxes.sort(key=lambda b: b[1] - b[3])
        return Detections(np.array(boxes, float).reshape(-1, 4), np.ones(len(boxes)))

    @staticmethod
    def _half(image, half):
        middle = image.shape[1] // 2
        part = image[:, :middle] if half == 0 else image[:, middle:]
        rows, columns = np.nonzero(part[:, :, 0] > BRIGHT)
        if len(rows) < 20:
            return None
        left = columns.min() + middle * half
        return left, rows.min(), columns.max() + 1 + middle * half, rows.max() + 1


class SquareLandmarks:
    """Puts the synthetic points into the bright square at the place asked about."""

    def landmarks(self, image, boxes):
        found = [self._at(image, (box[:2] + box[2:]) / 2) for box in boxes]
        return np.array([p for p, _ in found]), np.array([s for _, s in found])

    def follow(self, image, previous):
        return self._at(image, previous.mean(axis=0))

    @staticmethod
    def _at(image, centre):
        x, y = (int(v) for v in centre)
        near = image[max(y - 40, 0) : y + 40, max(x - 40, 0) : x + 40, 0] > BRIGHT
        rows, columns = np.nonzero(near)
        if len(rows) < 20:
            return face_points(tuple(centre), 40.0), 0.1
        middle = (
            columns.min() + columns.max() + 1 + 2 * max(x - 40, 0),
            rows.min() + rows.max() + 1 + 2 * max(y - 40, 0),
        )
        side = float(np.sqrt(len(rows)))
        return face_points((middle[0] / 2, middle[1] / 2), side), 0.9
