"""From tracks to clips: which face, in which frames of which scene, becomes training material."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nfs.face.keypoints import Keypoints, fill_gaps
from nfs.face.protocols import NUM_LANDMARKS, Array, frame_from_landmarks
from nfs.face.tracking import FollowedFaces, Look, Track


@dataclass(frozen=True)
class Scene:
    """Frames [start, stop) between two cuts, and what was seen there.

    `num_faces` is the most faces that the detector saw at once; `dominance` how many times as high
    as the next the largest face was (median over the looks with a face; infinite if alone).
    """

    number: int
    start: int
    stop: int
    num_faces: int
    dominance: float

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class FaceSpan:
    """One face in frames [start, start + T): a clip to be.

    `face` counts the clips of the scene; landmarks of frames without the face are interpolated.
    """

    scene: Scene
    face: int
    start: int
    keypoints: Keypoints

    @property
    def stop(self) -> int:
        """Return the frame after the last."""
        return self.start + len(self.keypoints.valid)


def scenes_of(tracker: FollowedFaces) -> list[Scene]:
    """Return the scenes of the frames that a tracker has seen."""
    stops = [*tracker.scene_starts[1:], tracker.num_frames]
    return [
        _scene(number, start, stop, tracker.looks)
        for number, (start, stop) in enumerate(zip(tracker.scene_starts, stops, strict=True))
    ]


def _scene(number: int, start: int, stop: int, looks: Iterable[Look]) -> Scene:
    heights = [look.heights_px for look in looks if start <= look.frame < stop]
    ratios = [h[0] / h[1] if len(h) > 1 else np.inf for h in heights if h]
    dominance = float(np.median(ratios)) if ratios else np.inf
    return Scene(number, start, stop, max((len(h) for h in heights), default=0), dominance)


def all_faces(scene: Scene, tracks: Sequence[Track], min_frames: int) -> list[FaceSpan]:
    """Return every track of a scene that is long enough as a clip of its own, largest first."""
    long = [track for track in tracks if len(track.frames) >= min_frames]
    return _numbered(scene, [_part(t, t.frames[0], t.frames[-1] + 1) for t in _by_height(long)])


def one_face(scene: Scene, tracks: Sequence[Track], min_frames: int) -> list[FaceSpan]:
    """Return clips of a scene that never overlap in time: the first tracks given have priority.

    A later track fills the time in which none before it was in view.
    """
    free = [(scene.start, scene.stop)]
    chosen: list[tuple[int, Keypoints]] = []
    for track in tracks:
        parts = [_part(track, start, stop) for start, stop in free]
        for part in parts:
            if part is None:
                continue
            start, keypoints = part
            if int(keypoints.valid.sum()) >= min_frames:
                chosen.append((start, keypoints))
                free = list(_without(free, start, start + len(keypoints.valid)))
    chosen.sort(key=lambda clip: clip[0])
    return _numbered(scene, chosen)


def largest_first(tracks: Iterable[Track]) -> list[Track]:
    """Return tracks by the median height of their face, the largest first."""
    return _by_height(tracks)


def face_heights_px(landmarks: Array) -> NDArray[np.float64]:
    """Return the heights [T] of the faces with landmarks [T, 68, 2]: forehead to chin, pixels."""
    boxes = [frame_from_landmarks(points).box() for points in landmarks]
    return np.array([box[3] - box[1] for box in boxes])


def _by_height(tracks: Iterable[Track]) -> list[Track]:
    def height(track: Track) -> float:
        return float(np.median(face_heights_px(np.array(track.landmarks))))

    return sorted(tracks, key=lambda track: (-height(track), track.frames[0]))


def _part(track: Track, start: int, stop: int) -> tuple[int, Keypoints] | None:
    """Return first frame and keypoints of a track inside [start, stop), without empty ends."""
    inside = [n for n, frame in enumerate(track.frames) if start <= frame < stop]
    if not inside:
        return None
    first, last = track.frames[inside[0]], track.frames[inside[-1]]
    points = np.full((last - first + 1, NUM_LANDMARKS, 2), -1.0)
    score, valid = np.zeros(len(points)), np.zeros(len(points), bool)
    for n in inside:
        row = track.frames[n] - first
        points[row], score[row], valid[row] = track.landmarks[n], track.scores[n], True
    return first, Keypoints(fill_gaps(points, valid), valid, score)


def _without(
    intervals: Iterable[tuple[int, int]], start: int, stop: int
) -> Iterable[tuple[int, int]]:
    for low, high in intervals:
        for part in ((low, min(high, start)), (max(low, stop), high)):
            if part[0] < part[1]:
                yield part


def _numbered(scene: Scene, parts: Iterable[tuple[int, Keypoints] | None]) -> list[FaceSpan]:
    numbers = itertools.count()
    return [FaceSpan(scene, next(numbers), *part) for part in parts if part is not None]
