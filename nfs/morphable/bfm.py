"""Reader of the Basel Face Model `.mat` files that Deep3D and 3DMM-Fitting code use (spec 2.1).

The licensed files are never shipped; the user supplies them. Legend: V vertices, F triangles.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from nfs.errors import InputError
from nfs.morphable.contour import jaw_candidates
from nfs.morphable.model import FloatArray, IntArray, ModelData
from nfs.morphable.regions import landmark_contours, lips_between

FILE_NAMES = ("BFM_model_front.mat", "BFM09_model_info.mat")
KEYS = (
    "meanshape",
    "meantex",
    "idBase",
    "exBase",
    "texBase",
    "tri",
    "keypoints",
    "frontmask2_idx",
    "tri_mask2",
    "skinmask",
)
NUM_IDENTITY, NUM_EXPRESSION, NUM_TEXTURE = 80, 64, 80


def read_bfm(path: Path) -> ModelData:
    """Read a converted BFM file.

    Indices in the file are 1-based; colours are 0 to 255; the flattening is vertex-major.

    Args:
        path: The `.mat` file, or a folder that holds one of the two known names.

    Raises:
        InputError: If there is no such file, or it is no `.mat`, or an array is missing.
    """
    file = _resolve(path)
    try:
        raw = loadmat(str(file))
    except (MatReadError, ValueError, OSError, NotImplementedError) as error:
        raise InputError(f"{file}: not readable as a MATLAB file: {error}") from error
    missing = [key for key in KEYS if key not in raw]
    if missing:
        raise InputError(
            f"{file}: not a converted BFM model; missing {', '.join(missing)}. Expected the "
            "output of the Deep3D or 3DMM-Fitting conversion script"
        )
    arrays = {key: np.asarray(raw[key]) for key in KEYS}
    count = arrays["meanshape"].size // 3
    _check_shapes(file, arrays, count)
    mean = arrays["meanshape"].reshape(count, 3).astype(np.float64)
    faces = _indices(arrays["tri"])
    keypoints = _indices(arrays["keypoints"]).ravel()
    triangles = np.repeat(keypoints[:, None], 3, axis=1)
    weights = np.tile([1.0, 0.0, 0.0], (len(keypoints), 1))
    contour = jaw_candidates(mean, faces, triangles, weights)
    return ModelData(
        model_id="bfm",
        checksum=_checksum(arrays),
        mean_shape=mean,
        identity_basis=arrays["idBase"].reshape(count, 3, NUM_IDENTITY),
        expression_basis=arrays["exBase"].reshape(count, 3, NUM_EXPRESSION),
        mean_texture=arrays["meantex"].reshape(count, 3).astype(np.float64) / 255,
        texture_basis=arrays["texBase"].reshape(count, 3, NUM_TEXTURE).astype(np.float64) / 255,
        faces=faces,
        landmark_triangles=triangles,
        landmark_weights=weights,
        groups=_groups(arrays, mean, faces, keypoints),
        front_faces=_front_faces(arrays),
        expression_names=tuple(f"exp{i:02d}" for i in range(NUM_EXPRESSION)),
        contour_triangles=contour[0],
        contour_weights=contour[1],
    )


def _resolve(path: Path) -> Path:
    if path.is_dir():
        found = [path / name for name in FILE_NAMES if (path / name).is_file()]
        if not found:
            raise InputError(f"{path}: holds neither {' nor '.join(FILE_NAMES)}")
        return found[0]
    return path


def _indices(array: IntArray | FloatArray) -> IntArray:
    """Turn 1-based float indices into 0-based integers."""
    return np.asarray(array).astype(np.int64) - 1


def _check_shapes(file: Path, arrays: dict[str, FloatArray], count: int) -> None:
    expected = {
        "meantex": 3 * count,
        "idBase": 3 * count * NUM_IDENTITY,
        "exBase": 3 * count * NUM_EXPRESSION,
        "texBase": 3 * count * NUM_TEXTURE,
        "keypoints": 68,
        "skinmask": count,
    }
    for key, size in expected.items():
        if arrays[key].size != size:
            raise InputError(f"{file}: {key} has {arrays[key].size} values, expected {size}")
    if arrays["tri"].min() < 1 or arrays["tri"].max() > count:
        raise InputError(f"{file}: tri names vertices outside 1..{count}")


def _groups(
    arrays: dict[str, FloatArray], mean: FloatArray, faces: IntArray, keypoints: IntArray
) -> dict[str, IntArray]:
    positions = mean.astype(np.float64)
    groups = landmark_contours(positions, faces.astype(np.int64), keypoints.astype(np.int64))
    front = _indices(arrays["frontmask2_idx"]).ravel()
    everywhere = np.ones(len(mean), bool)
    outer, inner = groups["lips_outer"], groups["lips_inner"]
    named: dict[str, IntArray] = dict(groups)
    named["lips"] = lips_between(positions, outer, inner, everywhere)
    named["front"] = front
    named["skin"] = np.flatnonzero(arrays["skinmask"].ravel() > 0)
    return named


def _front_faces(arrays: dict[str, FloatArray]) -> IntArray:
    """Return the front triangles as vertex ids.

    The real file stores positions inside `frontmask2_idx` (spec 3, quirk 1); values beyond its
    length can only be vertex ids and are taken as such.
    """
    front = _indices(arrays["frontmask2_idx"]).ravel()
    triangles = _indices(arrays["tri_mask2"])
    return front[triangles] if triangles.max() < len(front) else triangles


def _checksum(arrays: dict[str, FloatArray]) -> str:
    digest = hashlib.sha256()
    for key in KEYS:
        digest.update(key.encode())
        digest.update(np.ascontiguousarray(arrays[key], np.float32).tobytes())
    return digest.hexdigest()
