"""Following one face through a clip: landmarks lead from frame to frame, the detector checks."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from nfs.face.protocols import (
    Array,
    Detections,
    FaceDetector,
    Image,
    LandmarkDetector,
    frame_from_landmarks,
    overlap,
)

_SAME_FACE = 0.3
# A face cut off by the picture's edge is no training picture: most points must be inside.
_MIN_INSIDE = 0.9
_LARGEST_STEP = 0.5
_LARGEST_GROWTH = 1.4
_RETRY_FRAMES = 3
_MAX_MISSED_CHECKS = 2


@dataclass(frozen=True)
class TrackSettings:
    """How a face is followed.

    `detect_every` frames the detector looks again; a landmark score under `min_score` (0 to 1)
    loses the face, as does a face cut off by the edge of the picture.
    """

    detect_every: int = 25
    min_score: float = 0.5


@dataclass(frozen=True)
class TrackedFace:
    """Result for one frame: landmarks [68, 2] or None, and the score behind them."""

    landmarks: Array | None
    score: float


@dataclass
class FaceTracker:
    """Feed frames in order to `step`; one tracker per clip.

    Args:
        detector: Finds faces.
        points: Finds landmarks.
        settings: How to follow.
    """

    detector: FaceDetector
    points: LandmarkDetector
    settings: TrackSettings = field(default_factory=TrackSettings)
    ratios: list[float] = field(default_factory=list)
    most_faces: int = 0
    _previous: Array | None = None
    _frames_to_check: int = 0
    _missed: int = 0
    _last_image: Image | None = None
    _last_result: TrackedFace = field(default_factory=lambda: TrackedFace(None, 0.0))

    def step(self, image: Image) -> TrackedFace:
        """Return the face in the next frame uint8 RGB [H, W, 3].

        A frame that is the very same array as the last one costs nothing.
        """
        if image is self._last_image:
            return self._last_result
        self._last_image = image
        self._frames_to_check -= 1
        result = self._follow(image)
        if self._frames_to_check < 0 or (result is None and self._previous is not None):
            result = self._check(image, result)
        self._previous = None if result is None else result.landmarks
        self._last_result = result or TrackedFace(None, 0.0)
        return self._last_result

    @property
    def height_ratio(self) -> float:
        """Height of the largest face over that of the next, median over checks with faces."""
        return float(np.median(self.ratios)) if self.ratios else float("inf")

    def _follow(self, image: Image) -> TrackedFace | None:
        if self._previous is None:
            return None
        points, score = self.points.follow(image, self._previous)
        if _jumped(self._previous, points):
            return None
        return self._accepted(image, points, score)

    def _accepted(self, image: Image, points: Array, score: float) -> TrackedFace | None:
        if score < self.settings.min_score or _inside(image, points) < _MIN_INSIDE:
            return None
        return TrackedFace(points, score)

    def _check(self, image: Image, followed: TrackedFace | None) -> TrackedFace | None:
        """Detect: keep the followed face if the detector sees it, else take the largest."""
        found = self.detector.detect([image])[0]
        self._count(found)
        self._frames_to_check = self.settings.detect_every - 1
        if len(found) == 0:
            self._frames_to_check = min(_RETRY_FRAMES, self.settings.detect_every) - 1
            self._missed += 1
            return followed if self._missed < _MAX_MISSED_CHECKS else None
        self._missed = 0
        chosen = 0
        if self._previous is not None:
            current = self._previous if followed is None else followed.landmarks
            assert current is not None
            shared = overlap(frame_from_landmarks(current).box(), found.boxes)
            if shared.max() >= _SAME_FACE:
                if followed is not None:
                    return followed
                chosen = int(shared.argmax())
        points, scores = self.points.landmarks(image, found.boxes[chosen : chosen + 1])
        result = self._accepted(image, points[0], float(scores[0]))
        if result is None:
            self._frames_to_check = min(_RETRY_FRAMES, self.settings.detect_every) - 1
        return result

    def _count(self, found: Detections) -> None:
        self.most_faces = max(self.most_faces, len(found))
        if len(found) > 0:
            heights = found.boxes[:, 3] - found.boxes[:, 1]
            self.ratios.append(float(heights[0] / heights[1]) if len(found) > 1 else np.inf)


def _inside(image: Image, points: Array) -> float:
    height, width = image.shape[:2]
    within = (points >= 0) & (points <= np.array([width, height]))
    return float(within.all(axis=-1).mean())


def _jumped(before: Array, after: Array) -> bool:
    old, new = frame_from_landmarks(before), frame_from_landmarks(after)
    step = float(np.linalg.norm(new.centre - old.centre)) / old.side_px
    growth = max(new.side_px / old.side_px, old.side_px / new.side_px)
    return step > _LARGEST_STEP or growth > _LARGEST_GROWTH
