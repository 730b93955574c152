"""Tiny generators, one per option, and the operators of fields, against recordings.

Bounds: spec/stylenerf.md section 5 (`units`). The deterministic importance sampler is
ill-conditioned (Q23): a pixel counts where this program itself gives the same value in single and
double precision, up to half the bound; their share is a check of its own.
"""

import copy
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nfs.geometry import volume
from nfs.geometry.cameras import rt_to_cam2world
from nfs.geometry.rays import camera_rays, corner_pixel_grid, pixel_grid, rolled_pixels
from nfs.geometry.warps import DepthWarp, contracted_points
from nfs.pretrained import load_original
from nfs.stylenerf import Generator, Rendering
from nfs.stylenerf.encodings import PointEncoding, positional_encoding
from tests.parity.stylenerf_recording import Recording, Report

OPERATOR, VARIANT, COMPARABLE = 1e-5, 5e-3, 0.9
# Constants of the recorded operators (parity/stylenerf/README.md, `units`).
WARP_RANGE, WARP_FOV_DEG = (0.88, 3.2), 12.0
WARPS: dict[str, DepthWarp] = {"None": "linear", "LogWarp": "log", "InverseWarp": "inverse"}


def variants(report: Report, folder: Path) -> None:
    """Every generator in `folder/variants`: styles, image and volume-rendered image."""
    for file in sorted((folder / "variants").glob("*.json")):
        _variant(report, file.stem, file.with_suffix(""))


def field_operators(report: Report, folder: Path) -> None:
    """The recorded operators of fields and rays in `folder/ops`."""
    if not (folder / "ops.json").is_file():
        return
    recording = Recording(folder / "ops")
    for prefix, compare in (
        ("pdf_", _importance),
        ("comp_", _compositing),
        ("bg_", _background_points),
        ("pe_", _encodings),
        ("pixels_", _pixels),
        ("warp_", _warps),
    ):
        if any(name.startswith(prefix) for name in recording.tensors):
            compare(report, recording)


def _variant(report: Report, name: str, stem: Path) -> None:
    recording = Recording(stem)
    config = _tree(stem.with_suffix(".json"), "config/")
    config.setdefault("img_resolution", recording["img"].shape[-1])
    generator = load_original("stylenerf/generator", recording.under("state/"), config)
    assert isinstance(generator, Generator)
    with torch.no_grad():
        ws = generator.mapping(recording["z"])
        report.compare(f"{name}/ws", ws, recording["ws"], OPERATOR)
        ours = _render(generator, recording, torch.float32)
        precise = _render(copy.deepcopy(generator).double(), recording, torch.float64)
    for key, single, double in (
        ("img", ours.image, precise.image),
        ("img_nerf", ours.image_low, precise.image_low),
    ):
        theirs = recording[key]
        scale = theirs.abs().max()
        counts = ((single - double).abs() <= VARIANT / 2 * scale).all(dim=1, keepdim=True)
        report.compare(f"{name}/{key}", torch.where(counts, single, theirs), theirs, VARIANT)
        missing = 1 - float(counts.float().mean())
        report.add(f"{name}/{key}_not_comparable", missing, 1 - COMPARABLE)


def _render(generator: Generator, recording: Recording, dtype: torch.dtype) -> Rendering:
    ws = recording["ws"].to(dtype)
    code = torch.zeros(len(ws), generator.background_dim, dtype=dtype)
    cameras = rt_to_cam2world(recording["RT"].to(dtype))
    return generator.synthesis(ws, cameras, background_code=code)


def _tree(file: Path, prefix: str) -> dict[str, Any]:
    """Rebuild the nested dictionary under `prefix` of a recording's header."""
    header = json.loads(file.read_text(encoding="utf-8"))
    empty = {path: {} if kind == "dict" else [] for path, kind in header["empty"].items()}
    tree: dict[str, Any] = {}
    for path, value in {**header["values"], **dict.fromkeys(header["none"]), **empty}.items():
        if path.startswith(prefix):
            *parents, leaf = path[len(prefix) :].split("/")
            node = tree
            for part in parents:
                node = node.setdefault(part, {})
            node[leaf] = value
    return {key: _lists(value) for key, value in tree.items()}


def _lists(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    if node and all(key.isdigit() for key in node):
        return [_lists(node[str(i)]) for i in range(len(node))]
    return {key: _lists(value) for key, value in node.items()}


def _importance(report: Report, recording: Recording) -> None:
    bins, weights = recording["pdf_bins"], recording["pdf_weights"]
    count = recording["pdf_det"].shape[-1]
    even = torch.linspace(0, 1, count).expand(len(bins), count)
    for name, uniforms in (("pdf_det", even), ("pdf_random", recording["pdf_u"])):
        found = volume.sample_bins(bins, weights, uniforms)
        report.compare(f"ops/{name}", found, recording[name], OPERATOR)


def _compositing(report: Report, recording: Recording) -> None:
    sigma, depths = recording["comp_sigma"], recording["comp_z"]
    scale = recording["comp_ray"].norm(dim=-1, keepdim=True)
    for name, last in (("open", 0.0), ("closed", volume.OPAQUE)):
        found = volume.ray_weights(sigma, depths, scale=scale, last=last)
        weights, passed = recording[f"comp_weights_{name}"], recording[f"comp_T_{name}"]
        report.compare(f"ops/comp_weights_{name}", found.weights, weights, OPERATOR)
        report.compare(f"ops/comp_T_{name}", found.transmittance, passed, OPERATOR)


def _background_points(report: Report, recording: Recording) -> None:
    origins, directions, radii = (recording[f"bg_{k}"] for k in ("origin", "dir", "depth"))
    found = volume.inverted_sphere_points(
        origins[:, None], directions[:, None], radii[:, None, None]
    )
    report.compare("ops/bg_points", found[:, 0, 0], recording["bg_points"], OPERATOR)


def _encodings(report: Report, recording: Recording) -> None:
    points = recording["pe_in"]
    octaves = recording["pe_normal4"].shape[-1] // (2 * points.shape[-1])
    encoded = positional_encoding(points, octaves)
    report.compare("ops/pe_normal", encoded, recording["pe_normal4"], OPERATOR)
    appended = PointEncoding(3, num_frequencies=octaves, append_position=True)
    report.compare("ops/pe_pos", appended(points), recording["pe_pos4"], OPERATOR)
    gaussian = PointEncoding(3, kind="gaussian")
    report.compare("ops/pe_gauss_B", gaussian.frequencies, recording["pe_gauss_B"], OPERATOR)
    report.compare("ops/pe_gauss", gaussian(points), recording["pe_gauss"], OPERATOR)


def _pixels(report: Report, recording: Recording) -> None:
    centred = recording["pixels_centre_4"]
    batch, size = len(centred), math.isqrt(centred.shape[1])
    grid = pixel_grid(size)
    report.compare("ops/pixels_centre", grid.expand(batch, -1, 2), centred, OPERATOR)
    corners = corner_pixel_grid(size, size).expand(batch, -1, 2)
    report.compare("ops/pixels_corner", corners, recording["pixels_corner_4"], OPERATOR)
    rolled = recording["pixels_roll"]
    turned, upright = rolled[:, 0], grid[0]
    roll_rad = torch.atan2(turned[:, 1], turned[:, 0]) - torch.atan2(upright[1], upright[0])
    report.compare("ops/pixels_roll", rolled_pixels(grid, roll_rad), rolled, OPERATOR)


def _warps(report: Report, recording: Recording) -> None:
    cameras = rt_to_cam2world(recording["warp_RT"])
    rays = camera_rays(recording["pixels_centre_4"], cameras, fov_deg=WARP_FOV_DEG)
    for name, warp in WARPS.items():
        theirs = recording[f"warp_{name}_depth"]
        depths = torch.linspace(0, 1, theirs.shape[-1]).expand_as(theirs)
        along = volume.scene_depths(depths, WARP_RANGE, warp)
        report.compare(f"ops/warp_{name}_depth", along, theirs, OPERATOR)
        points: Tensor = contracted_points(rays.at(along), WARP_RANGE, warp).flatten(1, 2)
        report.compare(
            f"ops/warp_{name}_points", points, recording[f"warp_{name}_points"], OPERATOR
        )
