"""Following faces through a clip: landmarks lead from frame to frame, the detector checks.

A face keeps its track while it is in view within one scene; when it is back at the same place
within `max_gap_frames` it joins its track again, otherwise it begins a new one.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

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
# Two tracks on one place: one of them has slipped onto the other's face.
_CROSSING = 0.3
_MOTION_FRAMES = 4
_SAME_PLACE = 0.75
_SAME_SIZE = 1.5


@dataclass(frozen=True)
class TrackSettings:
    """How faces are followed.

    `detect_every` frames the detector looks again; a landmark score under `min_score` (0 to 1)
    loses a face, as does a face cut off by the edge of the picture. At most `max_faces` are
    followed at once, the largest first. A face that is lost for more than `max_gap_frames` begins
    a new track when it is seen again.
    """

    detect_every: int = 25
    min_score: float = 0.5
    max_faces: int = 1
    max_gap_frames: int = 12


@dataclass
class Track:
    """One face in some frames of one scene: frame numbers, landmarks [68, 2] and scores."""

    scene: int
    frames: list[int] = field(default_factory=list)
    landmarks: list[Array] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    missed: int = 0
    """Checks in a row at which the detector did not see the face that the landmarks follow."""

    def add(self, frame: int, points: Array, score: float) -> None:
        """Note the face in a frame."""
        self.frames.append(frame)
        self.landmarks.append(points)
        self.scores.append(score)

    def expected_box(self, frame: int) -> Array:
        """Return the box [4] in which the face should be, moving on as in its last frames."""
        earlier = max(len(self.frames) - 1 - _MOTION_FRAMES, 0)
        passed = self.frames[-1] - self.frames[earlier]
        moved = self.landmarks[-1].mean(axis=0) - self.landmarks[earlier].mean(axis=0)
        ahead = min(frame - self.frames[-1], _MOTION_FRAMES) / max(passed, 1)
        return frame_from_landmarks(self.landmarks[-1]).box() + np.tile(moved * ahead, 2)


@dataclass(frozen=True)
class Look:
    """What the detector saw in a frame: heights of the faces in pixels, largest first."""

    frame: int
    heights_px: tuple[float, ...]


class FollowedFaces(Protocol):
    """What a tracker knows when it has seen all frames."""

    tracks: list[Track]
    looks: list[Look]
    scene_starts: list[int]
    num_frames: int


@dataclass
class FaceTracker:
    """Feed frames in order to `step`, then read `tracks`; one tracker per clip.

    Args:
        detector: Finds faces.
        points: Finds landmarks.
        settings: How to follow.
    """

    detector: FaceDetector
    points: LandmarkDetector
    settings: TrackSettings = field(default_factory=TrackSettings)
    tracks: list[Track] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    scene_starts: list[int] = field(default_factory=list)
    num_frames: int = 0
    _active: list[Track] = field(default_factory=list)
    _lost: list[Track] = field(default_factory=list)
    _frames_to_check: int = 0
    _last_image: Image | None = None

    def step(self, image: Image, *, new_scene: bool = False) -> list[Track]:
        """Follow the faces into the next frame uint8 RGB [H, W, 3]; return those in view.

        A frame that is the very same array as the last one costs nothing.

        Args:
            image: The frame.
            new_scene: Whether a cut lies before it: no track goes on.
        """
        frame = self.num_frames
        self.num_frames += 1
        if image is self._last_image:
            for track in self._active:
                track.add(frame, track.landmarks[-1], track.scores[-1])
            return list(self._active)
        self._last_image = image
        if new_scene or frame == 0:
            self.scene_starts.append(frame)
            self._active, self._lost, self._frames_to_check = [], [], 0
        self._frames_to_check -= 1
        self._lost = [
            t for t in self._lost if frame - t.frames[-1] - 1 <= self.settings.max_gap_frames
        ]
        found = [_Candidate(track, self._follow(image, track)) for track in self._active]
        _forget_crossing(found)
        if self._frames_to_check < 0 or any(one.face is None for one in found):
            found = self._check(image, frame, found)
        self._active = [one.track for one in found if one.face is not None]
        for one in found:
            if one.face is not None:
                one.track.add(frame, one.face.landmarks, one.face.score)
        return list(self._active)

    def _follow(self, image: Image, track: Track) -> _Face | None:
        points, score = self.points.follow(image, track.landmarks[-1])
        if _jumped(track.landmarks[-1], points):
            return None
        return self._accepted(image, points, score)

    def _accepted(self, image: Image, points: Array, score: float) -> _Face | None:
        if score < self.settings.min_score or inside_part(image, points) < _MIN_INSIDE:
            return None
        return _Face(points, score)

    def _check(self, image: Image, frame: int, followed: list[_Candidate]) -> list[_Candidate]:
        """Detect, and return all tracks, old and new, with the face of each that is in view."""
        seen = self.detector.detect([image])[0]
        heights = seen.boxes[:, 3] - seen.boxes[:, 1]
        self.looks.append(Look(frame, tuple(float(height) for height in heights)))
        known = followed + [_Candidate(track, None, was_lost=True) for track in self._lost]
        matches = _matches(known, seen.boxes, frame)
        for index, one in enumerate(known):
            if index in matches:
                one.track.missed = 0
            elif one.face is not None:
                one.track.missed += 1
                if one.track.missed >= _MAX_MISSED_CHECKS:
                    one.face = None
        missing = {index: d for index, d in matches.items() if known[index].face is None}
        room = self.settings.max_faces - len(missing) - sum(o.face is not None for o in known)
        free = [d for d in range(len(seen)) if d not in matches.values()][: max(room, 0)]
        located = self._locate(image, seen, [*missing.values(), *free])
        for index, face in zip(missing, located, strict=False):
            known[index].face = face
        new = [_Candidate(Track(len(self.scene_starts) - 1), f) for f in located[len(missing) :]]
        _drop_doubles([*known, *new], self.settings.max_faces)
        self._lost = [one.track for one in known if one.face is None]
        self.tracks += [one.track for one in new if one.face is not None]
        sure = len(seen) > 0 and not self._lost and None not in located
        wait = self.settings.detect_every
        self._frames_to_check = (wait if sure else min(_RETRY_FRAMES, wait)) - 1
        return [*known, *new]

    def _locate(self, image: Image, seen: Detections, chosen: list[int]) -> list[_Face | None]:
        if not chosen:
            return []
        points, scores = self.points.landmarks(image, seen.boxes[chosen])
        return [self._accepted(image, p, float(s)) for p, s in zip(points, scores, strict=True)]


@dataclass(frozen=True)
class _Face:
    landmarks: Array
    score: float

    def box(self) -> Array:
        return frame_from_landmarks(self.landmarks).box()


@dataclass
class _Candidate:
    """A track and its face in the current frame, if it is known where."""

    track: Track
    face: _Face | None
    was_lost: bool = False


def _forget_crossing(found: list[_Candidate]) -> None:
    """Two tracks have come to one place: neither knows any more which face is its own."""
    unsure = [
        (first, second)
        for first, second in itertools.combinations(found, 2)
        if first.face is not None
        and second.face is not None
        and overlap(first.face.box(), second.face.box()[None])[0] >= _CROSSING
    ]
    for pair in unsure:
        for one in pair:
            one.face = None


def _matches(known: list[_Candidate], boxes: Array, frame: int) -> dict[int, int]:
    """Return track -> detection; a lost face may have moved further than an overlap allows."""
    lost = [index for index, one in enumerate(known) if one.was_lost]
    here = [index for index, one in enumerate(known) if not one.was_lost]
    expected = [
        one.track.expected_box(frame) if one.face is None else one.face.box() for one in known
    ]
    first = match_boxes([expected[index] for index in here], boxes)
    matches = {here[row]: detection for row, detection in first.items()}
    free = [d for d in range(len(boxes)) if d not in matches.values()]
    again = match_boxes([expected[index] for index in lost], boxes[free], loose=True)
    return matches | {lost[row]: free[detection] for row, detection in again.items()}


def match_boxes(expected: list[Array], boxes: Array, *, loose: bool = False) -> dict[int, int]:
    """Return expected -> detected: the assignment with the largest sum of overlaps.

    Args:
        expected: Boxes [4].
        boxes: [N, 4].
        loose: Also match boxes of about one size that lie near each other without an overlap.
    """
    if not expected or not len(boxes):
        return {}
    shared = np.stack([overlap(box, boxes) for box in expected])
    if loose:
        near = np.stack([_near(box, boxes) for box in expected])
        shared = np.where(near, np.maximum(shared, _SAME_FACE), 0.0)
    shared[shared < _SAME_FACE] = 0.0
    rows, columns = linear_sum_assignment(-shared)
    return {int(r): int(c) for r, c in zip(rows, columns, strict=True) if shared[r, c] > 0}


def _near(box: Array, boxes: Array) -> NDArray[np.bool_]:
    """Return which boxes [N, 4] are about as large as a box [4] and about there."""
    height, heights = box[3] - box[1], boxes[:, 3] - boxes[:, 1]
    away = np.linalg.norm((boxes[:, :2] + boxes[:, 2:] - box[:2] - box[2:]) / 2, axis=-1)
    growth = np.maximum(heights / height, height / heights)
    return np.asarray((away <= _SAME_PLACE * height) & (growth <= _SAME_SIZE))


def _drop_doubles(candidates: list[_Candidate], max_faces: int) -> None:
    """Keep one track per place, those that the detector saw first, and the largest `max_faces`."""

    def order(one: _Candidate) -> tuple[int, float]:
        assert one.face is not None
        box = one.face.box()
        return one.track.missed, float(box[1] - box[3])

    kept: list[Array] = []
    for one in sorted((c for c in candidates if c.face is not None), key=order):
        assert one.face is not None
        box = one.face.box()
        double = len(kept) > 0 and overlap(box, np.array(kept)).max() >= _CROSSING
        if double or len(kept) >= max_faces:
            one.face = None
        else:
            kept.append(box)


def inside_part(image: Image, points: Array) -> float:
    """Return the part of points [68, 2] that lie inside the picture."""
    height, width = image.shape[:2]
    within = (points >= 0) & (points <= np.array([width, height]))
    return float(within.all(axis=-1).mean())


def _jumped(before: Array, after: Array) -> bool:
    old, new = frame_from_landmarks(before), frame_from_landmarks(after)
    step = float(np.linalg.norm(new.centre - old.centre)) / old.side_px
    growth = max(new.side_px / old.side_px, old.side_px / new.side_px)
    return step > _LARGEST_STEP or growth > _LARGEST_GROWTH
