"""Parity of talker geometry with recordings in the format of shared/parity/inversion.

The functions return what `tests.parity.replay` prints; `test_talker.py` runs them.
"""

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from nfs.geometry.cameras import (
    cam2world_to_rt,
    face_rotation_to_cam2world,
    rt_to_cam2world,
)
from nfs.geometry.rays import camera_rays
from nfs.geometry.rotations import euler_to_matrix
from nfs.talker.deformation import OriginalWarp, original_anchors, scale_to_world
from tests.parity.replay import Check, check

STRIDE = 4
FOV_DEG = 12.0
_EXACT, _COORDINATES, _POINTS = 0.0, 1e-7, 1e-6


def checks(folder: Path) -> dict[str, Check]:
    """Run every check whose files are in `folder`."""
    results: dict[str, Check] = {}
    if (folder / "talker_geometry.safetensors").is_file():
        data = load_file(folder / "talker_geometry.safetensors")
        results |= camera_checks(data) | warp_checks(data)
    if (folder / "nfs_utils.safetensors").is_file():
        data = load_file(folder / "nfs_utils.safetensors")
        if "coords" in data:
            error = _max(_scaled(data["coords"], data["scaled"]), data["scaled"])
            results["talker/scaled_coordinates"] = check(error, _COORDINATES)
    return results


def camera_checks(data: dict[str, Tensor]) -> dict[str, Check]:
    """Cameras of face rotations and the sample points they see (spec 2.7)."""
    rotation = euler_to_matrix(data["angles_rad"])
    cameras = face_rotation_to_cam2world(rotation)
    results = {
        "talker/rotation": check(_max(rotation.transpose(1, 2), data["rotation"]), _POINTS),
        "talker/camera": check(_max(cam2world_to_rt(cameras), data["camera_RT"]), _POINTS),
    }
    for name, rt in (("front", data["front_RT"]), ("posed", data["camera_RT"])):
        rays = camera_rays(data["pixels_ndc"][0], rt_to_cam2world(rt), fov_deg=FOV_DEG)
        depths = data["depths"].expand(len(rt), rays.directions.shape[1], -1)
        points = rays.at(depths).flatten(1, 2)
        error = _max(points, data[f"points_{name}"])
        results[f"talker/points_{name}"] = check(error, _POINTS)
    return results


def warp_checks(data: dict[str, Tensor]) -> dict[str, Check]:
    """Anchors, nearest anchors and moved points of the original deformation (spec 2.9)."""
    torso = data["torso_px"][::STRIDE]
    reference = original_anchors(data["projected_px"][:, ::STRIDE], torso)
    moved = original_anchors(data["moved_px"][:, ::STRIDE], torso)
    front, posed = (rt_to_cam2world(data[name]) for name in ("front_RT", "camera_RT"))
    samples = len(data["depths"])
    frontal = data["points_front"].unflatten(1, (-1, samples))
    warp = OriginalWarp(reference[0], moved, front[0])
    index = warp.nearest(frontal, front).flatten(1)
    turned = warp(data["points_posed"][1:2].unflatten(1, (-1, samples)), posed[1:2])
    expected = data["deformed_points_pose1"]
    return {
        "talker/reference_anchors": check(_max(reference, data["ref_vertices"]), _COORDINATES),
        "talker/moved_anchors": check(_max(moved, data["pred_vertices"]), _COORDINATES),
        "talker/nearest": check(
            _tied(reference[0], data["points_front"], index, data["nearest_indices"]), _EXACT
        ),
        "talker/deformed_points": check(_max(turned.flatten(1, 2), expected), _POINTS),
    }


def _tied(anchors: Tensor, points: Tensor, found: Tensor, recorded: Tensor) -> float:
    """Return the share of points whose anchor differs although the distances do not tie (1e-5)."""
    lateral = points[..., 1:]
    ours = (anchors[found] - lateral).norm(dim=-1)
    theirs = (anchors[recorded] - lateral).norm(dim=-1)
    return float(((found != recorded) & ((ours - theirs).abs() > 1e-5)).double().mean())


def _scaled(coordinates: Tensor, like: Tensor) -> Tensor:
    """The recording scales 224 px coordinates."""
    return scale_to_world(coordinates.to(like), 224)


def _max(found: Tensor, recorded: Tensor) -> float:
    if found.shape != recorded.shape:
        return float("nan")
    return float((found.double() - recorded.double()).abs().max()) if found.numel() else 0.0
