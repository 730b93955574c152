import numpy as np
import pytest
from PIL import Image, ImageFilter

from nfs.face.align import (
    ARCFACE_TEMPLATE_INDEX,
    deep3d_standard_pixels,
    face_square,
    five_points,
    head_rotation,
)
from nfs.face.quality import blur_effect, head_pose_deg, measure_picture
from nfs.media.images import apply_affine
from tests.unit.face_fakes import face_points

SIDE = 256


def portrait(skin: tuple[int, int, int] = (200, 150, 120), noise: float = 12.0) -> np.ndarray:
    """Return a picture of one skin colour with texture, on blue."""
    rng = np.random.default_rng(0)
    image = np.empty((SIDE, SIDE, 3))
    image[:] = (30, 60, 160)
    image[40:230, 50:206] = skin
    coarse = Image.fromarray(rng.normal(size=(32, 32)).astype(np.float32))
    texture = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    image += noise * (texture + 0.3 * rng.normal(size=(SIDE, SIDE)))[..., None]
    return np.clip(image, 0, 255).astype(np.uint8)


POINTS = face_points((128, 130), 130)


def test_blur_grows_with_the_radius_of_the_blur():
    image = Image.fromarray(portrait())
    blurred = [np.asarray(image.filter(ImageFilter.GaussianBlur(r))) for r in (0, 1, 2, 4)]
    values = [measure_picture(picture, POINTS).blur for picture in blurred]
    assert values == sorted(values)
    assert values[0] < 0.4
    assert values[-1] > 0.5
    assert blur_effect(np.full((64, 64), 7.0)) == 1.0


def test_exposure_and_clipping():
    dark, bright = portrait((20, 15, 12), noise=1.0), portrait((255, 255, 255), noise=0.0)
    assert measure_picture(dark, POINTS).exposure < 0.1
    assert measure_picture(portrait(), POINTS).exposure == pytest.approx(0.63, abs=0.05)
    white = measure_picture(bright, POINTS)
    assert white.clipped > 0.95
    assert measure_picture(portrait(), POINTS).clipped < 0.02


def test_a_thing_before_the_face_is_occlusion():
    image = portrait()
    assert measure_picture(image, POINTS).occlusion < 0.03
    image[130:200, 70:200] = (40, 160, 60)
    seen = measure_picture(image, POINTS)
    assert 0.15 < seen.occlusion < 0.8


def test_points_outside_the_picture_are_no_face():
    assert measure_picture(portrait(), POINTS + 1000).occlusion == 1.0


def rotated_points(yaw_deg: float, pitch_deg: float) -> np.ndarray:
    """Return 68 points whose five points are the standard face in that pose, seen from afar."""
    from nfs.face.align import _STANDARD_FIVE

    yaw, pitch = np.radians([yaw_deg, pitch_deg])
    ry = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    rx = np.array(
        [[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]]
    )
    five = (_STANDARD_FIVE @ (ry @ rx).T)[:, :2] * (90, -90) + 128
    points = np.zeros((68, 2))
    for index, place in zip(((36, 39), (42, 45), (30,), (48,), (54,)), five, strict=True):
        points[list(index)] = place
    return points


@pytest.mark.parametrize("pose", [(0, 0), (25, 0), (-40, 0), (0, 15), (10, -20)])
def test_pose_of_the_standard_face_is_recovered(pose):
    points = rotated_points(*pose)
    assert head_pose_deg(points[None])[0] == pytest.approx(pose, abs=0.01)
    rotation = head_rotation(five_points(points))
    assert np.allclose(rotation @ rotation.T, np.eye(3))


@pytest.mark.parametrize("scheme", ["ffhq", "deep3d", "arcface"])
def test_schemes_move_with_the_face(scheme):
    first = face_square(POINTS, scheme, 128).crop_from_source(128)
    moved = POINTS * 1.7 + (40, -9)
    second = face_square(moved, scheme, 128).crop_from_source(128)
    assert np.allclose(apply_affine(first, POINTS), apply_affine(second, moved), atol=1e-6)


def test_schemes_put_the_five_points_on_their_templates():
    points = rotated_points(0, 0)
    deep = face_square(points, "deep3d", 224).crop_from_source(224)
    assert np.allclose(apply_affine(deep, five_points(points)), deep3d_standard_pixels(224))
    arc = face_square(points, "arcface", 224).crop_from_source(224)
    found = apply_affine(arc, five_points(points)) / 2 - 0.5
    assert np.abs(found - ARCFACE_TEMPLATE_INDEX).max() < 4
    with pytest.raises(ValueError, match="use ffhq"):
        face_square(points, "none", 224)
