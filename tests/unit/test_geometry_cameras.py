"""Cameras, rays and volume rendering: conventions, round trips, plain twins."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nfs.geometry import cameras, rays, volume

yaws = st.floats(-1.2, 1.2)
pitches = st.floats(0.5, math.pi - 0.5)


def orbit(yaw: float, pitch: float, radius: float = 1.0) -> torch.Tensor:
    return cameras.orbit_cameras(torch.tensor([yaw]), torch.tensor([pitch]), radius)


def test_frontal_camera_has_opencv_axes_in_the_z_up_world():
    camera = orbit(0.0, cameras.FRONTAL_PITCH_RAD)[0]
    expected = torch.tensor(
        [[0.0, 0.0, -1.0, 1.0], [1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    )
    assert torch.allclose(camera, expected, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(yaws, pitches, st.floats(0.5, 3.0))
def test_orbit_cameras_look_at_the_origin_and_give_their_angles_back(yaw, pitch, radius):
    camera = orbit(yaw, pitch, radius)
    axes, position = camera[0, :3, :3], camera[0, :3, 3]
    assert torch.allclose(axes.T @ axes, torch.eye(3), atol=1e-5)
    assert torch.linalg.det(axes) == pytest.approx(1.0, abs=1e-5)
    assert torch.allclose(axes[:, 2], -position / radius, atol=1e-5)
    found_yaw, found_pitch = cameras.cam2world_to_yaw_pitch(camera)
    assert float(found_yaw) == pytest.approx(yaw, abs=1e-4)
    assert float(found_pitch) == pytest.approx(pitch, abs=1e-3)


@settings(max_examples=25, deadline=None)
@given(yaws, pitches)
def test_rt_conversion_is_exact_and_its_own_inverse(yaw, pitch):
    camera = orbit(yaw, pitch)
    rt = cameras.cam2world_to_rt(camera)
    assert torch.equal(cameras.rt_to_cam2world(rt), camera)
    assert torch.equal(rt[:, :3, 1:3], -camera[:, :3, 1:3])
    assert torch.equal(rt[..., [0, 3]], camera[..., [0, 3]])


@settings(max_examples=25, deadline=None)
@given(yaws, pitches)
def test_face_rotation_round_trip(yaw, pitch):
    camera = orbit(yaw, pitch)
    rotation = cameras.cam2world_to_face_rotation(camera)
    assert torch.allclose(cameras.face_rotation_to_cam2world(rotation), camera, atol=1e-6)


def test_identity_face_rotation_is_the_frontal_camera():
    camera = cameras.face_rotation_to_cam2world(torch.eye(3)[None])
    assert torch.allclose(camera, orbit(0.0, math.pi / 2), atol=1e-6)


def test_turned_face_is_seen_from_the_opposite_side():
    """A head turned to its left (towards +x of the image) is the fixed head seen from its right."""
    angle = 0.3
    cos, sin = math.cos(angle), math.sin(angle)
    rotation = torch.tensor([[[cos, 0.0, sin], [0.0, 1.0, 0.0], [-sin, 0.0, cos]]])
    yaw, pitch = cameras.cam2world_to_yaw_pitch(cameras.face_rotation_to_cam2world(rotation))
    assert float(yaw) == pytest.approx(-angle, abs=1e-5)
    assert float(pitch) == pytest.approx(math.pi / 2, abs=1e-5)


@pytest.mark.parametrize("resolution", [1, 4, 7])
def test_rays_pass_through_pixel_centres(resolution):
    camera = orbit(0.2, 1.4)
    found = rays.camera_rays(rays.pixel_grid(resolution), camera, fov_deg=12.0)
    half = math.tan(math.radians(6.0))
    centres = (torch.arange(resolution) + 0.5) / resolution * 2 - 1
    down, right = torch.meshgrid(centres, centres, indexing="ij")
    local = torch.stack([right * half, down * half, torch.ones_like(right)], -1).reshape(-1, 3)
    assert torch.allclose(found.directions[0], local @ camera[0, :3, :3].T, atol=1e-6)
    assert torch.allclose(found.origins[0], camera[0, :3, 3].expand(resolution**2, 3), atol=1e-6)
    points = found.at(torch.full((1, resolution**2, 2), 0.5))
    assert torch.allclose(points[0, :, 1], found.origins[0] + 0.5 * found.directions[0])


@pytest.mark.parametrize("last", [0.0, volume.OPAQUE])
def test_ray_weights_equal_a_plain_loop(last):
    torch.manual_seed(0)
    sigma, depths = torch.rand(2, 3, 5) * 9 - 1, torch.rand(2, 3, 5).sort(dim=-1).values
    result = volume.ray_weights(sigma, depths, scale=1.5, last=last)
    for b in range(2):
        for n in range(3):
            light = 1.0
            for s in range(5):
                gap = 1.5 * float(depths[b, n, s + 1] - depths[b, n, s]) if s < 4 else last
                alpha = 1 - math.exp(-max(float(sigma[b, n, s]), 0.0) * gap)
                alpha = 1.0 if s == 4 and last > 0 else alpha
                assert float(result.weights[b, n, s]) == pytest.approx(light * alpha, abs=1e-5)
                if s == 4:
                    assert float(result.transmittance[b, n]) == pytest.approx(light, abs=1e-5)
                light *= 1 - alpha


def test_unsort_inverts_the_merge():
    torch.manual_seed(0)
    first, second = torch.rand(2, 3, 4), torch.rand(2, 3, 5)
    merged, order = volume.merge_order(first, second)
    assert torch.equal(volume.unsort(merged, order), torch.cat([first, second], dim=-1))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_jittered_depths_stay_in_their_strata_and_in_order(seed):
    torch.manual_seed(seed)
    even = torch.linspace(0, 1, 6).expand(1, 3, 6)
    moved = volume.jitter_depths(even, torch.rand(1, 3, 6))
    assert (moved.diff(dim=-1) >= 0).all()
    assert (moved - even).abs().max() <= 0.1 + 1e-6


def test_importance_depths_follow_the_weights():
    depths = torch.linspace(0, 1, 9).expand(1, 1, 9)
    weights = torch.zeros(1, 1, 9)
    weights[..., 4] = 1.0
    found = volume.importance_depths(depths, weights, torch.linspace(0.05, 0.95, 7).expand(1, 1, 7))
    assert ((found - 0.5).abs() < 1 / 8).all()


def test_inverted_sphere_points_lie_on_their_rays():
    torch.manual_seed(0)
    origins = torch.rand(2, 4, 3) - 0.5
    directions = torch.nn.functional.normalize(torch.randn(2, 4, 3), dim=-1)
    inverse_radius = torch.rand(2, 4, 3) * 0.9 + 0.1
    points = volume.inverted_sphere_points(origins, directions, inverse_radius)
    assert torch.allclose(points[..., :3].norm(dim=-1), torch.ones(2, 4, 3), atol=1e-5)
    seen = points[..., :3] / points[..., 3:] - origins[:, :, None]
    away = torch.linalg.cross(seen, directions[:, :, None].expand_as(seen)).norm(dim=-1)
    assert (away / seen.norm(dim=-1)).max() < 1e-3
    assert ((seen * directions[:, :, None]).sum(dim=-1) > 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cameras.rt_to_cam2world(torch.eye(3)), r"\[\.\.\., 4, 4\]"),
        (lambda: cameras.orbit_cameras(torch.zeros(2), torch.zeros(3)), "must both be"),
        (lambda: cameras.face_rotation_to_cam2world(torch.eye(3)), r"rotation must be \[B, 3, 3\]"),
        (lambda: rays.camera_rays(torch.zeros(1, 2), torch.eye(4), fov_deg=12.0), "cam2world"),
    ],
)
def test_wrong_shapes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
