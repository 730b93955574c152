import math
from dataclasses import replace

import pytest
import torch

from nfs.geometry.cameras import orbit_cameras
from nfs.talker.deformation import (
    OriginalWarp,
    WarpSettings,
    WorldLockedWarp,
    original_anchors,
    scale_to_world,
)
from nfs.talker.plane import TAN_HALF_FOV, world_to_plane


def _camera(yaw: float = 0.0, count: int = 1) -> torch.Tensor:
    return orbit_cameras(torch.full((count,), yaw), torch.full((count,), math.pi / 2))


def _rays(camera: torch.Tensor, size: int = 16, samples: int = 6) -> torch.Tensor:
    """Sample points `[B, size^2, samples, 3]` of a square image, near 0.88, far 1.12."""
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    v, u = torch.meshgrid(axis, axis, indexing="ij")
    direction = torch.stack((u * TAN_HALF_FOV, v * TAN_HALF_FOV, torch.ones_like(u)), -1)
    direction = direction.reshape(1, -1, 3) @ camera[:, :3, :3].transpose(1, 2)
    depth = torch.linspace(0.88, 1.12, samples)
    return camera[:, None, None, :3, 3] + direction[:, :, None] * depth[:, None]


def _face() -> torch.Tensor:
    """A flat patch of vertices `[V, 3]` in the plane x = 0.02 that faces the frontal camera."""
    grid = torch.linspace(-0.05, 0.05, 21)
    z, y = torch.meshgrid(grid, grid, indexing="ij")
    return torch.stack((torch.full_like(y, 0.02), y, z), -1).reshape(-1, 3)


@pytest.mark.parametrize("yaw", [0.0, 0.2])
def test_zero_displacement_returns_the_points_bit_for_bit(yaw):
    camera = _camera(yaw, 2)
    points, face = _rays(camera), _face()
    moved = WorldLockedWarp(face, face.expand(2, -1, -1).clone())(points, camera)
    assert torch.equal(moved, points)


def test_samples_go_back_to_where_the_reference_face_is():
    camera = _camera()
    face, step = _face(), torch.tensor([0.0, 0.0, -0.01])
    warp = WorldLockedWarp(face, (face + step)[None])
    sample = torch.tensor([[[[0.02, 0.011, -0.013]]]])
    expected = sample - step
    torch.testing.assert_close(warp(sample, camera), expected, atol=3e-5, rtol=0)


def test_world_locked_association_does_not_depend_on_the_camera():
    face, step = _face(), torch.tensor([0.0, 0.0, -0.01])
    warp = WorldLockedWarp(face, (face + step)[None])
    sample = torch.tensor([[[[0.02, 0.011, -0.013]]]])
    front = warp(sample, _camera(0.0))
    side = warp(sample, _camera(0.3))
    torch.testing.assert_close(front, side, atol=6e-4, rtol=0)


def test_far_from_the_face_and_far_behind_it_nothing_moves():
    camera = _camera()
    face = _face()
    warp = WorldLockedWarp(face, (face + torch.tensor([0.0, 0.0, -0.01]))[None])
    outside = torch.tensor([[[[0.02, 0.1, 0.1]]]])
    behind = torch.tensor([[[[-0.10, 0.0, 0.0]]]])
    front = torch.tensor([[[[0.08, 0.0, 0.0]]]])
    torch.testing.assert_close(warp(outside, camera), outside, atol=1e-5, rtol=0)
    assert torch.equal(warp(behind, camera), behind)
    assert (warp(front, camera) - front).abs().max() > 0.008


def test_hidden_vertices_lend_no_motion():
    camera, face = _camera(), _face()
    hidden = face - torch.tensor([0.05, 0.0, 0.0])
    both = torch.cat((face, hidden))
    moved = torch.cat((face + torch.tensor([0.0, 0.0, -0.01]), hidden))[None]
    sample = torch.tensor([[[[0.02, 0.011, -0.013]]]])
    visible = torch.arange(len(both)) < len(face)
    clean = WorldLockedWarp(both, moved, visible=visible[None])(sample, camera)
    alone = WorldLockedWarp(face, moved[:, : len(face)])(sample, camera)
    assert torch.equal(clean, alone)
    mixed = WorldLockedWarp(both, moved)(sample, camera)
    assert (mixed - alone).abs().max() > 1e-3
    with pytest.raises(ValueError, match="no visible vertex"):
        WorldLockedWarp(face, face[None], visible=torch.zeros(1, len(face), dtype=torch.bool))


def test_one_query_per_ray_equals_one_query_per_sample():
    camera = _camera(0.2)
    points, face = _rays(camera), _face()
    moved = (face + 0.01 * torch.sin(200 * face[:, [1, 2, 0]]))[None]
    warp = WorldLockedWarp(face, moved)
    shared = warp(points, camera)
    single = torch.stack([warp(points[:, :, s : s + 1], camera)[:, :, 0] for s in range(6)], 2)
    torch.testing.assert_close(shared, single, atol=1e-6, rtol=0)
    mixed = warp(torch.roll(points, 1, 1)[:, :, :1], camera)
    assert mixed.shape == (1, 256, 1, 3)


def test_samples_off_the_ray_are_looked_up_one_by_one():
    camera, face = _camera(), _face()
    warp = WorldLockedWarp(face, (face + torch.tensor([0.0, 0.01, 0.0]))[None])
    pair = torch.tensor([[[[0.02, 0.0, 0.0], [0.02, 0.1, 0.1]]]])
    moved = warp(pair, camera)
    assert (moved[0, 0, 0] - pair[0, 0, 0]).abs().max() > 0.008
    assert (moved[0, 0, 1] - pair[0, 0, 1]).abs().max() < 1e-5


def test_frames_alone_equal_frames_in_a_batch():
    torch.manual_seed(0)
    camera = torch.cat((_camera(0.1), _camera(-0.2)))
    points, face = _rays(camera), _face()
    moved = face + 0.004 * torch.randn(2, *face.shape)
    together = WorldLockedWarp(face, moved)(points, camera)
    for i in range(2):
        alone = WorldLockedWarp(face, moved[i : i + 1])(points[i : i + 1], camera[i : i + 1])
        assert torch.equal(alone[0], together[i])


def test_fewer_vertices_than_neighbours():
    camera = _camera()
    face = _face()[:2]
    warp = WorldLockedWarp(face, (face + 0.01)[None], settings=WarpSettings(neighbours=8))
    assert torch.isfinite(warp(_rays(camera), camera)).all()


def test_wrong_shapes_are_refused():
    face = _face()
    with pytest.raises(ValueError, match="do not match reference"):
        WorldLockedWarp(face, face[None, :-1])
    warp = WorldLockedWarp(face, face[None])
    with pytest.raises(ValueError, match="2 frames of samples, 1 of vertices"):
        warp(_rays(_camera(0.0, 2)), _camera(0.0, 2))


def test_wider_falloff_reaches_further():
    camera, face = _camera(), _face()
    moved = (face + torch.tensor([0.0, 0.0, -0.01]))[None]
    point = torch.tensor([[[[0.02, 0.06, 0.0]]]])
    shifts = [
        (WorldLockedWarp(face, moved, settings=s)(point, camera) - point).abs().max()
        for s in (WarpSettings(), replace(WarpSettings(), falloff_radius=0.2))
    ]
    assert shifts[1] > shifts[0] > 0


def test_original_scaling_and_torso_axis():
    assert scale_to_world(torch.tensor([0.0, 112.0, 224.0]), 224).tolist() == pytest.approx(
        [-0.1, 0.0, 0.1]
    )
    anchors = original_anchors(torch.zeros(2, 3, 2), torch.tensor([[512, 512]]))
    assert anchors.shape == (2, 4, 2)
    assert anchors[0, 3].tolist() == pytest.approx([0.1, -0.1])


def test_original_warp_associates_by_pixel_of_the_frontal_view():
    front, side = _camera(0.0), _camera(0.3)
    anchors = torch.tensor([[-0.05, 0.0], [0.05, 0.0]])
    moved = anchors[None] - torch.tensor([[0.01, 0.0], [0.0, 0.02]])
    by_pixel = OriginalWarp(anchors, moved, front[0])
    by_place = OriginalWarp(anchors, moved, None)
    points = _rays(side)
    expected = by_pixel.nearest(_rays(front), front)
    assert torch.equal(by_pixel.nearest(points, side), expected)
    assert not torch.equal(by_place.nearest(points, side), expected)
    shift = by_pixel(points, side) - points
    assert (shift[..., 0] == 0).all()
    assert world_to_plane(points, side)[0].shape == (1, 256, 6, 2)
