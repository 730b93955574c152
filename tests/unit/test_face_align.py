import numpy as np
import pytest

from nfs.face.align import (
    ARCFACE_TEMPLATE_INDEX,
    FaceSquare,
    arcface_transform,
    deep3d_alignment,
    ffhq_square,
    five_points,
    pad_box,
    pad_box_published,
    smooth_square,
)
from nfs.face.ffhq import ffhq_crop_reference, sadtalker_crop
from nfs.face.protocols import frame_from_box, frame_from_landmarks, overlap
from nfs.media.images import apply_affine, warp_affine
from tests.unit.face_fakes import face_points


def turned(points: np.ndarray, angle: float, scale: float, shift: tuple[float, float]):
    rotation = scale * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return points @ rotation + np.array(shift)


def test_ffhq_crop_does_not_depend_on_place_size_or_roll():
    upright = face_points((100, 100), 80)
    for angle, scale, shift in ((0.0, 1.0, (5, -3)), (0.5, 2.5, (300, 40)), (-0.4, 0.3, (0, 9))):
        moved = turned(upright, angle, scale, shift)
        before = apply_affine(ffhq_square(upright).crop_from_source(256), upright)
        after = apply_affine(ffhq_square(moved).crop_from_source(256), moved)
        assert np.allclose(before, after, atol=1e-9)


def test_ffhq_crop_puts_eyes_level_above_the_centre():
    points = turned(face_points((100, 100), 80), 0.3, 1.0, (0, 0))
    crop = apply_affine(ffhq_square(points).crop_from_source(256), points)
    left, right = crop[36:42].mean(0), crop[42:48].mean(0)
    assert left[1] == pytest.approx(right[1], abs=3)
    assert 90 < left[1] < 128
    assert (left[0] + right[0]) / 2 == pytest.approx(128, abs=6)


def test_crop_matrix_maps_the_quad_to_the_corners():
    square = ffhq_square(turned(face_points((90, 70), 60), 0.2, 1.0, (0, 0)))
    corners = apply_affine(square.crop_from_source(64), square.quad())
    assert np.allclose(corners, [[0, 0], [0, 64], [64, 64], [64, 0]])


def test_warp_agrees_with_the_published_crop():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)
    image = warp_affine(coarse, np.array([[20.0, 0, 0], [0, 20, 0]]), 400)
    points = face_points((200, 190), 120)
    ours = warp_affine(image, ffhq_square(points).crop_from_source(128), 128)
    theirs = ffhq_crop_reference(image, points - 0.5, 128)
    assert np.abs(ours.astype(int) - theirs).mean() < 3


def squares(count: int, seed: int = 0, noise: float = 0.0) -> FaceSquare:
    rng = np.random.default_rng(seed)
    time = np.arange(count)[:, None]
    centre = np.array([[100.0, 80.0]]) + time * np.array([[1.0, 0.5]])
    half = np.tile([[50.0, 5.0]], (count, 1))
    return FaceSquare(
        centre + noise * rng.normal(size=(count, 2)), half + noise * rng.normal(size=(count, 2))
    )


def test_smoothing_removes_jitter_without_delay():
    noisy, clean, valid = squares(80, noise=1.0), squares(80), np.ones(80, bool)
    smooth = smooth_square(noisy, valid, 5.0)
    inner = slice(15, -15)
    assert np.abs(smooth.centre - clean.centre)[inner].max() < 0.9
    assert np.abs(np.diff(smooth.centre, 2, axis=0))[inner].max() < 0.1
    assert np.abs(smooth.half_side - clean.half_side)[inner].max() < 0.9
    # zero phase: a smoothed straight path is the path itself
    assert np.abs(smooth_square(clean, valid, 5.0).centre - clean.centre)[inner].max() < 0.01


def test_gaps_are_interpolated_and_invalid_values_ignored():
    square, valid = squares(30), np.ones(30, bool)
    valid[10:14] = valid[-2:] = False
    square.centre[~valid] = 1e6
    filled = smooth_square(square, valid, 0.0)
    assert np.allclose(filled.centre[:28], squares(30).centre[:28])
    assert np.allclose(filled.centre[28:], filled.centre[27])
    with pytest.raises(ValueError, match="at least one valid"):
        smooth_square(square, np.zeros(30, bool), 0.0)


def test_a_cut_is_not_smeared():
    square, valid = squares(40), np.ones(40, bool)
    square.centre[20:] += 300
    smooth = smooth_square(square, valid, 3.0)
    assert np.abs(smooth.centre - square.centre).max() < 3.0


def test_roll_is_smoothed_across_the_full_turn():
    angles = np.linspace(np.pi - 0.2, np.pi + 0.2, 21)
    half = 10 * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    smooth = smooth_square(FaceSquare(np.zeros((21, 2)), half), np.ones(21, bool), 1.0)
    assert np.abs(smooth.half_side - half).max() < 1.0


def test_five_points_and_deep3d_scale():
    points = face_points((120, 130), 100)
    five = five_points(points)
    assert np.allclose(five[2], points[30])
    height = 260
    yup = five * [1, -1] + [0, height - 1]
    small = deep3d_alignment(yup, (300, height))
    double = deep3d_alignment(yup * 2, (600, height * 2))
    assert double.scale == pytest.approx(small.scale / 2)
    aligned = small.landmarks_yup(yup)
    assert np.linalg.norm(aligned[1] - aligned[0]) == pytest.approx(63, abs=20)
    assert aligned.mean(0) == pytest.approx([112, 112], abs=40)


def test_arcface_recovers_a_known_similarity():
    source = turned(ARCFACE_TEMPLATE_INDEX, 0.4, 2.0, (30, -10))
    batch = np.stack([source, ARCFACE_TEMPLATE_INDEX, np.zeros((5, 2))])
    found = arcface_transform(batch)
    assert np.allclose(apply_affine(found[:2], batch[:2]), ARCFACE_TEMPLATE_INDEX)
    assert np.array_equal(found[2], [[1, 0, 0], [0, 1, 0]])


def test_box_padding_published_shrinks_and_ours_stays_centred():
    box = np.array([600.2, 20.0, 640.0, 80.0])
    assert pad_box_published(box, (640, 360)) == (581, 11, 640, 70)
    ours = pad_box(box)
    assert (ours[:2] + ours[2:]) / 2 == pytest.approx([620.1, 50.0])
    assert ours[2] - ours[0] == pytest.approx(78.0)


def test_sadtalker_bottom_is_clamped_by_the_height_when_fixed():
    points = face_points((100, 60), 80)
    published = sadtalker_crop((400, 120), points)
    fixed = sadtalker_crop((400, 120), points, published=False)
    assert published.quad[3] > 120 >= fixed.quad[3]


def test_boxes_and_landmarks_agree_on_the_face():
    points = face_points((150, 140), 100)
    frame = frame_from_landmarks(points)
    again = frame_from_box(frame.box())
    assert again.centre == pytest.approx(frame.centre)
    assert again.side_px == pytest.approx(frame.side_px)
    patch = apply_affine(frame.crop_from_source(200, 100), points)
    assert frame_from_landmarks(patch).side_px == pytest.approx(100)
    assert frame_from_landmarks(patch).centre == pytest.approx([100, 100], abs=1e-6)
    boxes = np.array([frame.box(), frame.box() + 1000])
    assert overlap(frame.box(), boxes) == pytest.approx([1.0, 0.0])


def test_parity_with_the_recordings(shared_dir):
    from tests.parity.face_checks import checks

    found = checks(shared_dir / "parity" / "morphable")
    assert len(found) >= 9
    assert {name: result for name, result in found.items() if not result["ok"]} == {}
