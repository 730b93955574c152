import math

import numpy as np
import pytest
import torch

from nfs.errors import InputError
from nfs.geometry.cameras import cam2world_to_yaw_pitch
from nfs.inversion.frames import load_frames
from nfs.inversion.selection import Candidates, choose_frames, choose_reference, neutral_cost
from tests.unit.inversion_fakes import SIZE_PX, face_landmarks, write_clip


def candidates(mouths, yaws, eyes=None):
    eyes = eyes or [1.0] * len(mouths)
    points = np.stack([face_landmarks(m, e) for m, e in zip(mouths, eyes, strict=True)])
    rotation = np.zeros((len(mouths), 3))
    rotation[:, 1] = yaws
    return Candidates(points, rotation, np.arange(len(mouths)) * 10)


def test_neutral_means_mouth_closed_and_eyes_open():
    cost = neutral_cost(candidates([0, 1, 0.3, 0], [0] * 4, [1, 1, 1, 0.2]))
    assert cost[0] == cost.min()
    assert cost[1] > cost[2] > cost[0]
    assert cost[3] > cost[0] + 0.5


def test_the_reference_is_frontal_and_neutral():
    assert choose_reference(candidates([0, 0.0, 0.5], [0.5, 0.02, 0.0])) == 1


def test_frames_spread_over_yaw_without_repeats():
    yaws = np.linspace(-0.4, 0.4, 41)
    found = choose_frames(candidates([0.0] * 41, yaws), 3)
    assert found[0] == 20
    assert sorted(np.round(yaws[found[1:]], 1)) == [-0.4, 0.4]
    assert len(choose_frames(candidates([0.0] * 3, [0, 0, 0]), 9)) == 3
    held_out = choose_frames(candidates([0.0] * 41, yaws), 4, exclude=found)
    assert not set(held_out) & set(found)
    assert len(set(held_out)) == 4


def test_a_spread_of_expressions_prefers_the_closed_mouth():
    found = choose_frames(candidates([0.0, 1.0, 0.0, 1.0], [0, 0.2, 0.19, -0.2]), 2)
    assert found == [0, 2]


def test_frames_come_with_pixels_cameras_and_fits(tmp_path):
    clips, fits = write_clip(tmp_path)
    frames, held_out = load_frames(
        clips, fits, clip_id=None, size_px=SIZE_PX, num_frames=3, num_held_out=2
    )
    assert frames.images.shape == (3, 3, SIZE_PX, SIZE_PX)
    assert frames.images.abs().max() <= 1
    assert frames.clip_id == "anna"
    assert (frames.model_id, frames.model_checksum) == ("open_head", "abc")
    assert not set(frames.frame_indices) & set(held_out.frame_indices)
    assert 3 not in frames.frame_indices + held_out.frame_indices
    red = ((frames.images[:, 0].mean((1, 2)) + 1) * 127.5).round().int().tolist()
    assert red == frames.frame_indices
    yaw, _ = cam2world_to_yaw_pitch(frames.cam2world)
    expected = frames.coefficients.rotation[:, 1]
    assert torch.allclose(yaw.abs(), expected.abs(), atol=1e-5)


def test_missing_clips_are_named(tmp_path):
    clips, fits = write_clip(tmp_path)
    with pytest.raises(InputError, match="called 'bob'; clips there: anna"):
        load_frames(clips, fits, clip_id="bob", size_px=SIZE_PX, num_frames=1)


def test_a_still_head_shows_every_frame_under_its_camera():
    from nfs.inversion.cameras import fitted_cameras
    from nfs.morphable.coefficients import Coefficients
    from nfs.morphable.projection import pose_points, project_points

    draws = torch.Generator().manual_seed(0)
    points = torch.rand(1, 50, 3, generator=draws) * 1.6 - 0.8
    rows = Coefficients.zeros(4)
    rows.rotation.copy_(torch.rand(4, 3, generator=draws) * 0.4 - 0.2)
    rows.translation.copy_(torch.rand(4, 3, generator=draws) * 0.6 - 0.3)
    rows.translation[:, 2] -= 0.8
    cameras = fitted_cameras(rows, fov_deg=12.0, reference=1)
    posed = pose_points(points.expand(4, -1, -1), rows.rotation_matrix, rows.translation)
    expected = project_points(posed, 128) / 64 - 1
    tan = math.tan(math.radians(6))
    # The still head: what the reference camera sees, the distance of the head's centre being 1.
    depth = (10 - posed[1, :, 2:]) / (10 - rows.translation[1, 2])
    head = torch.cat([expected[1] * tan * depth, depth], dim=1)
    world = head @ cameras[1, :3, :3].T + cameras[1, :3, 3]
    seen = (world - cameras[:, None, :3, 3]) @ cameras[:, :3, :3]
    error_px = (seen[..., :2] / seen[..., 2:] / tan - expected).norm(dim=-1) * 64
    assert error_px[1].max() < 1e-3
    assert error_px.mean() < 0.6
    assert error_px.max() < 2.5
    assert torch.allclose(cameras[1, :3, 3].norm(), torch.tensor(1.0))
