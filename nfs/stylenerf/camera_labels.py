"""Fitted head poses as the camera labels of EG3D's data sets."""

import torch

from nfs.artifacts.tables import iter_files
from nfs.errors import ArtifactError
from nfs.geometry.cameras import face_rotation_to_cam2world
from nfs.geometry.rotations import euler_to_matrix

# EG3D's FFHQ cameras: distance, and focal length over image side.
RADIUS = 2.7
FOCAL = 4.2647


def camera_labels(fits: str) -> dict[tuple[str, int], list[float]]:
    """Return 25 numbers for each fitted frame: `cam2world [4, 4]`, then intrinsics `[3, 3]`.

    Camera axes are OpenCV's. The world is EG3D's: x right and y up in the frontal view, z towards
    the frontal camera, which is `RADIUS` away; intrinsics are divided by the image side. Only the
    rotation of the head enters; position and size are what the alignment made them.

    Args:
        fits: Artifact of `jobs.fit_3dmm`.

    Raises:
        ArtifactError: If no frame has a fit.
    """
    # Generator world (z up, front on x) to EG3D's.
    axes = torch.zeros(4, 4)
    axes[0, 1] = axes[1, 2] = axes[2, 0] = axes[3, 3] = 1
    intrinsics = [FOCAL, 0.0, 0.5, 0.0, FOCAL, 0.5, 0.0, 0.0, 1.0]
    found: dict[tuple[str, int], list[float]] = {}
    columns = ["clip_id", "frame_index", "rotation_rad", "status"]
    for _, table in iter_files(fits, "fits", columns):
        rows = [row for row in table.select(columns).to_pylist() if row["status"] == "ok"]
        if not rows:
            continue
        angles = torch.tensor([row["rotation_rad"] for row in rows])
        cameras = axes @ face_rotation_to_cam2world(euler_to_matrix(angles))
        cameras[:, :3, 3] *= RADIUS
        for row, camera in zip(rows, cameras, strict=True):
            found[row["clip_id"], row["frame_index"]] = [*camera.flatten().tolist(), *intrinsics]
    if not found:
        raise ArtifactError(f"{fits}: no fit with status ok")
    return found
