"""Accuracy of the landmark fit: heads with known parameters, and real clips.

Synthetic: random heads of the model's own population turn and speak for 30 frames; their projected
landmarks get a detector's noise; the fit shares one identity. Errors are those of the rotation and
of the front vertices of the neutral identity, after a rigid alignment (no scale) of the whole
front: vertices, not landmarks.

Real: `--clips CLIPS` (artifact of `jobs.preprocess`) prints NME and the correlation of the fitted
inner-lip gap with the detected one. Legend: T frames, V front vertices.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
from _harness import Report, arguments, say
from torch import Tensor

from nfs.artifacts.tables import iter_files
from nfs.morphable import fit_landmarks, load_model
from nfs.morphable.clip_fit import fit_clip_frames, landmarks_of
from nfs.morphable.coefficients import Coefficients
from nfs.morphable.metrics import lip_gap_px
from nfs.morphable.model import MorphableModel
from nfs.morphable.projection import pose_points, project_points

FRAMES, SIZE_PX, MM = 30, 256, 100.0
BAND_DM = 0.05
MAX_ROTATION_DEG, MAX_VERTEX_MM = 2.0, 2.0
MAX_NME_PERCENT, MIN_GAP_CORRELATION = 1.6, 0.95


def main() -> None:
    options = arguments(
        __doc__,
        ("--heads", {"type": int, "default": 20}),
        ("--noise-px", {"type": float, "nargs": "*", "default": [0.0, 0.5, 1.0]}),
        ("--clips", {"type": str, "help": "artifact of jobs.preprocess"}),
    )
    model = load_model()
    report = Report(
        "fitting-accuracy",
        {"model": model.model_id, "frames": FRAMES, "size_px": SIZE_PX, "heads": options.heads},
    )
    for noise in options.noise_px:
        synthetic(report, model, options.heads, noise)
    if options.clips:
        real(report, model, options.clips)
    report.write(options.out or Path("benchmarks/results/fitting-accuracy.json"))


def talking_head(model: MorphableModel, seed: int) -> Coefficients:
    """Return a head of the model's population that turns +-25 degrees and speaks."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.linspace(0, 2 * math.pi, FRAMES)[:, None]
    rates = 1 + 2 * torch.rand(1, 64, generator=generator)
    phases = 6 * torch.rand(1, 64, generator=generator)
    active = torch.rand(1, 64, generator=generator) < 0.3
    wave = active * (0.5 + 0.5 * torch.sin(time * rates + phases))
    strength = 0.5 * torch.rand(1, 64, generator=generator)
    strength[:, ~torch.isfinite(model.expression_prior)] = 0
    bounded = torch.isfinite(model.expression_upper)
    expression = torch.where(bounded, strength * wave, strength * (2 * wave - 1) * active)
    turn = torch.cat([0.12 * torch.sin(2 * time), 0.44 * torch.sin(time), 0.08 * time.cos()], 1)
    shift = torch.cat([0.1 * time.sin(), 0.1 * time.cos(), 0.3 * torch.sin(time + 1)], 1)
    identity = torch.randn(1, 80, generator=generator).expand(FRAMES, -1)
    rows = Coefficients.zeros(FRAMES)
    return replace(rows, identity=identity, expression=expression, rotation=turn, translation=shift)


def landmarks(model: MorphableModel, truth: Coefficients) -> Tensor:
    """Return projected landmarks `[T, 68, 2]`, jaw points on the outline as detectors see them.

    The outline is found among all skin vertices of about the jaw point's height on its side of the
    face, not among the fit's own candidates.
    """
    shape = model.vertices(truth.identity, truth.expression)
    points = model.landmarks_of(shape)
    turn, shift = truth.rotation_matrix, truth.translation
    target = project_points(pose_points(points, turn, shift), SIZE_PX)
    skin = shape[:, model.vertex_groups["skin"]]
    right = torch.stack([turn[:, 1, 1], turn[:, 0, 1]], dim=-1)[:, None]
    rows = torch.arange(len(shape))
    for jaw in (i for i in range(17) if i != 8):
        side = -1.0 if jaw < 8 else 1.0
        point = points[:, jaw, None]
        near = (skin[..., 1] - point[..., 1]).abs() < BAND_DM
        near &= (skin[..., 2] > point[..., 2]) & (side * skin[..., 0] > 0)
        level = torch.stack(
            [skin[..., 0], point[..., 1].expand_as(skin[..., 1]), skin[..., 2]], dim=-1
        )
        screen = project_points(pose_points(level, turn, shift), SIZE_PX)
        outward = torch.where(near, side * (screen * right).sum(-1), -torch.inf)
        beyond = outward.amax(1) > side * (target[:, jaw] * right[:, 0]).sum(-1)
        outline = screen[rows, outward.argmax(1)]
        target[beyond, jaw] = outline[beyond]
    return target


def errors(
    model: MorphableModel, truth: Coefficients, target: Tensor
) -> tuple[float, float, float]:
    """Return mean rotation error in degrees, median and mean front vertex error in mm."""
    fit = fit_landmarks(model, target, SIZE_PX).coefficients
    turn = fit.rotation_matrix.transpose(1, 2) @ truth.rotation_matrix
    trace = turn.diagonal(dim1=1, dim2=2).sum(1)
    angle = torch.rad2deg(((trace - 1) / 2).clamp(-1, 1).acos())
    front = model.vertex_groups["front"]
    zero = torch.zeros(1, 64)
    found, wanted = (model.vertices(c.identity[:1], zero)[0, front] for c in (fit, truth))
    distance = MM * (rigid(found, wanted) - wanted).norm(dim=-1)
    return float(angle.mean()), float(distance.median()), float(distance.mean())


def rigid(points: Tensor, target: Tensor) -> Tensor:
    """Return `[V, 3]` points turned and shifted onto the target, not scaled (Kabsch 1976)."""
    centre, goal = points.mean(0), target.mean(0)
    u, _, vt = torch.linalg.svd((points - centre).T @ (target - goal))
    signs = torch.tensor([1.0, 1.0, float(torch.linalg.det(u @ vt).sign())])
    return (points - centre) @ (u * signs @ vt) + goal


def synthetic(report: Report, model: MorphableModel, heads: int, noise: float) -> None:
    rows = []
    for seed in range(heads):
        truth = talking_head(model, seed)
        generator = torch.Generator().manual_seed(1000 + seed)
        target = landmarks(model, truth)
        target = target + noise * torch.randn(target.shape, generator=generator)
        rows.append(errors(model, truth, target))
    summarise(report, f"projected, noise {noise:g} px", rows)


def summarise(report: Report, name: str, rows: list[tuple[float, float, float]]) -> None:
    """Record the mean rotation error and the median over heads of the median vertex error."""
    angle, median, mean = torch.tensor(rows).T
    numbers = {
        "rotation_deg": float(angle.mean()),
        "rotation_worst_head_deg": float(angle.max()),
        "vertex_median_mm": float(median.median()),
        "vertex_worst_head_mm": float(median.max()),
        "vertex_mean_mm": float(mean.mean()),
    }
    report.checks[name] = numbers
    report.check(f"{name}: rotation", numbers["rotation_deg"], MAX_ROTATION_DEG)
    report.check(f"{name}: vertices", numbers["vertex_median_mm"], MAX_VERTEX_MM)


def real(report: Report, model: MorphableModel, clips: str) -> None:
    for path, table in iter_files(clips, "frames"):
        if len(table) < 2:
            continue
        name = table["clip_id"][0].as_py()
        points, usable = landmarks_of(table)
        size = table["image_size_px"][0].as_py()
        result = fit_clip_frames(model, points, size, usable=usable)
        gaps = torch.stack([lip_gap_px(result.fit.landmarks_px), lip_gap_px(points)])[:, usable]
        correlation = float(torch.corrcoef(gaps)[0, 1])
        say(f"{path}: {name}, {int(usable.sum())} of {len(usable)} frames")
        report.check(f"{name}: NME", result.median_nme_percent, MAX_NME_PERCENT)
        report.check(f"{name}: 1 - lip gap correlation", 1 - correlation, 1 - MIN_GAP_CORRELATION)


if __name__ == "__main__":
    main()
