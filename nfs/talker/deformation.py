"""Deformation of ray samples by the motion of face-model vertices.

Legend: B frames, N rays, S samples per ray, V vertices, K neighbours.
A warp is a callable `(points [B, N, S, 3], cam2world [B, 4, 4]) -> points`: a sample of the moved
face is sent back to where the reference face has the same matter (backward warp).
Sources: spec/inversion_and_talker.md 2.9 (original) and 4.3 (world-locked).
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from nfs.talker.interpolation import ScatteredVertices
from nfs.talker.plane import TAN_HALF_FOV, plane_to_world_offset, world_to_plane

SAME_PIXEL = 1e-5
"""Samples whose plane coordinates differ less than this lie on one ray of the camera."""


@dataclass(frozen=True)
class WarpSettings:
    """Shape of the world-locked warp."""

    linear: bool = True
    """Linear between the moved vertices around a sample; False averages the nearest ones, which
    repeats the texture of each vertex where the mesh is stretched (lips, lids)."""
    neighbours: int = 4
    """Nearest moved vertices that are averaged: outside the mesh, and inside if not `linear`."""
    falloff_radius: float = 0.04
    """r0 of `exp(-(r / r0)^2)`, r = distance beyond the mesh, fraction of the image side."""
    ramp_start: float = 0.03
    """Depth behind the face surface up to which samples move fully, camera radii."""
    ramp_end: float = 0.10
    """Depth behind the face surface from which samples do not move, camera radii."""
    tan_half_fov: float = TAN_HALF_FOV
    """Half frame of the generator's camera at depth 1."""


@dataclass(frozen=True)
class _Frame:
    """Visible vertices of one frame in the image plane of its camera."""

    mesh: ScatteredVertices
    displacement: Tensor
    depth: Tensor


class WorldLockedWarp:
    """Backward warp in the image plane of whatever camera renders.

    Vertices live in the world, so association is by place, not by pixel: every camera projects
    them anew. Displacement is found at the moved position of a vertex, because that is where the
    sample sits.

    Args:
        reference: `[V, 3]` world vertices of the face as the generator shows it undeformed.
        moved: `[B, V, 3]` world vertices of the B frames.
        visible: `[B, V]` bool, vertices that may lend their motion; None = all. A hidden vertex
            lies over visible ones in the image plane and would lend them a foreign motion.
        settings: Shape of the warp.

    Raises:
        ValueError: If shapes do not fit or a frame has no visible vertex.
    """

    def __init__(
        self,
        reference: Tensor,
        moved: Tensor,
        *,
        visible: Tensor | None = None,
        settings: WarpSettings | None = None,
    ):
        if moved.shape[1:] != reference.shape:
            raise ValueError(
                f"moved vertices {tuple(moved.shape)} do not match reference "
                f"{tuple(reference.shape)}"
            )
        self.reference, self.moved = reference, moved
        self.settings = settings or WarpSettings()
        everything = torch.ones(moved.shape[:2], dtype=torch.bool, device=moved.device)
        self.visible = everything if visible is None else visible.expand_as(everything)
        if not self.visible.any(1).all():
            raise ValueError("a frame has no visible vertex")
        self._seen: tuple[Tensor, list[_Frame]] | None = None

    def __call__(self, points: Tensor, cam2world: Tensor) -> Tensor:
        """Return moved sample points `[B, N, S, 3]`."""
        if len(points) != len(self.moved):
            raise ValueError(f"{len(points)} frames of samples, {len(self.moved)} of vertices")
        tan = self.settings.tan_half_fov
        plane, depth = world_to_plane(points, cam2world, tan)
        middle = plane[:, :, plane.shape[2] // 2 : plane.shape[2] // 2 + 1]
        one_query_per_ray = bool(((plane - middle).abs() < SAME_PIXEL).all())
        query = middle if one_query_per_ray else plane
        frames = self._frames_seen_by(cam2world)
        found = [self._interpolate(query[i], frame) for i, frame in enumerate(frames)]
        offset, near_surface = zip(*found, strict=True)
        behind = depth - torch.stack(near_surface)
        shift = torch.stack(offset) * self._ramp(behind)[..., None]
        return points + plane_to_world_offset(shift, depth, cam2world, tan)

    def _frames_seen_by(self, cam2world: Tensor) -> list[_Frame]:
        """Project the visible vertices; the last cameras are remembered for the second pass."""
        if self._seen is not None and torch.equal(self._seen[0], cam2world):
            return self._seen[1]
        tan = self.settings.tan_half_fov
        moved, depth = world_to_plane(self.moved, cam2world, tan)
        reference = self.reference.expand_as(self.moved)
        displacement = world_to_plane(reference, cam2world, tan)[0] - moved
        frames = []
        for i, keep in enumerate(self.visible):
            mesh = ScatteredVertices(moved[i, keep].detach().cpu().double().numpy())
            frames.append(_Frame(mesh, displacement[i, keep], depth[i, keep]))
        self._seen = (cam2world.clone(), frames)
        return frames

    def _interpolate(self, query: Tensor, frame: _Frame) -> tuple[Tensor, Tensor]:
        """Interpolate displacement `[N, S', 2]` and surface depth `[N, S']` at plane points."""
        where = query.detach().cpu().double().numpy().reshape(-1, 2)
        index, weight, outside = frame.mesh.interpolate(
            where, neighbours=self.settings.neighbours, linear=self.settings.linear
        )
        falloff = np.exp(-((outside / self.settings.falloff_radius) ** 2))
        nearest = torch.as_tensor(index).to(query.device)
        weights = torch.as_tensor(weight, dtype=query.dtype).to(query.device)
        weakened = torch.as_tensor(weight * falloff[:, None], dtype=query.dtype).to(query.device)
        offset = (frame.displacement[nearest] * weakened[..., None]).sum(1)
        depth = (frame.depth[nearest] * weights).sum(1)
        return offset.reshape(query.shape), depth.reshape(query.shape[:-1])

    def _ramp(self, behind: Tensor) -> Tensor:
        """Return 1 in front of and just behind the surface, falling smoothly to 0."""
        start, end = self.settings.ramp_start, self.settings.ramp_end
        along = ((behind - start) / (end - start)).clamp(0, 1)
        return 1 - along * along * (3 - 2 * along)


class OriginalWarp:
    """The deformation of NeRFFaceSpeech (spec 2.9), with its quirks T1-T5.

    Samples look up the nearest *reference* anchor with their own lateral world coordinates in the
    frontal view, whatever camera renders, and move by `reference - moved`; depth does not matter.
    Meant for depths frozen at those of the frontal render.

    Args:
        reference: `[V, 2]` anchors (world y, z) from `original_anchors`.
        moved: `[B, V, 2]` anchors of the frames.
        front_cam2world: `[4, 4]` camera of the frontal render; None looks anchors up under the
            camera that renders (fixes quirk T1).
    """

    def __init__(self, reference: Tensor, moved: Tensor, front_cam2world: Tensor | None):
        self.displacement = reference - moved
        self.front = front_cam2world
        self._tree = cKDTree(reference.detach().cpu().double().numpy())

    def __call__(self, points: Tensor, cam2world: Tensor) -> Tensor:
        """Return moved sample points `[B, N, S, 3]`."""
        index = self.nearest(points, cam2world)
        rows = torch.arange(len(points), device=points.device)[:, None]
        shift = self.displacement.to(points)[rows, index.flatten(1)].reshape(*index.shape, 2)
        return torch.cat((points[..., :1], points[..., 1:] + shift), dim=-1)

    def nearest(self, points: Tensor, cam2world: Tensor) -> Tensor:
        """Return the index `[B, N, S]` of the nearest reference anchor of each sample."""
        if self.front is not None:
            points = _change_camera(points, cam2world, self.front.to(points))
        where = points[..., 1:].detach().cpu().double().numpy().reshape(-1, 2)
        index = torch.as_tensor(np.asarray(self._tree.query(where)[1]))
        return index.reshape(points.shape[:-1]).to(points.device)


def original_anchors(vertices_px: Tensor, torso_px: Tensor | None = None) -> Tensor:
    """Return the anchors (world y, z) of NeRFFaceSpeech: vertices, then torso points.

    Args:
        vertices_px: `[B, V, 2]` projected vertices to use, 224 px frame, **y up**.
        torso_px: `[M, 2]` torso pixels to use, 512 px frame, y down; same for all frames.
    """
    anchors = scale_to_world(vertices_px, 224)
    if torso_px is None:
        return anchors
    torso = scale_to_world(torso_px.to(anchors), 512)
    torso = torso * torso.new_tensor([1.0, -1.0])
    return torch.cat((anchors, torso.expand(len(anchors), -1, -1)), dim=1)


def scale_to_world(pixels: Tensor, size_px: int) -> Tensor:
    """Map `[0, size]` linearly to `[-0.10, 0.10]` (exact at depth 0.951 only, quirk T4)."""
    return -0.10 + 0.20 * pixels / size_px


def _change_camera(points: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Carry points that are fixed to camera `source` `[B, 4, 4]` over to `target` `[4, 4]`."""
    relative = (points - source[:, None, None, :3, 3]).flatten(1, 2)
    camera = relative @ source[:, :3, :3]
    moved = camera @ target[:3, :3].T + target[:3, 3]
    return moved.reshape(points.shape)
