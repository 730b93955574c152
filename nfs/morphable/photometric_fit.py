"""Fit by rendering: landmarks, colours and priors together, with Adam (spec 2.9).

This is the objective of 3DMM-Fitting and NeRFFaceSpeech, for refinement on request: half a minute
per photo at 500 steps, against milliseconds for `fit_landmarks`. Legend: B faces, S image side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from nfs.morphable.coefficients import Coefficients
from nfs.morphable.losses import (
    fitting_landmark_weights,
    landmark_loss,
    photometric_loss,
    reflectance_loss,
)
from nfs.morphable.model import MorphableModel
from nfs.morphable.normals import NormalWeighting
from nfs.morphable.projection import focal_px, pose_points, to_screen
from nfs.morphable.rasterizer import Backend
from nfs.morphable.shading import render
from nfs.optim.loop import LoopResult, LoopSettings, Objective, minimise

# An exact match of a pixel has no gradient in the original; this keeps it finite (spec 3, quirk 7).
EPS = 1e-20
SHARED = ("identity", "texture", "lighting")
DEFAULT_WEIGHTS = {
    "landmarks": 100.0,
    "identity": 1e-3,
    "expression": 0.8e-3,
    "texture": 1.7e-6,
    "reflectance": 1.0,
    "photometric": 1.6,
}


@dataclass(frozen=True)
class PhotometricSettings:
    """Steps and weights of the fit by rendering.

    Attributes:
        rigid_steps: First steps, on pose and landmarks only.
        joint_steps: Steps on everything, with a new optimiser.
        learning_rate: Of Adam, both stages.
        weights: Factor of each term; see `DEFAULT_WEIGHTS` for the names.
        focal_length_px: Focal length; None scales the standard one with the image.
        normal_weighting: See `vertex_normals`.
        backend: See `rasterize`.
        shared: The rows are frames of one clip: one identity, texture and light for all of them.
    """

    rigid_steps: int = 0
    joint_steps: int = 100
    learning_rate: float = 1e-2
    weights: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_WEIGHTS))
    focal_length_px: float | None = None
    normal_weighting: NormalWeighting = "area"
    backend: Backend = "auto"
    shared: bool = False


@dataclass(frozen=True)
class PhotometricFit:
    """Result of the fit by rendering.

    Attributes:
        coefficients: B rows.
        rigid: Losses of the rigid stage, before each update.
        joint: Losses of the joint stage, before each update.
    """

    coefficients: Coefficients
    rigid: LoopResult
    joint: LoopResult


def fit_photometric(
    model: MorphableModel,
    images: Tensor,
    landmarks_px: Tensor,
    *,
    start: Coefficients,
    settings: PhotometricSettings | None = None,
) -> PhotometricFit:
    """Refine coefficients so that the rendering matches the images.

    Expressions stay inside the model's bounds and axes that it calls unseen (gaze, tongue) stay as
    they are: colours of eyes and mouth would otherwise drive them.

    Args:
        model: The model to fit.
        images: `[B, S, S, 3]` in [0, 1].
        landmarks_px: `[B, 68, 2]` continuous pixels.
        start: B rows to start from, e.g. of `fit_landmarks`; not changed.
        settings: Default `PhotometricSettings()`.

    Raises:
        NonFiniteError: If a term becomes NaN or infinite.
    """
    settings = settings or PhotometricSettings()
    variables = _variables(start, shared=settings.shared)

    def now() -> Coefficients:
        return Coefficients(
            **{name: value.expand(len(start), -1) for name, value in variables.items()}
        )

    def keep_bounds(step: int, losses: Mapping[str, float]) -> None:
        del step, losses
        with torch.no_grad():
            variables["expression"].copy_(_allowed(model, variables["expression"], start))

    pose = {name: variables[name] for name in ("rotation", "translation")}
    rigid = _run(
        lambda _: {"landmarks": _landmarks(model, now(), landmarks_px, settings, images)},
        pose,
        settings.rigid_steps,
        settings,
    )
    joint = _run(
        lambda _: _joint_losses(model, now(), landmarks_px, settings, images),
        variables,
        settings.joint_steps,
        settings,
        keep_bounds,
    )
    final = {f.name: getattr(now(), f.name).detach().clone() for f in fields(start)}
    return PhotometricFit(Coefficients(**final), rigid, joint)


def _variables(start: Coefficients, *, shared: bool) -> dict[str, Tensor]:
    """Return leaf tensors to optimise; shared ones have one row, the mean of the start's."""
    variables = {}
    for item in fields(start):
        value = getattr(start, item.name).detach().clone()
        if shared and item.name in SHARED:
            value = value.mean(0, keepdim=True)
        variables[item.name] = value.requires_grad_()
    return variables


def _allowed(model: MorphableModel, expression: Tensor, start: Coefficients) -> Tensor:
    """Return expressions `[B, 64]` inside the bounds, unseen axes as in the start."""
    inside = torch.minimum(
        torch.maximum(expression, model.expression_lower), model.expression_upper
    )
    return torch.where(torch.isfinite(model.expression_prior), inside, start.expression)


def _run(
    objective: Objective,
    variables: Mapping[str, Tensor],
    num_steps: int,
    settings: PhotometricSettings,
    after_step: Callable[[int, Mapping[str, float]], None] | None = None,
) -> LoopResult:
    optimizer = torch.optim.Adam(list(variables.values()), lr=settings.learning_rate)
    loop = LoopSettings(num_steps, weights=settings.weights)
    return minimise(
        objective, variables=variables, optimizer=optimizer, settings=loop, after_step=after_step
    )


def _landmarks(
    model: MorphableModel,
    coefficients: Coefficients,
    target: Tensor,
    settings: PhotometricSettings,
    images: Tensor,
) -> Tensor:
    size = images.shape[1]
    points = model.landmarks(coefficients.identity, coefficients.expression)
    posed = pose_points(points, coefficients.rotation_matrix, coefficients.translation)
    focal = settings.focal_length_px or focal_px(size)
    found = to_screen(posed, size, focal_length_px=focal)[..., :2]
    weights = fitting_landmark_weights().to(found)
    return landmark_loss(found / size, target / size, weights)


def _joint_losses(
    model: MorphableModel,
    coefficients: Coefficients,
    target: Tensor,
    settings: PhotometricSettings,
    images: Tensor,
) -> dict[str, Tensor]:
    shaded = render(
        model,
        coefficients,
        images.shape[1],
        focal_length_px=settings.focal_length_px,
        backend=settings.backend,
        normal_weighting=settings.normal_weighting,
    )
    skin = torch.zeros(model.num_vertices, device=images.device)
    skin[model.vertex_groups["skin"]] = 1
    mask = shaded.mask.to(images)
    return {
        "landmarks": _landmarks(model, coefficients, target, settings, images),
        "identity": coefficients.identity.square().sum(1).mean(),
        "expression": coefficients.expression.square().sum(1).mean(),
        "texture": coefficients.texture.square().sum(1).mean(),
        "reflectance": reflectance_loss(model.albedo(coefficients.texture), skin),
        "photometric": photometric_loss(
            shaded.image.clamp(0, 1), images, mask, eps=EPS, over="image"
        ),
    }
