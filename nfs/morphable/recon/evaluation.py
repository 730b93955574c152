"""How good a regressor is on held-out frames: numbers and a picture. Legend: N frames, S side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nfs.geometry.rotations import so3_log
from nfs.morphable.coefficients import Coefficients
from nfs.morphable.lighting import irradiance
from nfs.morphable.metrics import MOUTH, lip_gap_px, nme_percent
from nfs.morphable.normals import vertex_normals
from nfs.morphable.overlay import DETECTED_COLOUR, FITTED_COLOUR, draw_points, mesh_overlay
from nfs.morphable.recon.losses import Batch, ReconObjective
from nfs.morphable.shading import posed_vertices, render
from nfs.perceptual.protocol import identity_similarity

Picture = NDArray[np.uint8]
SHEET_CELL_PX = 224


class Regressor(Protocol):
    """A network with everything that is needed to use it."""

    def __call__(self, images: Tensor) -> Coefficients:
        """Return coefficients of aligned pictures `[B, 3, S, S]` in [0, 1]."""
        ...


@torch.no_grad()
def measure(
    regressor: Regressor, objective: ReconObjective, batches: Sequence[Batch]
) -> dict[str, float]:
    """Return the mean of each metric over all frames.

    Args:
        regressor: What is measured.
        objective: Renders and projects.
        batches: Held-out frames as `ReconFrames` makes them, on the objective's device.

    Returns:
        `nme_percent` (and `_median`, `_mouth`), `photometric_l1` (mean absolute colour error in
        [0, 1] where colours are compared), `identity_similarity_<network>` between rendering and
        picture, `lip_gap_correlation`; with fits `rotation_error_deg` and `shape_error_mm`.
    """
    rows: dict[str, list[Tensor]] = {}
    for batch in batches:
        for name, value in _per_frame(regressor, objective, batch).items():
            rows.setdefault(name, []).append(value.cpu())
    columns = {name: torch.cat(parts) for name, parts in rows.items()}
    gaps = torch.stack([columns.pop("gap_found"), columns.pop("gap_true")]).double()
    metrics = {name: float(torch.nanmean(column)) for name, column in columns.items()}
    metrics["nme_median_percent"] = float(columns["nme_percent"].median())
    if len(gaps[0]) > 2 and bool((gaps.std(1) > 1e-6).all()):
        metrics["lip_gap_correlation"] = float(torch.corrcoef(gaps)[0, 1])
    return metrics


def constant_nme_percent(landmarks_px: NDArray[np.floating], batches: Sequence[Batch]) -> float:
    """Return the NME of predicting the same landmarks `[68, 2]` for every aligned picture."""
    target = torch.cat([batch["landmarks"].cpu() for batch in batches])
    guess = torch.as_tensor(landmarks_px, dtype=target.dtype).expand_as(target)
    return float(nme_percent(guess, target).mean())


@torch.no_grad()
def sheet(regressor: Regressor, objective: ReconObjective, batch: Batch) -> Picture:
    """Return one picture with a column per frame.

    Rows: picture, landmarks (found by the detector green, predicted red), rendering over the
    picture, plain mesh over the picture, albedo, light on white.
    """
    model, factor = objective.model, max(1, round(SHEET_CELL_PX / objective.size))
    size = factor * objective.size
    coefficients = regressor(batch["image"].float() / 255)
    images = batch["image"].permute(0, 2, 3, 1).cpu().numpy().repeat(factor, 1).repeat(factor, 2)
    marked = draw_points(images, factor * batch["landmarks"], DETECTED_COLOUR)
    marked = draw_points(marked, factor * objective.landmarks(coefficients), FITTED_COLOUR)
    normals = vertex_normals(posed_vertices(model, coefficients), model.faces)
    light = irradiance(normals, coefficients.lighting) * 0.7
    rows = [images, marked]
    shaded = render(model, coefficients, size)
    rows.append(_over(images, shaded.image, shaded.mask))
    rows.append(mesh_overlay(model, coefficients, images))
    for colours in (model.albedo(coefficients.texture), light):
        drawn = render(model, coefficients, size, colours=colours)
        rows.append(_over(np.full_like(images, 255), drawn.image, drawn.mask))
    return np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)


def _per_frame(
    regressor: Regressor, objective: ReconObjective, batch: Batch
) -> Mapping[str, Tensor]:
    images = batch["image"].float() / 255
    coefficients = regressor(images)
    landmarks, target = objective.landmarks(coefficients), batch["landmarks"]
    rendered = objective.rendered(coefficients, batch)
    difference = (rendered.image - images.permute(0, 2, 3, 1)).abs().mean(-1)
    covered = rendered.mask.sum((1, 2))
    nothing = torch.full_like(covered, torch.nan)
    colour = (difference * rendered.mask).sum((1, 2)) / covered.clamp_min(1e-6)
    rows = {
        "nme_percent": nme_percent(landmarks, target),
        "nme_mouth_percent": nme_percent(landmarks, target, points=MOUTH),
        "photometric_l1": torch.where(covered > 0, colour, nothing),
        "gap_found": lip_gap_px(landmarks),
        "gap_true": lip_gap_px(target),
    }
    if objective.identity is not None:
        found = objective.identity(rendered.image.permute(0, 3, 1, 2), landmarks)
        wanted = objective.identity(images, target)
        name = f"identity_similarity_{objective.identity.name}"
        rows[name] = identity_similarity(found, wanted)
    if "fit" in batch:
        fit = Coefficients.unpack(batch["fit"])
        turn = so3_log(coefficients.rotation_matrix.transpose(1, 2) @ fit.rotation_matrix)
        known = batch["fit_pose"] > 0
        angle = torch.rad2deg(turn.norm(dim=-1))
        rows["rotation_error_deg"] = torch.where(known, angle, torch.nan)
        shape = objective.shape_error_mm2(coefficients, fit).sqrt()
        rows["shape_error_mm"] = torch.where(known, shape, torch.nan)
    return rows


def _over(images: Picture, drawn: Tensor, mask: Tensor) -> Picture:
    colours = (drawn.clamp(0, 1) * 255).round().byte().cpu().numpy()
    return np.where(mask[..., None].cpu().numpy(), colours, images)


def select_frames(batches: Sequence[Batch], count: int) -> Batch:
    """Return one batch of evenly spaced frames."""
    joined = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    total = len(joined["image"])
    places = torch.linspace(0, total - 1, min(count, total)).round().long()
    return {name: value[places.to(value.device)] for name, value in joined.items()}
