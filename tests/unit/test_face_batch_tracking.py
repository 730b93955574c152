import numpy as np
import pytest

import nfs.face.clip as clip_module
from nfs.audio.mel import melspectrogram
from nfs.config.preprocess import ClipConfig
from nfs.errors import ConfigError
from nfs.face.batch_tracking import BatchTracker
from nfs.face.clip import ClipWork
from nfs.face.tracking import FaceTracker, TrackSettings
from nfs.media import VideoWriter
from tests.unit.face_fakes import SquareDetector, SquareLandmarks, picture

SIZE = (160, 240)


class Batches(SquareLandmarks):
    def __init__(self) -> None:
        self.sizes: list[int] = []

    def landmarks_of_frames(self, images, boxes):
        self.sizes.append(len(boxes))
        found = [self.landmarks(i, b[None]) for i, b in zip(images, boxes, strict=True)]
        return np.concatenate([p for p, _ in found]), np.concatenate([s for _, s in found])


def run(images, batch_frames=16, cuts=(), **settings) -> BatchTracker:
    tracker = BatchTracker(SquareDetector(), Batches(), TrackSettings(**settings), batch_frames)
    for index, image in enumerate(images):
        tracker.step(image, new_scene=index in cuts)
    tracker.finish()
    return tracker


def centres(track) -> np.ndarray:
    return np.array([(points[0] + points[16]) / 2 for points in track.landmarks])


def test_finds_what_the_frame_by_frame_tracker_finds():
    images = [picture(SIZE, [(50 + i, 80, 30), (190 - i, 80, 40)]) for i in range(40)]
    found = run(images, detect_every=5, max_faces=2)
    single = FaceTracker(SquareDetector(), SquareLandmarks(), TrackSettings(max_faces=2))
    for image in images:
        single.step(image)
    assert [track.frames for track in found.tracks] == [list(range(40))] * 2
    for track, other in zip(found.tracks, single.tracks, strict=True):
        assert np.abs(centres(track) - centres(other)).max() < 1.0
    assert found.points.sizes == [32, 32, 16]
    assert found.detector.calls == 4 + 4 + 3
    assert found.num_frames == 40


@pytest.mark.parametrize("batch_frames", [7, 16, 64])
def test_a_face_that_comes_and_goes(batch_frames):
    images = [picture(SIZE, [(60, 80, 40)] if not 10 <= i < 40 else []) for i in range(60)]
    found = run(images, batch_frames, detect_every=4, max_gap_frames=8)
    first, second = found.tracks
    assert first.frames == list(range(10))
    assert second.frames[-1] == 59
    assert 40 <= second.frames[0] < 44
    back = [picture(SIZE, [(60, 80, 40)] if not 10 <= i < 14 else []) for i in range(30)]
    (joined,) = run(back, batch_frames, detect_every=4, max_gap_frames=8).tracks
    assert joined.frames[:8] == list(range(8))
    assert set(joined.frames).isdisjoint(range(10, 14))


def test_cuts_and_repeated_frames():
    one, other = picture(SIZE, [(60, 80, 40)]), picture(SIZE, [(180, 80, 40)])
    images = [one, one, one.copy(), other, other, other.copy()]
    found = run(images, cuts=(3,), detect_every=1)
    assert [(track.scene, track.frames) for track in found.tracks] == [
        (0, [0, 1, 2]),
        (1, [3, 4, 5]),
    ]
    assert found.points.sizes == [2, 2]
    assert found.scene_starts == [0, 3]


def test_the_largest_faces_within_the_limit():
    images = [picture(SIZE, [(60, 80, 30), (180, 80, 40)])] * 3
    (track,) = run(images, max_faces=1).tracks
    assert centres(track)[0][0] == pytest.approx(180, abs=2)


def test_clips_by_batches_equal_clips_frame_by_frame(tmp_path, monkeypatch):
    monkeypatch.setattr(clip_module, "build_detector", lambda *_: SquareDetector())
    monkeypatch.setattr(clip_module, "build_landmarks", lambda *_: Batches())
    path = tmp_path / "m.mp4"
    with VideoWriter(path, 25, SIZE) as writer:
        for index in range(30):
            writer.write(picture(SIZE, [(60 + index, 80, 40)]))
    names = ("clip_id", "source_uri", "source_sha256", "identity_id")
    item = {"key": "k", "path": str(path), **dict.fromkeys(names, "x"), "split": "train"}
    tables = []
    for batch_frames in (0, 12):
        config = ClipConfig(
            crop_size_px=64, landmarks="mediapipe", batch_frames=batch_frames, detect_every=5
        )
        tables.append(ClipWork(config.tree(), melspectrogram)(item)["frames"])
    points = [np.array(table["landmarks_px"].to_pylist()) for table in tables]
    assert np.abs(points[0] - points[1]).max() < 1.0
    assert tables[1]["status"].to_pylist() == ["ok"] * 30


def test_batches_need_landmarks_that_take_them():
    with pytest.raises(ConfigError, match="landmarks=fan or mediapipe"):
        ClipConfig.from_tree({"batch_frames": 8}, source="clip")
