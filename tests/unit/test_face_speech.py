"""Mouth against sound, on synthetic speech with a known delay and on the real clips."""

import numpy as np
import pytest

from nfs.face.detectors import build_detector
from nfs.face.landmarks import build_landmarks
from nfs.face.selection import one_face, scenes_of
from nfs.face.speech import LEAD_S, match_speech
from nfs.face.tracking import FaceTracker, TrackSettings
from nfs.media.audio import read_audio
from nfs.media.video import read_frames
from tests.unit.face_fakes import face_points

FPS, RATE = 25.0, 16000


def syllables(seconds: float, seed: int = 0):
    """Return opening [T] of a mouth and the sound [N] that it makes (in time, with the lead)."""
    rng = np.random.default_rng(seed)
    fine = np.arange(round(seconds * 1000)) / 1000
    opening = np.zeros_like(fine)
    time = 0.2
    while time < seconds:
        length = rng.uniform(0.12, 0.3)
        opening += rng.uniform(0.3, 1.0) * np.exp(-(((fine - time) / (length / 2)) ** 2))
        time += length + rng.choice([0.05, 0.5], p=[0.8, 0.2])
    frames = np.interp(np.arange(int(seconds * FPS)) / FPS + 0.5 / FPS, fine, opening)
    loudness = np.interp(np.arange(round(seconds * RATE)) / RATE - LEAD_S, fine, opening)
    return frames, (loudness * 0.1 * rng.normal(size=len(loudness))).astype(np.float32)


def talking(opening: np.ndarray) -> np.ndarray:
    points = np.repeat(face_points((100, 100), 80)[None], len(opening), axis=0)
    points[:, [65, 66, 67], 1] += 8 * opening[:, None]
    rng = np.random.default_rng(5)
    return points + 0.1 * rng.normal(size=points.shape)


@pytest.mark.parametrize("delay_s", [-0.32, -0.08, 0.0, 0.2, 0.44])
def test_a_known_delay_is_measured(delay_s):
    opening, sound = syllables(8.0)
    late = np.roll(sound, round(delay_s * RATE))
    match = match_speech(talking(opening), late, FPS, RATE)
    assert match.sure
    assert match.delay_s == pytest.approx(delay_s, abs=0.03)


def test_another_sound_a_still_mouth_silence_and_short_clips_are_not_sure():
    opening, sound = syllables(8.0)
    _, other = syllables(8.0, seed=1)
    assert not match_speech(talking(opening), other, FPS, RATE).sure
    still = np.repeat(face_points((100, 100), 80)[None], len(opening), axis=0)
    assert match_speech(still, sound, FPS, RATE) is None
    assert match_speech(talking(opening), np.zeros_like(sound), FPS, RATE) is None
    assert match_speech(talking(opening)[:50], sound, FPS, RATE) is None


def test_a_real_speaker_is_in_time(shared_dir):
    path = shared_dir / "data" / "clips" / "statement_720p.mp4"
    tracker = FaceTracker(build_detector("mtcnn"), build_landmarks("dlib"), TrackSettings())
    for _, image in read_frames(path, fps=FPS, end_s=5.0):
        tracker.step(image)
    (span,) = one_face(scenes_of(tracker)[0], tracker.tracks, 1)
    sound = read_audio(path, RATE, end_s=5.0)
    for late_s in (0.0, 0.2):
        samples = sound.cut(-late_s, 5 * RATE)
        match = match_speech(span.keypoints.landmarks, samples, FPS, RATE)
        assert match.sure
        assert match.delay_s == pytest.approx(late_s, abs=0.04)
