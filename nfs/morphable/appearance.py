"""Light and skin colour of a fitted clip by linear least squares on vertex colours.

With the geometry known, colour = albedo x (Y light) is linear in the light for a fixed albedo and
linear in the texture for a fixed light; a few alternations suffice. One light and one texture per
clip, from a handful of its frames. Legend: K frames, V vertices, S image side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from nfs.morphable.coefficients import Coefficients
from nfs.morphable.lighting import AMBIENT, NUM_HARMONICS, harmonics, irradiance
from nfs.morphable.model import MorphableModel
from nfs.morphable.normals import vertex_normals
from nfs.morphable.projection import to_screen
from nfs.morphable.rasterizer import rasterize
from nfs.morphable.shading import posed_vertices

VISIBILITY_SIZE_PX = 128
DEPTH_TOLERANCE = 0.03
MIN_FACING = 0.2
ROUNDS = 4


@dataclass(frozen=True)
class AppearanceSettings:
    """Weights of the appearance fit.

    Attributes:
        light_prior: Precision of light coefficients, relative to the mean squared albedo.
        outlier: Colour errors beyond this count linearly.
        texture_prior: Precision of texture coefficients, in squared colour error per standard
            deviation.
    """

    light_prior: float = 1e-3
    texture_prior: float = 5e-4
    outlier: float = 0.06


@dataclass(frozen=True)
class Appearance:
    """Result of the appearance fit.

    Attributes:
        texture: `[80]`.
        lighting: `[27]`.
        photometric_l1: `[K]` mean absolute colour error of the visible skin, in [0, 1].
    """

    texture: Tensor
    lighting: Tensor
    photometric_l1: Tensor


@torch.no_grad()
def fit_appearance(
    model: MorphableModel,
    coefficients: Coefficients,
    images: Tensor,
    *,
    settings: AppearanceSettings | None = None,
) -> Appearance:
    """Estimate one light and one texture for K frames whose geometry is known.

    Args:
        model: The fitted model.
        coefficients: K rows.
        images: `[K, 3, S, S]` in [0, 1].
        settings: Default `AppearanceSettings()`.
    """
    settings = settings or AppearanceSettings()
    vertices = posed_vertices(model, coefficients)
    normals = vertex_normals(vertices, model.faces)
    weights = visible_skin(model, vertices, normals).to(vertices)
    colours = sample_vertices(images, to_screen(vertices, images.shape[-1])[..., :2])
    basis = harmonics(normals)
    texture = vertices.new_zeros(model.texture_basis.shape[-1])
    lighting = vertices.new_zeros(3 * NUM_HARMONICS)
    robust = weights
    for _ in range(ROUNDS):
        albedo = model.albedo(texture[None])[0]
        lighting = _solve_light(basis, albedo, colours, robust, settings.light_prior)
        light = basis @ _with_ambient(lighting).T
        texture = _solve_texture(model, light, colours, robust, settings.texture_prior)
        error = (model.albedo(texture[None])[0] * light - colours).abs().mean(-1)
        # Hair, glasses and shadows: what is far off counts linearly (Huber weights).
        robust = weights * (settings.outlier / error.clamp_min(settings.outlier))
    return Appearance(texture, lighting, (weights * error).sum(1) / weights.sum(1).clamp_min(1))


def with_appearance(coefficients: Coefficients, appearance: Appearance) -> Coefficients:
    """Return coefficients with the clip's texture and light in every row."""
    rows = len(coefficients)
    return replace(
        coefficients,
        texture=appearance.texture.expand(rows, -1).clone(),
        lighting=appearance.lighting.expand(rows, -1).clone(),
    )


@torch.no_grad()
def photometric_l1(model: MorphableModel, coefficients: Coefficients, images: Tensor) -> Tensor:
    """Return the mean absolute colour error `[K]` of the visible skin's vertices, in [0, 1].

    Arguments as in `fit_appearance`.
    """
    vertices = posed_vertices(model, coefficients)
    normals = vertex_normals(vertices, model.faces)
    weights = visible_skin(model, vertices, normals).to(vertices)
    colours = sample_vertices(images, to_screen(vertices, images.shape[-1])[..., :2])
    light = irradiance(normals, coefficients.lighting)
    error = (model.albedo(coefficients.texture) * light - colours).abs().mean(-1)
    return (weights * error).sum(1) / weights.sum(1).clamp_min(1)


def visible_skin(model: MorphableModel, vertices: Tensor, normals: Tensor) -> Tensor:
    """Return `[K, V]` which skin vertices face the camera and are not hidden by others.

    Args:
        model: Names the skin and front regions.
        vertices: `[K, V, 3]` posed.
        normals: `[K, V, 3]` posed.
    """
    size = VISIBILITY_SIZE_PX
    screen = to_screen(vertices, size)
    fragments = rasterize(screen, model.faces, size)
    column, row = screen[..., 0].long(), screen[..., 1].long()
    inside = (column >= 0) & (column < size) & (row >= 0) & (row < size)
    flat = (row.clamp(0, size - 1) * size + column.clamp(0, size - 1)).long()
    nearest = fragments.depth.flatten(1).gather(1, flat)
    seen = inside & (screen[..., 2] < nearest + DEPTH_TOLERANCE)
    region = torch.zeros(model.num_vertices, dtype=torch.bool, device=vertices.device)
    groups = model.vertex_groups
    region[groups["front"]] = True
    if "inner_mouth" in groups:
        region[groups["inner_mouth"]] = False
    return seen & region & (normals[..., 2] > MIN_FACING)


def sample_vertices(images: Tensor, points_px: Tensor) -> Tensor:
    """Return image colours `[K, V, 3]` at continuous pixels `[K, V, 2]`, bilinear."""
    grid = points_px / images.shape[-1] * 2 - 1
    sampled = functional.grid_sample(
        images, grid[:, None], padding_mode="border", align_corners=False
    )
    return sampled[:, :, 0].transpose(1, 2)


def _with_ambient(lighting: Tensor) -> Tensor:
    """Return `[3, 9]` with the constant ambient term added."""
    weights = lighting.reshape(3, NUM_HARMONICS).clone()
    weights[:, 0] += AMBIENT
    return weights


def _solve_light(
    basis: Tensor, albedo: Tensor, colours: Tensor, weights: Tensor, prior: float
) -> Tensor:
    """Least squares for nine light coefficients per channel around white ambient light."""
    solutions = []
    for channel in range(3):
        design = (basis * albedo[:, channel, None]).flatten(0, 1)
        target = colours[..., channel].flatten() - AMBIENT * design[:, 0]
        weighted = (weights.flatten()[:, None] * design).T
        ridge = prior * weights.sum().clamp_min(1) * albedo[:, channel].square().mean()
        matrix = weighted @ design + ridge * torch.eye(NUM_HARMONICS, device=design.device)
        solutions.append(torch.linalg.solve(matrix, weighted @ target))
    return torch.cat(solutions)


def _solve_texture(
    model: MorphableModel, light: Tensor, colours: Tensor, weights: Tensor, prior: float
) -> Tensor:
    """Least squares for the texture with its unit-variance prior.

    All frames share the texture, so each vertex contributes one 80-vector per channel: the weights
    sum over the frames first.
    """
    strength = (weights[..., None] * light.square()).sum(0).flatten()
    pull = (weights[..., None] * light * (colours - model.mean_texture * light)).sum(0).flatten()
    flat = model.texture_basis.flatten(0, 1)
    ridge = prior * float(weights.sum().clamp_min(1))
    matrix = flat.T @ (strength[:, None] * flat)
    matrix = matrix + ridge * torch.eye(flat.shape[1], device=flat.device)
    return torch.linalg.solve(matrix, flat.T @ pull)
