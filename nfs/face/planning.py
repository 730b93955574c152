"""What becomes of the scenes of a file: clips of one face each, or a reason why not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nfs.config.preprocess import ClipConfig
from nfs.errors import ClipError
from nfs.face.selection import FaceSpan, Scene, all_faces, largest_first, one_face, scenes_of
from nfs.face.speech import match_speech
from nfs.face.tracking import FollowedFaces, Track, TrackSettings

SAMPLE_RATE_HZ = 16000

Samples = NDArray[np.float32]


@dataclass(frozen=True)
class ClipPlan:
    """One clip to be written (`span`), or a scene that gives none and why (`refused`).

    `suffix` tells the clips of one file apart; it depends on the file and the settings only.
    """

    scene: Scene
    suffix: str
    span: FaceSpan | None = None
    refused: ClipError | None = None


@dataclass(frozen=True)
class _Wanted:
    """What a clip must be: settings, least number of frames; and the scene's name in messages."""

    config: ClipConfig
    shortest: int
    where: str


def track_settings(config: ClipConfig) -> TrackSettings:
    """Return how the faces of a file are followed."""
    return TrackSettings(
        detect_every=config.detect_every,
        min_score=config.min_score,
        max_faces=1 if config.faces == "single" else config.max_faces,
        max_gap_frames=round(config.max_gap_s * config.fps),
    )


def plan_clips(
    tracker: FollowedFaces, samples: Samples | None, config: ClipConfig, where: str
) -> list[ClipPlan]:
    """Return the clips of a file and its scenes without one, in order of time.

    Args:
        tracker: Has seen all frames.
        samples: Sound of the same time at 16 kHz, if there is any.
        config: Which faces and scenes are wanted.
        where: Name of the file, for messages.
    """
    scenes = scenes_of(tracker)
    plans = []
    for scene in scenes:
        tracks = [track for track in tracker.tracks if track.scene == scene.number]
        part = f"-s{scene.number:03d}" if len(scenes) > 1 else ""
        text = where if len(scenes) == 1 else f"{where} scene {scene.number}"
        try:
            shortest = _shortest(scene, tracker.num_frames, config, text)
            wanted = _Wanted(config, shortest, text)
            spans = _chosen(scene, tracks, samples, wanted)
        except ClipError as error:
            plans.append(ClipPlan(scene, part, refused=error))
            continue
        for span in spans:
            suffix = part + (f"-f{span.face:02d}" if len(spans) > 1 else "")
            plans.append(ClipPlan(scene, suffix, span))
    return plans


def sound_of(span: FaceSpan, samples: Samples, fps: float) -> Samples:
    """Return the part of a file's sound that belongs to a clip."""
    start, stop = (round(frame / fps * SAMPLE_RATE_HZ) for frame in (span.start, span.stop))
    return samples[start:stop]


def _shortest(scene: Scene, num_frames: int, config: ClipConfig, where: str) -> int:
    """Return the least number of frames of a clip; refuse a scene that is shorter."""
    shortest = config.min_frames
    if len(scene) < shortest:
        text = f"{where}: {len(scene)} frames, needs clip.min_frames={shortest}"
        raise ClipError("too_short", text)
    track = min(max(round(config.min_track_s * config.fps), 1), num_frames)
    if len(scene) < track:
        text = f"{where}: {len(scene)} frames, needs clip.min_track_s={config.min_track_s:g}"
        raise ClipError("too_short", text)
    return max(shortest, track)


def _chosen(
    scene: Scene,
    tracks: Sequence[Track],
    samples: Samples | None,
    wanted: _Wanted,
) -> list[FaceSpan]:
    config, shortest, where = wanted.config, wanted.shortest, wanted.where
    _check_single(scene, config, where)
    # a face that is seen only now and then is judged by the fraction below, not by its length
    least = min(shortest, max((len(track.frames) for track in tracks), default=0))
    if config.faces == "all":
        spans = all_faces(scene, tracks, least)
    elif config.faces == "speaker":
        spans = one_face(scene, _speaker_only(scene, tracks, samples, wanted), least)
    else:
        spans = one_face(scene, largest_first(tracks), least)
    seen = sum(int(span.keypoints.valid.sum()) for span in spans)
    if seen == 0 or seen < config.min_face_fraction * len(scene):
        raise ClipError(
            "no_face",
            f"{where}: a whole face in {seen} of {len(scene)} frames, needs "
            f"clip.min_face_fraction={config.min_face_fraction:g} of them (faces cut off by "
            f"the edge or under {config.smallest_face:g} of the shorter side do not count)",
        )
    return spans


def _check_single(scene: Scene, config: ClipConfig, where: str) -> None:
    if config.faces == "single" and scene.dominance < config.dominance:
        raise ClipError(
            "multiple_faces",
            f"{where}: {scene.num_faces} faces, the largest only {scene.dominance:.2f} times as "
            f"high as the next (clip.dominance={config.dominance:g}); crop the file to one "
            "person, or set clip.faces to largest, speaker or all",
        )


def _speaker_only(
    scene: Scene,
    tracks: Sequence[Track],
    samples: Samples | None,
    wanted: _Wanted,
) -> list[Track]:
    """Return the tracks whose mouth makes the sound, the surest first; a lone face is believed."""
    config, shortest, where = wanted.config, wanted.shortest, wanted.where
    long = [track for track in tracks if len(track.frames) >= shortest]
    if len(long) < 2:
        return long or list(tracks)
    if samples is None:
        raise ClipError(
            "no_audio",
            f"{where}: {len(long)} faces and no sound to tell who speaks; "
            "set clip.faces=largest or all",
        )
    sure = []
    for track in long:
        (span,) = all_faces(scene, [track], 1)
        sound = sound_of(span, samples, config.fps)
        match = match_speech(span.keypoints.landmarks, sound, config.fps, SAMPLE_RATE_HZ)
        if match is not None and match.sure:
            sure.append((match.confidence, track))
    if not sure:
        raise ClipError(
            "no_speaker",
            f"{where}: no mouth of {len(long)} faces goes clearly with the sound; "
            "set clip.faces=largest or all",
        )
    return [track for _, track in sorted(sure, key=lambda pair: -pair[0])]
