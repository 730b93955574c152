"""Pictures that show whether a fit is right. Legend: N frames, S image side."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nfs.morphable.coefficients import Coefficients
from nfs.morphable.lighting import irradiance
from nfs.morphable.model import MorphableModel
from nfs.morphable.normals import vertex_normals
from nfs.morphable.shading import posed_vertices, render

Picture = NDArray[np.uint8]

DETECTED_COLOUR = (40, 220, 60)
FITTED_COLOUR = (255, 60, 40)
MESH_COLOUR = (0.75, 0.78, 0.85)
MESH_OPACITY = 0.65
LIGHT_GREY = 0.6
"""Albedo that the light is shown on."""


@torch.no_grad()
def mesh_overlay(model: MorphableModel, coefficients: Coefficients, images: Picture) -> Picture:
    """Return images `[N, S, S, 3]` with the fitted mesh drawn over them in plain shading.

    Args:
        model: The fitted model.
        coefficients: N rows.
        images: `[N, S, S, 3]` uint8 RGB that the fit refers to.
    """
    normals = vertex_normals(posed_vertices(model, coefficients), model.faces)
    facing = normals[..., 2:].clamp_min(0) * 0.75 + 0.25
    colours = facing * torch.tensor(MESH_COLOUR, device=facing.device)
    shaded = render(model, coefficients, images.shape[1], colours=colours)
    alpha = (MESH_OPACITY * shaded.mask[..., None]).cpu().numpy()
    blended = images * (1 - alpha) + 255 * shaded.image.cpu().numpy() * alpha
    return blended.clip(0, 255).astype(np.uint8)


@torch.no_grad()
def appearance_rows(
    model: MorphableModel, coefficients: Coefficients, images: Picture
) -> list[Picture]:
    """Return the rendering over the images, the albedo and the light, each `[N, S, S, 3]`."""
    size = images.shape[1]
    normals = vertex_normals(posed_vertices(model, coefficients), model.faces)
    light = LIGHT_GREY * irradiance(normals, coefficients.lighting)
    white = np.full_like(images, 255)
    drawn = [
        (images, render(model, coefficients, size)),
        (white, render(model, coefficients, size, colours=model.albedo(coefficients.texture))),
        (white, render(model, coefficients, size, colours=light)),
    ]
    rows = []
    for under, shaded in drawn:
        colours = (shaded.image.clamp(0, 1) * 255).round().byte().cpu().numpy()
        rows.append(np.where(shaded.mask[..., None].cpu().numpy(), colours, under))
    return rows


def draw_points(images: Picture, points_px: Tensor, colour: tuple[int, int, int]) -> Picture:
    """Return copies of `[N, S, S, 3]` images with small squares at `[N, P, 2]` pixels."""
    drawn = images.copy()
    size = images.shape[1]
    radius = max(1, size // 160)
    pixels = torch.nan_to_num(points_px, nan=-1e4).floor().long().cpu().numpy()
    for canvas, points in zip(drawn, pixels, strict=True):
        for x, y in points:
            if -radius <= x < size + radius and -radius <= y < size + radius:
                rows = slice(max(0, y - radius), y + radius)
                canvas[rows, max(0, x - radius) : x + radius] = colour
    return drawn


def contact_sheet(
    model: MorphableModel,
    coefficients: Coefficients,
    images: Picture,
    *,
    landmarks_px: Tensor,
    fitted_px: Tensor,
) -> Picture:
    """Return one picture with a column per frame.

    Rows: image, landmarks (found green, fitted red), mesh. Where the coefficients have a light or a
    texture, also the rendering over the image, the albedo, and the light on white.

    Args:
        model: The fitted model.
        coefficients: N rows.
        images: `[N, S, S, 3]` uint8 RGB.
        landmarks_px: `[N, 68, 2]` detected, continuous pixels.
        fitted_px: `[N, 68, 2]` fitted.

    Returns:
        `[3 S, N S, 3]` or `[6 S, N S, 3]` uint8 RGB.
    """
    marked = draw_points(images, landmarks_px, DETECTED_COLOUR)
    marked = draw_points(marked, fitted_px, FITTED_COLOUR)
    rows = [images, marked, mesh_overlay(model, coefficients, images)]
    if bool(coefficients.texture.any()) or bool(coefficients.lighting.any()):
        rows += appearance_rows(model, coefficients, images)
    return np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)
