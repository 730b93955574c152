"""Cameras of the frames of one person, from the fits of the face model.

The head stands still in the generator's world where the reference frame puts it; every other frame
is a camera that moved. Its rotation alone is not enough: an aligned crop keeps the eyes and the
mouth in place, so the head's centre of rotation wanders, by several pixels at 0.2 rad.

Legend: T frames. L: lateral scale from decimetres to scene units; that of depth is 1/10.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nfs.geometry.cameras import face_rotation_to_cam2world
from nfs.morphable.coefficients import Coefficients
from nfs.morphable.projection import CAMERA_DISTANCE, FOCAL_224, REFERENCE_SIZE_PX


def fitted_cameras(coefficients: Coefficients, *, fov_deg: float, reference: int = 0) -> Tensor:
    """Return cameras `[T, 4, 4]` under which one still head shows every frame.

    The reference frame's camera comes from its rotation alone (spec/inversion_and_talker.md 2.7):
    radius 1, looking at the origin. The fit's distance 10 - t_z becomes 1, because a picture does
    not tell a far head from a small one and the generator turns heads about the origin. In units of
    that distance the camera coordinates (y up) of a model point are `c = S R x + tau - e` with
    S = diag(L, L, 1/10) / (1 - t_z/10 of the reference); a still head needs the camera of frame k
    to be shifted by `tau_k - R_k R_r^T tau_r` in its own axes. L differs from 1/10 by 5 %, which
    leaves an error below a pixel at 128 px and 0.2 rad.

    Args:
        coefficients: T rows.
        fov_deg: Field of view of the generator's camera.
        reference: Row of the reference frame.
    """
    rotation, translation = coefficients.rotation_matrix, coefficients.translation
    cameras = face_rotation_to_cam2world(rotation)
    distance = 1 - translation[:, 2] / CAMERA_DISTANCE
    tan_model = REFERENCE_SIZE_PX / 2 / FOCAL_224
    lateral = math.tan(math.radians(fov_deg / 2)) / (tan_model * CAMERA_DISTANCE)
    tau = torch.stack(
        [
            lateral * translation[:, 0] / distance[reference],
            lateral * translation[:, 1] / distance[reference],
            1 - distance / distance[reference],
        ],
        dim=1,
    )
    turn = rotation @ rotation[reference].T
    shift = tau - turn @ tau[reference]
    flips = shift.new_tensor([1.0, -1.0, -1.0])  # y up, z back to OpenCV's y down, z forward
    centre = cameras[:, :3, 3] - (cameras[:, :3, :3] @ (shift * flips)[..., None])[..., 0]
    moved = cameras.clone()
    moved[:, :3, 3] = centre
    return moved
