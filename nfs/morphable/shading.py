"""Differentiable shading around a fixed visibility.

Legend: B images, V vertices, F triangles, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nfs.morphable.coefficients import Coefficients
from nfs.morphable.lighting import irradiance
from nfs.morphable.model import MorphableModel
from nfs.morphable.normals import NormalWeighting, vertex_normals
from nfs.morphable.projection import pose_points, to_screen
from nfs.morphable.rasterizer import Backend, Fragments, rasterize


@dataclass(frozen=True)
class Shaded:
    """A rendered head.

    Attributes:
        image: `[B, H, W, 3]`, zero where nothing is seen; not clamped.
        fragments: Visibility.
        vertices: `[B, V, 3]` posed vertices, dm.
    """

    image: Tensor
    fragments: Fragments
    vertices: Tensor

    @property
    def mask(self) -> Tensor:
        """`[B, H, W]` which pixels are covered."""
        return self.fragments.mask


def interpolate(screen: Tensor, values: Tensor, faces: Tensor, pix_to_face: Tensor) -> Tensor:
    """Interpolate vertex values perspective-correctly at the covered pixels.

    Differentiable in `screen` and `values`; the visible triangle of each pixel is a constant, so
    there is no silhouette gradient.

    Args:
        screen: `[B, V, 3]` (x px, y px down, depth).
        values: `[B, V, C]`.
        faces: `[F, 3]`.
        pix_to_face: `[B, H, W]`, -1 where empty.

    Returns:
        `[B, H, W, C]`, zero where empty.
    """
    covered = pix_to_face >= 0
    image, row, column = covered.nonzero(as_tuple=True)
    corners = faces[pix_to_face[covered]]
    x, y, depth = screen[image[:, None], corners].unbind(-1)
    pixel_x, pixel_y = column + 0.5, row + 0.5
    area = _cross(x[:, 1], y[:, 1], x[:, 2], y[:, 2], x[:, 0], y[:, 0])
    first = _cross(x[:, 1], y[:, 1], x[:, 2], y[:, 2], pixel_x, pixel_y) / area
    second = _cross(x[:, 2], y[:, 2], x[:, 0], y[:, 0], pixel_x, pixel_y) / area
    weights = torch.stack([first, second, 1 - first - second], dim=1) / depth
    weights = weights / weights.sum(1, keepdim=True)
    colours = (values[image[:, None], corners] * weights[..., None]).sum(1)
    canvas = values.new_zeros(*pix_to_face.shape, values.shape[-1])
    return canvas.index_put((image, row, column), colours)


def vertex_colours(
    model: MorphableModel,
    coefficients: Coefficients,
    *,
    normal_weighting: NormalWeighting = "unit",
) -> Tensor:
    """Return lit vertex colours `[B, V, 3]`, nominally in [0, 1], not clamped (spec 2.3-2.7)."""
    shape = model.vertices(coefficients.identity, coefficients.expression)
    normals = vertex_normals(shape, model.faces, weighting=normal_weighting)
    normals = normals @ coefficients.rotation_matrix.transpose(1, 2)
    return model.albedo(coefficients.texture) * irradiance(normals, coefficients.lighting)


def posed_vertices(model: MorphableModel, coefficients: Coefficients) -> Tensor:
    """Return the vertices `[B, V, 3]` in camera orientation, `y = R x + t`, dm."""
    shape = model.vertices(coefficients.identity, coefficients.expression)
    return pose_points(shape, coefficients.rotation_matrix, coefficients.translation)


def render(
    model: MorphableModel,
    coefficients: Coefficients,
    image_size_px: int,
    *,
    colours: Tensor | None = None,
    focal_length_px: float | None = None,
    backend: Backend = "auto",
    normal_weighting: NormalWeighting = "unit",
) -> Shaded:
    """Render heads, differentiable in all coefficients except through visibility.

    Args:
        model: The model the coefficients belong to.
        coefficients: B rows.
        image_size_px: Side of the square image.
        colours: `[B, V, 3]` instead of lit albedo.
        focal_length_px: Another focal length than the standard one.
        backend: Rasteriser, see `rasterize`.
        normal_weighting: See `vertex_normals`.
    """
    if colours is None:
        colours = vertex_colours(model, coefficients, normal_weighting=normal_weighting)
    vertices = posed_vertices(model, coefficients)
    screen = to_screen(vertices, image_size_px, focal_length_px=focal_length_px)
    fragments = rasterize(screen, model.faces, image_size_px, backend=backend)
    image = interpolate(screen, colours, model.faces, fragments.pix_to_face)
    return Shaded(image, fragments, vertices)


def _cross(ax: Tensor, ay: Tensor, bx: Tensor, by: Tensor, px: Tensor, py: Tensor) -> Tensor:
    return (ax - px) * (by - py) - (ay - py) * (bx - px)
