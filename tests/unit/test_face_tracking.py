import numpy as np
import pytest

from nfs.face.cuts import CutDetector
from nfs.face.keypoints import write_keypoints
from nfs.face.protocols import frame_from_landmarks
from nfs.face.selection import all_faces, largest_first, one_face, scenes_of
from nfs.face.tracking import FaceTracker, TrackSettings
from tests.unit.face_fakes import SquareDetector, SquareLandmarks, face_points, picture

SIZE = (160, 240)


def tracker(**settings) -> FaceTracker:
    return FaceTracker(SquareDetector(), SquareLandmarks(), TrackSettings(**settings))


def centre_of(landmarks: np.ndarray) -> np.ndarray:
    return (landmarks[16] + landmarks[0]) / 2


def xs_of(tracks) -> list[float]:
    return [round(centre_of(track.landmarks[-1])[0]) for track in tracks]


def test_follows_a_moving_face_with_few_detections():
    follow = tracker(detect_every=10)
    xs = [40 + index for index in range(40)]
    for x in xs:
        follow.step(picture(SIZE, [(x, 80, 40)]))
    assert follow.detector.calls == 4
    (track,) = follow.tracks
    assert track.frames == list(range(40))
    found = [centre_of(points)[0] for points in track.landmarks]
    assert np.abs(np.array(found) - xs).max() < 1.5


def test_an_equal_array_is_not_processed_twice():
    follow = tracker(detect_every=1)
    image = picture(SIZE, [(60, 80, 40)])
    assert follow.step(image) == follow.step(image) == follow.tracks
    assert follow.detector.calls == 1
    assert follow.tracks[0].frames == [0, 1]


def test_a_lost_face_is_found_again_and_is_a_new_track_elsewhere():
    follow = tracker(detect_every=100)
    images = [picture(SIZE, [(60, 80, 40)])]
    images += [picture(SIZE, []) for _ in range(7)]
    images += [picture(SIZE, [(180, 80, 40)]) for _ in range(8)]
    for image in images:
        follow.step(image)
    first, second = follow.tracks
    assert first.frames == [0]
    assert second.frames[-1] == 15
    assert len(second.frames) >= 5  # looks again within a few frames


@pytest.mark.parametrize(("gap", "num_tracks"), [(4, 1), (9, 2)])
def test_a_face_joins_its_track_again_after_a_short_gap_only(gap, num_tracks):
    follow = tracker(detect_every=1, max_gap_frames=5)
    for index in range(24):
        seen = not 8 <= index < 8 + gap
        follow.step(picture(SIZE, [(60 + index // 4, 80, 40)] if seen else []))
    assert len(follow.tracks) == num_tracks
    assert sum(len(track.frames) for track in follow.tracks) == 24 - gap


def test_keeps_its_face_although_another_grows_larger():
    follow = tracker(detect_every=5)
    for side in range(20, 60, 2):
        seen = follow.step(picture(SIZE, [(60, 80, 40), (180, 80, side)]))
    assert xs_of(seen) == [60]
    (scene,) = scenes_of(follow)
    assert scene.num_faces == 2


def test_follows_several_faces_the_largest_ones_first():
    images = [picture(SIZE, [(60, 80, 30), (180, 80, 40)])] * 1
    images += [picture(SIZE, [(60 + i, 80, 30), (180 - i, 80, 40)]) for i in range(1, 10)]
    for most, expected in ((1, [171]), (2, [171, 69])):
        follow = tracker(max_faces=most, detect_every=4)
        for image in images:
            seen = follow.step(image)
        assert xs_of(seen) == expected
        assert [len(track.frames) for track in follow.tracks] == [10] * most


def test_a_cut_to_another_place_is_followed_at_once():
    follow = tracker(detect_every=100)
    follow.step(picture(SIZE, [(60, 80, 40)]))
    assert xs_of(follow.step(picture(SIZE, [(190, 80, 40)]))) == [190]


def test_no_track_goes_on_across_a_cut():
    follow = tracker(detect_every=100)
    for index in range(6):
        follow.step(picture(SIZE, [(60, 80, 40)]), new_scene=index == 3)
    assert [(track.scene, track.frames) for track in follow.tracks] == [
        (0, [0, 1, 2]),
        (1, [3, 4, 5]),
    ]
    assert [(scene.start, scene.stop) for scene in scenes_of(follow)] == [(0, 3), (3, 6)]


class TwoPeople:
    """Two faces that pass each other; the landmarks follow whichever is nearest.

    The detector tells them apart all the time, the landmarks mix them up when they are close.
    """

    def __init__(self) -> None:
        self.places = np.zeros((2, 2))

    def move(self, first: float, second: float, apart: float) -> None:
        self.places = np.array([(first, 80.0), (second, 80.0 + apart)])

    def detect(self, images):
        from nfs.face.protocols import Detections

        boxes = [frame_from_landmarks(face_points(tuple(p), 40)).box() for p in self.places]
        return [Detections(np.array(boxes), np.ones(2)) for _ in images]

    def landmarks(self, image, boxes):
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        return np.array([self._nearest(c) for c in centres]), np.ones(len(boxes))

    def follow(self, image, previous):
        return self._nearest(previous.mean(axis=0)), 1.0

    def _nearest(self, centre):
        away = np.linalg.norm(self.places - centre, axis=1)
        # an obstructing face (the first) attracts from close by
        away[0] -= 12.0
        return face_points(tuple(self.places[away.argmin()]), 40.0)


def test_two_tracks_on_one_face_are_sorted_out_by_the_detector():
    people = TwoPeople()
    follow = FaceTracker(people, people, TrackSettings(detect_every=100, max_faces=2))
    for index in range(61):
        people.move(60 + 2 * index, 180 - 2 * index, apart=14.0)
        seen = follow.step(np.zeros((*SIZE, 3), np.uint8))
    assert len(seen) == 2
    ends = {track.frames[0]: round(track.landmarks[-1].mean(axis=0)[0]) for track in seen}
    assert len(follow.looks) > 1
    places = (
        sorted(ends.values())
        if len(ends) == 2
        else sorted(round(track.landmarks[-1].mean(axis=0)[0]) for track in seen)
    )
    assert places == [60, 180]


def test_a_face_cut_off_by_the_edge_does_not_count():
    follow = tracker()
    image = picture(SIZE, [(50, 80, 40)])
    points, _ = follow.points.landmarks(image, follow.detector.detect([image])[0].boxes)
    for shift, seen in ((0.0, True), (25.0, True), (45.0, False)):
        moved = points - np.array([shift, 0.0])
        follow = tracker()
        follow.points.landmarks = lambda *_, moved=moved: (moved, np.ones(1))
        assert bool(follow.step(image)) == seen


@pytest.mark.parametrize(("sides", "ratio"), [((40, 40), 1.0), ((40, 32), 1.25), ((40,), np.inf)])
def test_dominance_of_the_largest_face(sides, ratio):
    follow = tracker()
    places = (60, 180)
    follow.step(picture(SIZE, [(x, 80, side) for x, side in zip(places, sides, strict=False)]))
    assert scenes_of(follow)[0].dominance == pytest.approx(ratio)


def two_faces() -> FaceTracker:
    """The larger face (right) is there in frames 10 to 29, the smaller one all the time."""
    follow = tracker(detect_every=1, max_faces=2)
    for index in range(40):
        right = [(180, 80, 40)] if 10 <= index < 30 else []
        follow.step(picture(SIZE, [(60, 80, 30), *right]))
    return follow


def test_one_face_at_a_time_the_largest_has_priority():
    follow = two_faces()
    (scene,) = scenes_of(follow)
    spans = one_face(scene, largest_first(follow.tracks), 5)
    assert [(span.start, span.stop) for span in spans] == [(0, 10), (10, 30), (30, 40)]
    middle = [round(centre_of(span.keypoints.landmarks[0])[0]) for span in spans]
    assert middle == [60, 180, 60]
    (only,) = one_face(scene, largest_first(follow.tracks), 11)
    assert (only.start, only.stop) == (10, 30)
    every = all_faces(scene, follow.tracks, 5)
    assert [(span.start, span.stop, span.face) for span in every] == [(10, 30, 0), (0, 40, 1)]


def test_gaps_are_filled_and_flagged(tmp_path):
    follow = tracker(detect_every=1)
    for index in range(9):
        faces = [(60 + index, 80, 40)] if index not in (3, 4) else []
        follow.step(picture(SIZE, faces))
    (span,) = one_face(scenes_of(follow)[0], follow.tracks, 1)
    found = span.keypoints
    assert found.valid.tolist() == [True] * 3 + [False] * 2 + [True] * 4
    assert np.all(found.score[~found.valid] == 0)
    xs = [centre_of(points)[0] for points in found.landmarks]
    assert np.abs(np.diff(xs) - 1).max() < 0.1
    write_keypoints(tmp_path / "k.txt", found.landmarks)
    assert np.allclose(np.loadtxt(tmp_path / "k.txt").reshape(-1, 68, 2), found.landmarks)


def scene_picture(seed: int, shift: int, noise: int = 4) -> np.ndarray:
    """Return a moving, noisy picture of coloured blocks."""
    rng = np.random.default_rng(seed)
    blocks = np.kron(rng.integers(0, 255, (6, 10, 3)), np.ones((30, 30, 1)))
    jitter = np.random.default_rng(seed + shift).normal(0, noise, blocks.shape)
    return np.clip(np.roll(blocks, shift, axis=1) + jitter, 0, 255).astype(np.uint8)


def test_cuts_are_seen_and_motion_is_not_a_cut():
    detector = CutDetector()
    scenes = [scene_picture(seed, 3 * shift) for seed in (0, 7, 8) for shift in range(15)]
    cuts = [index for index, image in enumerate(scenes) if detector.is_cut(image)]
    assert cuts == [15, 30]
    fast = CutDetector()
    assert not any(fast.is_cut(scene_picture(1, 9 * shift)) for shift in range(30))


def test_brightness_that_changes_slowly_is_not_a_cut():
    detector = CutDetector()
    base = scene_picture(3, 0, noise=0).astype(float)
    frames = [(base * (1 - index / 40)).astype(np.uint8) for index in range(40)]
    assert not any(detector.is_cut(frame) for frame in frames)


def test_a_flash_is_not_a_cut():
    detector = CutDetector()
    frames = [scene_picture(2, index).astype(float) for index in range(20)]
    frames[10] = frames[10] * 0.6 + 100
    frames[11] = frames[11] * 0.8 + 50
    cuts = [detector.is_cut(np.clip(f, 0, 255).astype(np.uint8)) for f in frames]
    assert not any(cuts)


def test_face_frame_is_upright_for_a_rolled_face():
    angle = 0.5
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    frame = frame_from_landmarks(face_points((0, 0), 50) @ rotation)
    assert frame.roll_rad == pytest.approx(angle)
