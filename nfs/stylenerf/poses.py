"""Head poses of a `fits` artifact as cameras: their distribution, and one per frame."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from nfs.artifacts.tables import iter_files
from nfs.errors import ArtifactError
from nfs.geometry.cameras import cam2world_to_yaw_pitch, face_rotation_to_cam2world
from nfs.geometry.rotations import euler_to_matrix
from nfs.stylenerf.clip_frames import FrameIndex
from nfs.stylenerf.spec import CameraPrior

_LIMIT_SPREADS = 3.0
# Clip and frame in one number; a clip has fewer frames than this.
_FRAMES_PER_CLIP = 1 << 32


@dataclass(frozen=True)
class FittedAngles:
    """The cameras that see the fitted frames: parallel arrays of N frames."""

    clip_ids: pa.Array
    """Names of clips `[N]`."""
    frames: NDArray[np.int64]
    """Frame numbers within the clips `[N]`."""
    yaw_pitch: NDArray[np.float32]
    """`[N, 2]`, radians."""


def read_angles(uri: str) -> FittedAngles:
    """Return the camera of each frame whose fit has status ok.

    Raises:
        ArtifactError: If no frame has a fit.
    """
    columns = ["clip_id", "frame_index", "rotation_rad", "status"]
    tables = [
        table.filter(pc.equal(table["status"], "ok"))
        for _, table in iter_files(uri, "fits", columns)
    ]
    if not sum(len(table) for table in tables):
        raise ArtifactError(f"{uri}: no fit with status ok")
    fits = pa.concat_tables(tables).combine_chunks()
    rotations = np.array(pc.list_flatten(fits["rotation_rad"]), np.float32).reshape(-1, 3)
    poses = face_rotation_to_cam2world(euler_to_matrix(torch.tensor(rotations)))
    return FittedAngles(
        fits["clip_id"].combine_chunks(),
        fits["frame_index"].to_numpy().astype(np.int64),
        torch.stack(cam2world_to_yaw_pitch(poses), dim=1).numpy(),
    )


def fitted_prior(
    angles: FittedAngles, *, min_spread_rad: float, max_spread_rad: float
) -> CameraPrior:
    """Return a gaussian prior with the mean and the (limited) spread of `angles`."""
    limits = []
    for column in angles.yaw_pitch.T.astype(np.float64):
        middle = float(column.mean())
        spread = min(max(float(column.std()), min_spread_rad), max_spread_rad)
        limits.append((middle - spread, middle + spread))
    return CameraPrior(yaw_rad=limits[0], pitch_rad=limits[1])


def frame_angles(
    angles: FittedAngles, index: FrameIndex, prior: CameraPrior
) -> NDArray[np.float32]:
    """Return yaw and pitch `[M, 2]` of frames, within three spreads of the prior's middle.

    Frames without a fit get NaN.
    """
    clip = pc.index_in(angles.clip_ids, pa.array(index.clip_ids, pa.string()))
    known = clip.is_valid().to_numpy(zero_copy_only=False)
    keys = clip.drop_null().to_numpy().astype(np.int64) * _FRAMES_PER_CLIP + angles.frames[known]
    order = np.argsort(keys, kind="stable")
    wanted = index.clip.astype(np.int64) * _FRAMES_PER_CLIP + index.frame
    place = np.searchsorted(keys[order], wanted)
    found = np.full((len(wanted), 2), np.nan, np.float32)
    here = place < len(keys)
    here[here] = keys[order[place[here]]] == wanted[here]
    found[here] = angles.yaw_pitch[known][order[place[here]]]
    limits = np.asarray([prior.yaw_rad, prior.pitch_rad])
    middle, spread = limits.mean(axis=1), np.diff(limits, axis=1)[:, 0] / 2
    low, high = middle - _LIMIT_SPREADS * spread, middle + _LIMIT_SPREADS * spread
    return found.clip(low, high).astype(np.float32)
