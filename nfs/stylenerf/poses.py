"""Head poses of a `fits` artifact as cameras: their distribution, and one per frame."""

import numpy as np
import torch
from numpy.typing import NDArray

from nfs.artifacts.tables import iter_files
from nfs.errors import ArtifactError
from nfs.geometry.cameras import cam2world_to_yaw_pitch, face_rotation_to_cam2world
from nfs.geometry.rotations import euler_to_matrix
from nfs.stylenerf.spec import CameraPrior

Angles = dict[tuple[str, int], tuple[float, float]]
_LIMIT_SPREADS = 3.0


def read_angles(uri: str) -> Angles:
    """Return (yaw_rad, pitch_rad) of the camera that sees each fitted frame, by clip and frame.

    Raises:
        ArtifactError: If no frame has a fit.
    """
    columns = ["clip_id", "frame_index", "rotation_rad", "status"]
    keys: list[tuple[str, int]] = []
    rotations: list[list[float]] = []
    for _, table in iter_files(uri, "fits", columns):
        for row in table.to_pylist():
            if row["status"] == "ok":
                keys.append((row["clip_id"], row["frame_index"]))
                rotations.append(row["rotation_rad"])
    if not keys:
        raise ArtifactError(f"{uri}: no fit with status ok")
    poses = face_rotation_to_cam2world(euler_to_matrix(torch.tensor(rotations)))
    yaw_rad, pitch_rad = (values.tolist() for values in cam2world_to_yaw_pitch(poses))
    return dict(zip(keys, zip(yaw_rad, pitch_rad, strict=True), strict=True))


def fitted_prior(angles: Angles, *, min_spread_rad: float, max_spread_rad: float) -> CameraPrior:
    """Return a gaussian prior with the mean and the (limited) spread of `angles`."""
    limits = []
    for column in np.asarray(list(angles.values())).T:
        middle = float(column.mean())
        spread = min(max(float(column.std()), min_spread_rad), max_spread_rad)
        limits.append((middle - spread, middle + spread))
    return CameraPrior(yaw_rad=limits[0], pitch_rad=limits[1])


def frame_angles(
    angles: Angles, keys: list[tuple[str, int]], prior: CameraPrior
) -> NDArray[np.float32]:
    """Return yaw and pitch `[M, 2]` of frames, within three spreads of the prior's middle.

    Frames without a fit get the middle.
    """
    limits = np.asarray([prior.yaw_rad, prior.pitch_rad])
    middle, spread = limits.mean(axis=1), np.diff(limits, axis=1)[:, 0] / 2
    found = np.asarray([angles.get(key, middle) for key in keys])
    low, high = middle - _LIMIT_SPREADS * spread, middle + _LIMIT_SPREADS * spread
    return found.clip(low, high).astype(np.float32)
