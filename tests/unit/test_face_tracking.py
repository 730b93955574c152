import numpy as np
import pytest

from nfs.face.keypoints import extract_keypoints, write_keypoints
from nfs.face.protocols import frame_from_landmarks
from nfs.face.tracking import FaceTracker, TrackSettings
from tests.unit.face_fakes import SquareDetector, SquareLandmarks, picture

SIZE = (160, 240)


def tracker(**settings) -> FaceTracker:
    return FaceTracker(SquareDetector(), SquareLandmarks(), TrackSettings(**settings))


def centre_of(landmarks: np.ndarray) -> np.ndarray:
    return (landmarks[16] + landmarks[0]) / 2


def test_follows_a_moving_face_with_few_detections():
    follow = tracker(detect_every=10)
    xs = [40 + index for index in range(40)]
    faces = [follow.step(picture(SIZE, [(x, 80, 40)])) for x in xs]
    assert follow.detector.calls == 4
    found = [centre_of(face.landmarks)[0] for face in faces]
    assert np.abs(np.array(found) - xs).max() < 1.5


def test_an_equal_array_is_not_processed_twice():
    follow = tracker(detect_every=1)
    image = picture(SIZE, [(60, 80, 40)])
    assert follow.step(image) is follow.step(image)
    assert follow.detector.calls == 1


def test_a_lost_face_is_flagged_and_found_again():
    follow = tracker(detect_every=100)
    images = [picture(SIZE, [(60, 80, 40)])] * 1
    images += [picture(SIZE, []) for _ in range(7)]
    images += [picture(SIZE, [(180, 80, 40)]) for _ in range(8)]
    seen = [follow.step(image).landmarks is not None for image in images]
    assert seen[0]
    assert not any(seen[1:8])
    assert seen[-1]
    assert sum(seen[8:]) >= 5  # looks again within a few frames


def test_keeps_its_face_although_another_grows_larger():
    follow = tracker(detect_every=5)
    for side in range(20, 60, 2):
        face = follow.step(picture(SIZE, [(60, 80, 40), (180, 80, side)]))
    assert centre_of(face.landmarks)[0] == pytest.approx(60, abs=2)
    assert follow.most_faces == 2


def test_takes_the_largest_face_first():
    face = tracker().step(picture(SIZE, [(60, 80, 30), (180, 80, 40)]))
    assert centre_of(face.landmarks)[0] == pytest.approx(180, abs=2)


def test_a_cut_to_another_place_is_followed_at_once():
    follow = tracker(detect_every=100)
    follow.step(picture(SIZE, [(60, 80, 40)]))
    face = follow.step(picture(SIZE, [(190, 80, 40)]))
    assert centre_of(face.landmarks)[0] == pytest.approx(190, abs=2)


def test_a_face_cut_off_by_the_edge_does_not_count():
    follow = tracker()
    image = picture(SIZE, [(50, 80, 40)])
    points, _ = follow.points.landmarks(image, follow.detector.detect([image])[0].boxes)
    for shift, seen in ((0.0, True), (25.0, True), (45.0, False)):
        moved = points - np.array([shift, 0.0])
        follow = tracker()
        follow.points.landmarks = lambda *_, moved=moved: (moved, np.ones(1))
        assert (follow.step(image).landmarks is not None) == seen


@pytest.mark.parametrize(("sides", "ratio"), [((40, 40), 1.0), ((40, 32), 1.25), ((40,), np.inf)])
def test_height_ratio_of_the_two_largest(sides, ratio):
    follow = tracker()
    places = (60, 180)
    follow.step(picture(SIZE, [(x, 80, side) for x, side in zip(places, sides, strict=False)]))
    assert follow.height_ratio == pytest.approx(ratio)


def test_keypoints_fill_gaps_and_flag_them(tmp_path):
    images = [picture(SIZE, [(60 + i, 80, 40)] if i not in (3, 4) else []) for i in range(9)]
    found = extract_keypoints(images, tracker(detect_every=1))
    assert found.valid.tolist() == [True] * 3 + [False] * 2 + [True] * 4
    assert np.all(found.score[~found.valid] == 0)
    xs = [centre_of(points)[0] for points in found.landmarks]
    assert np.abs(np.diff(xs) - 1).max() < 0.1
    nothing = extract_keypoints([picture(SIZE, [])], tracker())
    assert np.all(nothing.landmarks == -1)
    write_keypoints(tmp_path / "k.txt", found.landmarks)
    assert np.allclose(np.loadtxt(tmp_path / "k.txt").reshape(-1, 68, 2), found.landmarks)


def test_face_frame_is_upright_for_a_rolled_face():
    from tests.unit.face_fakes import face_points

    angle = 0.5
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    frame = frame_from_landmarks(face_points((0, 0), 50) @ rotation)
    assert frame.roll_rad == pytest.approx(angle)
