"""Between the face model's image, the generator's world and the generator's image plane.

Legend: B batch, V vertices, N rays, S samples.
Plane coordinates: fractions of the image side, x right, y down, (0, 0) the upper left corner of the
image and (1, 1) the lower right one: pixel / image size. They mean the same in the face model's
image (224 px: focal 1015, distance 10 dm) and in the generator's (field of view 12 degrees, radius
1), so an aligned crop and its inversion share them although the two cameras differ slightly.
World: z up, frontal camera on +x looking at the origin. Cameras are OpenCV (+x right, +y down, +z
forward); depth is distance along +z in camera radii.
"""

import math

import torch
from torch import Tensor

from nfs.morphable.projection import CAMERA_DISTANCE, FOCAL_224, REFERENCE_SIZE_PX

TAN_HALF_FOV = math.tan(math.radians(6.0))
"""Half frame of the generator at depth 1 (field of view 12 degrees)."""
MODEL_TAN_HALF_FOV = REFERENCE_SIZE_PX / 2 / FOCAL_224
"""Half frame of the face model's camera at depth 1 (spec/morphable.md 2.6)."""


def world_to_plane(
    points: Tensor, cam2world: Tensor, tan_half_fov: float = TAN_HALF_FOV
) -> tuple[Tensor, Tensor]:
    """Project world points into an image plane.

    Args:
        points: `[B, ..., 3]` world points.
        cam2world: `[B, 4, 4]`.
        tan_half_fov: Half frame at depth 1.

    Returns:
        Plane coordinates `[B, ..., 2]` and depth `[B, ...]` along the camera axis.
    """
    batch = points.shape[0]
    relative = points.reshape(batch, -1, 3) - cam2world[:, None, :3, 3]
    camera = (relative @ cam2world[:, :3, :3]).reshape(points.shape)
    depth = camera[..., 2]
    plane = 0.5 + camera[..., :2] / (2.0 * tan_half_fov * depth[..., None])
    return plane, depth


def plane_to_world_offset(
    offset: Tensor, depth: Tensor, cam2world: Tensor, tan_half_fov: float = TAN_HALF_FOV
) -> Tensor:
    """Return the world offset of a move within the image plane at a fixed depth.

    Args:
        offset: `[B, ..., 2]` plane coordinates.
        depth: `[B, ...]` camera depth of the moved points.
        cam2world: `[B, 4, 4]`.
        tan_half_fov: Half frame at depth 1.

    Returns:
        `[B, ..., 3]`; exactly zero where the offset is zero.
    """
    batch = offset.shape[0]
    lateral = offset * (2.0 * tan_half_fov * depth[..., None])
    axes = cam2world[:, :3, :2].transpose(1, 2)
    return (lateral.reshape(batch, -1, 2) @ axes).reshape(*offset.shape[:-1], 3)


def face_to_world(posed: Tensor, cam2world: Tensor, tan_half_fov: float = TAN_HALF_FOV) -> Tensor:
    """Place posed face-model points in the generator's world.

    The camera of the fit becomes `cam2world`: distance 10 dm turns into radius 1, and the lateral
    axes are scaled so that plane coordinates under `cam2world` equal pixel / size of the fit.
    Any other camera then sees the same points from its own side (world-locked).

    Args:
        posed: `[B, V, 3]`, `R x + t` in decimetres, y up, z towards the camera.
        cam2world: `[B, 4, 4]` camera that belongs to the pose of the fit.
        tan_half_fov: Half frame of the generator at depth 1.
    """
    lateral = tan_half_fov / (MODEL_TAN_HALF_FOV * CAMERA_DISTANCE)
    camera = torch.stack(
        (
            posed[..., 0] * lateral,
            -posed[..., 1] * lateral,
            1.0 - posed[..., 2] / CAMERA_DISTANCE,
        ),
        dim=-1,
    )
    return camera @ cam2world[:, :3, :3].transpose(1, 2) + cam2world[:, None, :3, 3]


def circle_cameras(
    cam2world: Tensor, phase_rad: Tensor, *, yaw_rad: float, pitch_rad: float
) -> Tensor:
    """Move one camera on an ellipse around where it stands; it keeps looking at the origin.

    Args:
        cam2world: `[4, 4]` middle of the ellipse; its roll stays.
        phase_rad: `[T]` angles on the ellipse.
        yaw_rad: Half axis about the world's vertical axis.
        pitch_rad: Half axis about the camera's own horizontal axis.

    Returns:
        `[T, 4, 4]`.
    """
    pitch = pitch_rad * torch.cos(phase_rad)
    tilt = torch.zeros(len(pitch), 3, 3, dtype=cam2world.dtype)
    tilt[:, 0, 0] = 1.0
    tilt[:, 1, 1], tilt[:, 1, 2] = torch.cos(pitch), -torch.sin(pitch)
    tilt[:, 2, 1], tilt[:, 2, 2] = torch.sin(pitch), torch.cos(pitch)
    axes = cam2world[:3, :3]
    moved = cam2world.repeat(len(pitch), 1, 1)
    moved[:, :3] = axes @ tilt @ axes.T @ cam2world[:3]
    turns = [
        turn_cameras(camera, angle[None])
        for camera, angle in zip(moved, yaw_rad * torch.sin(phase_rad), strict=True)
    ]
    return torch.cat(turns)


def turn_cameras(cam2world: Tensor, yaw_rad: Tensor) -> Tensor:
    """Orbit one camera about the world's vertical axis.

    Args:
        cam2world: `[4, 4]` start.
        yaw_rad: `[T]` angles, positive moves the camera to its right.

    Returns:
        `[T, 4, 4]`.
    """
    cosine, sine = torch.cos(yaw_rad), torch.sin(yaw_rad)
    turn = torch.zeros(len(yaw_rad), 4, 4, dtype=cam2world.dtype)
    turn[:, 0, 0], turn[:, 0, 1] = cosine, -sine
    turn[:, 1, 0], turn[:, 1, 1] = sine, cosine
    turn[:, 2, 2] = turn[:, 3, 3] = 1.0
    return turn @ cam2world
