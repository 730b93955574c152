"""Following faces in batches of frames, for GPUs: the detector leads, landmarks run all at once.

The detector looks at every n-th frame of a batch in one call; faces are matched from look to look,
their boxes interpolated between, and the landmarks of all frames run together. `FaceTracker` does
the same frame by frame with far fewer detections, which is quicker on CPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from nfs.face.protocols import Array, Detections, FaceDetector, FrameLandmarks, Image
from nfs.face.tracking import Look, Track, TrackSettings, inside_part, match_boxes

_MIN_INSIDE = 0.9


@dataclass
class _Open:
    """A track that may go on: its box in the last look in which it was seen.

    `ended`: a look since then did not see it.
    """

    track: Track
    frame: int
    box: Array
    ended: bool = False


@dataclass
class BatchTracker:
    """Feed frames in order to `step`, call `finish`, then read `tracks`; one tracker per clip.

    Args:
        detector: Finds faces.
        points: Finds landmarks in many frames at once.
        settings: How to follow.
        batch_frames: Frames that are kept and processed together.
    """

    detector: FaceDetector
    points: FrameLandmarks
    settings: TrackSettings
    batch_frames: int
    tracks: list[Track] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    scene_starts: list[int] = field(default_factory=list)
    num_frames: int = 0
    _open: list[_Open] = field(default_factory=list)
    _images: list[Image] = field(default_factory=list)
    _frames: list[list[int]] = field(default_factory=list)
    """Numbers of the frames that show each of the kept images."""

    def step(self, image: Image, *, new_scene: bool = False) -> None:
        """Take the next frame uint8 RGB [H, W, 3].

        Args:
            image: The frame; the same array as the last one costs nothing.
            new_scene: Whether a cut lies before it.
        """
        frame = self.num_frames
        self.num_frames += 1
        if new_scene or frame == 0:
            self.finish()
            self._open = []
            self.scene_starts.append(frame)
        if self._images and image is self._images[-1]:
            self._frames[-1].append(frame)
            return
        if len(self._images) == self.batch_frames:
            self.finish()
        self._images.append(image)
        self._frames.append([frame])

    def finish(self) -> None:
        """Process the frames that are kept."""
        if not self._images:
            return
        count = len(self._images)
        places = sorted({*range(0, count, self.settings.detect_every), count - 1})
        seen = self.detector.detect([self._images[place] for place in places])
        wanted: dict[tuple[int, int], tuple[Track, Array]] = {}
        for place, faces in zip(places, seen, strict=True):
            for one, track, box in self._link(place, faces):
                wanted[one, id(track)] = (track, box)
        order = sorted(wanted, key=lambda key: key[0])
        self._locate([(key[0], *wanted[key]) for key in order])
        self._images, self._frames = [], []

    def _link(self, place: int, seen: Detections) -> list[tuple[int, Track, Array]]:
        """Match a look with the open tracks; return (image, track, box) that are known now."""
        frame = self._frames[place][0]
        heights = seen.boxes[:, 3] - seen.boxes[:, 1]
        self.looks.append(Look(frame, tuple(float(height) for height in heights)))
        reach = self.settings.max_gap_frames + self.settings.detect_every
        self._open = [one for one in self._open if frame - one.frame <= reach]
        matches = match_boxes([one.box for one in self._open], seen.boxes, loose=True)
        known = []
        for index, detection in matches.items():
            one, box = self._open[index], seen.boxes[detection]
            known += self._between(one, frame, box)
            known.append((place, one.track, box))
            one.frame, one.box, one.ended = frame, box, False
        for index, one in enumerate(self._open):
            if index not in matches and not one.ended:
                # still there for a while, perhaps: the landmark score will tell
                known += self._between(one, frame, one.box)
                one.ended = True
        free = [d for d in range(len(seen)) if d not in matches.values()]
        for detection in free[: max(self.settings.max_faces - len(matches), 0)]:
            track = Track(scene=len(self.scene_starts) - 1)
            box = seen.boxes[detection]
            before = _Open(track, self.looks[-2].frame if len(self.looks) > 1 else -1, box)
            known += self._between(before, frame, box)
            known.append((place, track, box))
            self._open.append(_Open(track, frame, box))
        return known

    def _between(self, one: _Open, frame: int, box: Array) -> list[tuple[int, Track, Array]]:
        """Return (image, track, box) of the kept images between two looks."""
        result = []
        for place, frames in enumerate(self._frames):
            if one.frame < frames[0] < frame:
                part = (frames[0] - one.frame) / (frame - one.frame)
                result.append((place, one.track, (1 - part) * one.box + part * box))
        return result

    def _locate(self, faces: Sequence[tuple[int, Track, Array]]) -> None:
        """Find the landmarks of faces (image, track, box) and note those that are accepted."""
        if not faces:
            return
        images = [self._images[place] for place, _, _ in faces]
        points, scores = self.points.landmarks_of_frames(
            images, np.stack([box for _, _, box in faces])
        )
        for (place, track, _), found, score in zip(faces, points, scores, strict=True):
            if score < self.settings.min_score:
                continue
            if inside_part(self._images[place], found) < _MIN_INSIDE:
                continue
            if not track.frames:
                self.tracks.append(track)
            for frame in self._frames[place]:
                track.add(frame, found, float(score))
