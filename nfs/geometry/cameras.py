"""Cameras: `cam2world [B, 4, 4]` with OpenCV axes (+x right, +y down, +z forward).

The world is StyleNeRF's: z up, a frontal camera stands at (+1, 0, 0) and looks along -x, image
right is world +y. The original program writes cameras as `RT` whose third axis points backwards
(it looks along its -z) and whose second axis points up; the two differ by exact sign flips.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

FRONTAL_PITCH_RAD = math.pi / 2


def _flip_up_and_back(cameras: Tensor) -> Tensor:
    if cameras.shape[-2:] != (4, 4):
        raise ValueError(f"cameras must be [..., 4, 4], got {list(cameras.shape)}")
    flips = cameras.new_tensor([1.0, -1.0, -1.0, 1.0])
    return cameras * flips


def rt_to_cam2world(rt: Tensor) -> Tensor:
    """Convert StyleNeRF's `RT [..., 4, 4]` (y up, looks along -z) to OpenCV axes, exactly."""
    return _flip_up_and_back(rt)


def cam2world_to_rt(cam2world: Tensor) -> Tensor:
    """Convert `cam2world [..., 4, 4]` (OpenCV axes) to StyleNeRF's `RT`, exactly."""
    return _flip_up_and_back(cam2world)


def orbit_cameras(yaw_rad: Tensor, pitch_rad: Tensor, radius: Tensor | float = 1.0) -> Tensor:
    """Place cameras on a sphere, looking at its centre.

    Args:
        yaw_rad: Azimuth `[B]`; 0 is frontal, positive moves the camera towards world +y.
        pitch_rad: Polar angle from world +z `[B]`; pi/2 is level. 0 and pi are degenerate.
        radius: Distance from the origin in scene units, a number or `[B]`.

    Returns:
        `cam2world [B, 4, 4]` in the dtype of `yaw_rad` (spec/stylenerf.md 2.4).
    """
    if yaw_rad.ndim != 1 or yaw_rad.shape != pitch_rad.shape:
        raise ValueError(
            "yaw_rad and pitch_rad must both be [B], got "
            f"{list(yaw_rad.shape)} and {list(pitch_rad.shape)}"
        )
    backward = torch.stack(
        [
            pitch_rad.sin() * yaw_rad.cos(),
            pitch_rad.sin() * yaw_rad.sin(),
            pitch_rad.cos(),
        ],
        dim=-1,
    )
    world_up = backward.new_tensor([0.0, 0.0, 1.0]).expand_as(backward)
    right = normalize(torch.linalg.cross(world_up, backward), dim=-1)
    up = normalize(torch.linalg.cross(backward, right), dim=-1)
    scale = radius if isinstance(radius, float | int) else radius.to(backward)[:, None]
    upper = torch.stack([right, up, backward, backward * scale], dim=-1)
    bottom = upper.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(len(upper), 1, 4)
    return rt_to_cam2world(torch.cat([upper, bottom], dim=1))


def cam2world_to_yaw_pitch(cam2world: Tensor) -> tuple[Tensor, Tensor]:
    """Return the `yaw_rad [B]` and `pitch_rad [B]` of cameras that look at the origin."""
    backward = -cam2world[..., :3, 2]
    yaw_rad = torch.atan2(backward[..., 1], backward[..., 0])
    return yaw_rad, torch.arccos(backward[..., 2].clamp(-1.0, 1.0))


def face_rotation_to_cam2world(rotation: Tensor) -> Tensor:
    """Turn a face pose into the camera that sees the frontal, fixed head under that pose.

    Args:
        rotation: `[B, 3, 3]` with `y = R x` on face-model points (+x right, +y up, +z to the
            viewer). Translation and scale of the face are ignored.

    Returns:
        `cam2world [B, 4, 4]` at radius 1 (spec/inversion_and_talker.md 2.7). The identity gives
        the frontal camera.
    """
    if rotation.ndim != 3 or rotation.shape[1:] != (3, 3):
        raise ValueError(f"rotation must be [B, 3, 3], got {list(rotation.shape)}")
    # Columns: camera right, up and back of the frontal camera, in world coordinates.
    frontal = rotation.new_tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    axes = frontal @ rotation.transpose(1, 2)
    upper = torch.cat([axes, axes[:, :, 2:]], dim=2)
    bottom = upper.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(len(upper), 1, 4)
    return rt_to_cam2world(torch.cat([upper, bottom], dim=1))


def cam2world_to_face_rotation(cam2world: Tensor) -> Tensor:
    """Invert `face_rotation_to_cam2world`: `[B, 4, 4]` to the rotation `[B, 3, 3]` of the face."""
    axes = cam2world_to_rt(cam2world)[:, :3, :3]
    frontal = axes.new_tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    return (frontal.transpose(0, 1) @ axes).transpose(1, 2)
