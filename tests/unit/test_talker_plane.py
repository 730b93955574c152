import math

import pytest
import torch

from nfs.geometry.cameras import face_rotation_to_cam2world, orbit_cameras
from nfs.geometry.rotations import euler_to_matrix
from nfs.talker.plane import face_to_world, plane_to_world_offset, turn_cameras, world_to_plane


def _cameras(*yaw: float) -> torch.Tensor:
    angles = torch.tensor(yaw, dtype=torch.float64)
    return orbit_cameras(angles, torch.full_like(angles, 1.4))


def test_fit_pixels_and_plane_coordinates_agree_under_the_fits_camera():
    torch.manual_seed(0)
    posed = torch.randn(2, 50, 3, dtype=torch.float64) * 0.6
    cameras = face_rotation_to_cam2world(euler_to_matrix(torch.randn(2, 3).double() * 0.3))
    plane, depth = world_to_plane(face_to_world(posed, cameras), cameras)
    x = 1015 * posed[..., 0] / (10 - posed[..., 2]) + 112
    y = 112 - 1015 * posed[..., 1] / (10 - posed[..., 2])
    torch.testing.assert_close(plane * 224, torch.stack((x, y), -1))
    torch.testing.assert_close(depth, 1 - posed[..., 2] / 10)


def test_offsets_move_the_projection_and_keep_the_depth():
    torch.manual_seed(1)
    cameras = _cameras(0.2, -0.4)
    points = torch.randn(2, 3, 5, 3, dtype=torch.float64) * 0.1
    plane, depth = world_to_plane(points, cameras)
    offset = torch.randn_like(plane) * 0.05
    moved = points + plane_to_world_offset(offset, depth, cameras)
    after, depth_after = world_to_plane(moved, cameras)
    torch.testing.assert_close(after, plane + offset)
    torch.testing.assert_close(depth_after, depth)


def test_zero_offset_is_exactly_zero():
    cameras = _cameras(0.3).float()
    zero = torch.zeros(1, 7, 2)
    assert (plane_to_world_offset(zero, torch.rand(1, 7), cameras) == 0).all()


def test_turning_a_camera_orbits_it_about_the_vertical():
    start = _cameras(0.1)[0]
    turned = turn_cameras(start, torch.tensor([0.0, 0.25], dtype=torch.float64))
    torch.testing.assert_close(turned, _cameras(0.1, 0.35))


def test_frontal_axes():
    camera = _cameras(0.0)
    camera = orbit_cameras(torch.zeros(1).double(), torch.full((1,), math.pi / 2).double())
    plane, depth = world_to_plane(torch.tensor([[[0.0, 0.05, 0.0], [0, 0, 0.05]]]).double(), camera)
    assert plane[0, 0, 0] > 0.5
    assert plane[0, 1, 1] < 0.5
    assert depth[0, 0] == pytest.approx(1.0)
