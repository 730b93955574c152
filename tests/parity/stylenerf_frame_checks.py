"""Talking-head frames of the NeRFFaceSpeech copy: deformed rays, frozen depths, blends."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from nfs.geometry.cameras import rt_to_cam2world
from nfs.geometry.rays import camera_rays, pixel_grid
from nfs.geometry.volume import scene_depths
from nfs.stylenerf import Generator, RenderOptions
from tests.parity.stylenerf_recording import Recording, Report


def _warp_by_index(
    displacement: Tensor, coarse: Tensor, fine: Tensor
) -> Callable[[Tensor, Tensor], Tensor]:
    """Move points by recorded nearest vertices; the coarse pass asks first, then the fine one."""
    order = iter((coarse, fine))

    def warp(points: Tensor, _: Tensor) -> Tensor:
        moved = points.clone()
        shift = displacement[:, next(order)[0]].reshape(*points.shape[:-1], 2)
        moved[..., 1:] += shift
        return moved

    return warp


def _blend(mask: Tensor, source: Tensor, size: int, mode: str):
    """The original's feature blend: up to `size`, mix, down to 32."""

    def resize(x: Tensor, to: int) -> Tensor:
        return F.interpolate(x, size=(to, to), mode=mode)

    def edit(features: Tensor, image_low: Tensor) -> tuple[Tensor, Tensor]:
        inside = resize(mask, size)
        mixed = inside * resize(features, size) + (1 - inside) * resize(source, size)
        return resize(mixed, 32), image_low

    return edit


def frame(report: Report, generator: Generator, recording: Recording) -> None:
    """One talking-head frame: deformed rays, frozen depths and background, blended features."""
    dense = "ref/img" in recording  # every stage was recorded, under its own name
    ref = "ref/" if dense else ""
    depths = (recording[f"{ref}di"], recording[f"{ref}di_fine"])
    front, pose = (rt_to_cam2world(recording[f"{k}_RT"]) for k in ("front", "pose"))
    code = recording["bg_latents/2"]
    still = generator.frozen_background_camera(1)
    displacement = recording["ref_vertices"] - recording["pred_vertices"]
    indices = recording["nearest_indices"], recording["nearest_indices_f"]

    def render(ws: str, camera: Tensor, *, deformed: bool, edit=None):
        options = RenderOptions(
            background_cam2world=still,
            depths=depths,
            point_warp=_warp_by_index(displacement, *indices) if deformed else None,
            edit_features=edit,
        )
        with torch.no_grad():
            return generator.synthesis(recording[ws], camera, background_code=code, options=options)

    reference = render("ws", front, deformed=False)
    name = "ref/img" if dense else "img_ref"
    report.compare("frame/reference", reference.image, recording[name], 1e-5)
    source = recording["inpaint_source/inpaint_feat" if dense else "inpaint_feat"]
    size = int(recording.values["interpol_size"])
    if dense:
        deformed = render("ws", pose, deformed=True)
        report.compare("frame/deformed", deformed.image, recording["deformed/img"], 1e-5)
        moved = render("ws_transferred", pose, deformed=False)
        report.compare("frame/source", moved.features, source, 1e-5)
    finals = recording.under("final/") if dense else {recording.values["method"]: None}
    for mode, theirs in finals.items():
        edit = _blend(recording["inpaint_mask"], source, size, mode)
        final = render("ws", pose, deformed=True, edit=edit)
        expected = recording["img_final"] if theirs is None else theirs
        report.compare(f"frame/final_{mode}", final.image, expected, 1e-5)
    _frame_points(report, generator, recording, front, depths)


def _frame_points(
    report: Report,
    generator: Generator,
    recording: Recording,
    camera: Tensor,
    depths: tuple[Tensor, Tensor],
) -> None:
    spec = generator.spec
    rays = camera_rays(pixel_grid(spec.resolution_vol), camera, fov_deg=spec.fov_deg)
    for suffix, along in zip(("", "_f"), depths, strict=True):
        points = rays.at(scene_depths(along, spec.depth_range)).reshape(1, -1, 3)
        recorded = f"ref/p_{'f' if suffix else 'i'}"
        if recorded in recording:
            report.compare(f"frame/points{suffix}", points, recording[recorded], 1e-6)
        distances = torch.cdist(recording["ref_vertices"], points[..., 1:])
        ours = distances.gather(1, distances.argmin(dim=1)[:, None])
        theirs = distances.gather(1, recording[f"nearest_indices{suffix}"][:, None])
        report.compare(f"frame/nearest_distance{suffix}", ours, theirs, 1e-6)


def deformation(report: Report, generator: Generator, recording: Recording) -> None:
    """Deformed renders of a small field, with given and with recomputed indices."""
    depths = (recording["ref/di"], recording["ref/di_fine"])
    pose = rt_to_cam2world(recording["pose_RT"])
    displacement = recording["ref_vertices"] - recording["pred_vertices"]
    for name, prefix in (("deformed", ""), ("deformed_idx_recomputed", "deformed_idx_recomputed/")):
        indices = (recording[f"{prefix}nearest_indices"], recording[f"{prefix}nearest_indices_f"])
        options = RenderOptions(
            background_cam2world=generator.frozen_background_camera(1),
            depths=depths,
            point_warp=_warp_by_index(displacement, *indices),
        )
        with torch.no_grad():
            image = generator.synthesis(
                recording["ws"], pose, background_code=recording["bg_latents/2"], options=options
            ).image
        report.compare(f"deformation/{name}", image, recording[f"{name}/img"], 1e-5)
