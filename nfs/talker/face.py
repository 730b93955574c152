"""The fitted face of a portrait, placed in the generator's world and moved by expressions.

Legend: B frames, V vertices of the model.
"""

import math

import torch
from torch import Tensor

from nfs.morphable.coefficients import Coefficients
from nfs.morphable.model import MorphableModel
from nfs.morphable.projection import pose_points
from nfs.morphable.rasterizer import rasterize
from nfs.talker.plane import TAN_HALF_FOV, face_to_world, world_to_plane

VISIBILITY_PX = 256
DEPTH_TOLERANCE = 0.001
NOT_SKIN = ("eyes", "teeth_upper", "teeth_lower", "tongue", "inner_mouth")


class PortraitFace:
    """World positions of a portrait's vertices and landmarks for any expression.

    Args:
        model: Face model of the fit.
        coefficients: One row: the fit of the image that the generator reproduces.
        cam2world: `[4, 4]` camera under which the generator shows that image.
        tan_half_fov: Half frame of the generator's camera at depth 1.
        depth_scale: Similarity about the camera's centre: the image stays, the distance changes.
            The fit's distance rests on a focal length of its own; `matching_depth_scale` measures
            where the generator has the face.
    """

    def __init__(
        self,
        model: MorphableModel,
        coefficients: Coefficients,
        cam2world: Tensor,
        *,
        tan_half_fov: float = TAN_HALF_FOV,
        depth_scale: float = 1.0,
    ):
        if len(coefficients) != 1:
            raise ValueError(f"{len(coefficients)} rows of coefficients, expected the one in use")
        self.model, self.coefficients, self.cam2world = model, coefficients, cam2world
        self.tan_half_fov, self.depth_scale = tan_half_fov, depth_scale
        self.neutral = coefficients.expression[0].clamp(
            min=model.expression_lower, max=model.expression_upper
        )
        self.reference, self.reference_landmarks = (
            part[0] for part in self.move(self.neutral[None])
        )
        self.visible = self.visible_vertices(self.reference[None], cam2world[None])[0]
        if not self.visible.any():
            raise ValueError("no vertex of the fitted face is inside the frame; is the fit sound?")

    def at_depth(self, depth_scale: float) -> "PortraitFace":
        """Return this face at another distance from the camera."""
        return PortraitFace(
            self.model,
            self.coefficients,
            self.cam2world,
            tan_half_fov=self.tan_half_fov,
            depth_scale=depth_scale,
        )

    def move(self, expression: Tensor) -> tuple[Tensor, Tensor]:
        """Return world vertices `[B, V, 3]` and landmarks `[B, 68, 3]` for `[B, 64]`."""
        fit = self.coefficients
        identity = fit.identity.expand(len(expression), -1)
        shape = self.model.vertices(identity, expression)
        posed = pose_points(shape, fit.rotation_matrix, fit.translation)
        world = face_to_world(posed, self.cam2world[None], self.tan_half_fov)
        centre = self.cam2world[:3, 3]
        world = centre + self.depth_scale * (world - centre)
        return world, self.model.landmarks_of(world)

    def visible_vertices(self, world: Tensor, cam2world: Tensor) -> Tensor:
        """Return which skin vertices `[B, V]` the cameras see.

        Args:
            world: `[B, V, 3]` vertices.
            cam2world: `[B, 4, 4]`.
        """
        plane, depth = world_to_plane(world, cam2world, self.tan_half_fov)
        # The z-buffer on the CPU: a few milliseconds per frame, and it needs no GPU rasteriser.
        screen = torch.cat((plane * VISIBILITY_PX, depth[..., None]), dim=-1).cpu()
        faces = self.model.faces.cpu()
        buffers = rasterize(screen, faces, VISIBILITY_PX)
        seen = torch.zeros(world.shape[:2], dtype=torch.bool)
        for row, hit in zip(seen, buffers.pix_to_face, strict=True):
            face_seen = torch.zeros(len(faces) + 1, dtype=torch.bool)
            face_seen[hit.flatten()] = True  # -1, an empty pixel, marks the spare last entry
            row[faces[face_seen[:-1]].flatten()] = True
        seen &= _in_front(screen, buffers.depth)
        groups = self.model.vertex_groups
        for name in NOT_SKIN:
            if name in groups:
                seen[:, groups[name].cpu()] = False
        return seen.to(world.device)


def _in_front(screen: Tensor, depth: Tensor) -> Tensor:
    """Return which vertices `[B, V]` lie at most a little behind the z-buffer around them."""
    size = depth.shape[-1]
    farthest = torch.nn.functional.max_pool2d(depth[:, None], 3, stride=1, padding=1)[:, 0]
    pixel = screen[..., :2].long().clamp(0, size - 1)
    rows = torch.arange(len(screen))[:, None]
    return screen[..., 2] <= farthest[rows, pixel[..., 1], pixel[..., 0]] + DEPTH_TOLERANCE


def matching_depth_scale(
    face: PortraitFace, depth: Tensor, opacity: Tensor, *, least_opacity: float = 0.5
) -> float:
    """Return the depth scale that puts the face where the generator renders it.

    Args:
        face: The portrait at depth scale 1.
        depth: `[1, 1, h, w]` rendered under `face.cam2world`.
        opacity: `[1, 1, h, w]` foreground share.
        least_opacity: Pixels below it do not count.

    Returns:
        Median of rendered over vertex depth; where fewer than ten vertices lie on opaque pixels,
        the scale that brings the median vertex to the world's centre.
    """
    vertices = face.reference[face.visible][None]
    plane, vertex_depth = world_to_plane(vertices, face.cam2world[None], face.tan_half_fov)
    size = depth.shape[-1]
    pixel = (plane[0] * size).long().clamp(0, size - 1)
    rendered = depth[0, 0, pixel[:, 1], pixel[:, 0]]
    opaque = opacity[0, 0, pixel[:, 1], pixel[:, 0]] > least_opacity
    if int(opaque.sum()) < 10:
        return float(face.cam2world[:3, 3].norm() / vertex_depth.median())
    return float((rendered / vertex_depth[0])[opaque].median())


def tan_half_fov(fov_deg: float) -> float:
    """Return the half frame at depth 1 of a square field of view."""
    return math.tan(math.radians(fov_deg) / 2)
