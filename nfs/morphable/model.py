"""The morphable model: shape, albedo and 68 landmarks from coefficients.

Legend: B faces, V vertices, F triangles. Model space is decimetres, y up, z towards the camera, +x
the subject's left (image right); the mean shape is centred on the mean of all its vertices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

FloatArray = NDArray[np.floating]
IntArray = NDArray[np.integer]


@dataclass(frozen=True)
class ModelData:
    """Arrays of a morphable model before they become a module.

    Attributes:
        model_id: Name of the model family, e.g. `open_head`.
        checksum: SHA-256 that coefficient files carry.
        mean_shape: `[V, 3]` dm, any origin.
        identity_basis: `[V, 3, 80]` dm per standard deviation.
        expression_basis: `[V, 3, 64]` dm per unit.
        mean_texture: `[V, 3]` albedo in [0, 1].
        texture_basis: `[V, 3, 80]` albedo per standard deviation.
        faces: `[F, 3]` vertex ids, 0-based.
        landmark_triangles: `[68, 3]` vertex ids.
        landmark_weights: `[68, 3]` barycentric weights.
        groups: Name -> vertex ids; contours are ordered.
        front_faces: `[f, 3]` triangles of the front of the face.
        expression_names: 64 names.
        expression_lower: `[64]` lower bounds, -inf where free.
        expression_upper: `[64]` upper bounds, inf where free.
        expression_prior: `[64]` relative prior precision; inf fixes an axis that landmarks cannot
            see.
        contour_triangles: `[17, C, 3]` places that jaw landmarks of a turned head slide to, see
            `contour.jaw_candidates`; the default has none.
        contour_weights: `[17, C, 3]` barycentric weights of them.
    """

    model_id: str
    checksum: str
    mean_shape: FloatArray
    identity_basis: FloatArray
    expression_basis: FloatArray
    mean_texture: FloatArray
    texture_basis: FloatArray
    faces: IntArray
    landmark_triangles: IntArray
    landmark_weights: FloatArray
    groups: Mapping[str, IntArray]
    front_faces: IntArray
    expression_names: tuple[str, ...]
    expression_lower: FloatArray = field(default_factory=lambda: np.full(64, -np.inf))
    expression_upper: FloatArray = field(default_factory=lambda: np.full(64, np.inf))
    expression_prior: FloatArray = field(default_factory=lambda: np.ones(64))
    contour_triangles: IntArray = field(default_factory=lambda: np.zeros((17, 0, 3), np.int64))
    contour_weights: FloatArray = field(default_factory=lambda: np.zeros((17, 0, 3)))


class MorphableModel(nn.Module):
    """A linear head model; its buffers stay out of state dicts, the checksum names them.

    Args:
        data: Arrays of the model.
    """

    mean_shape: Tensor
    shape_basis: Tensor
    mean_texture: Tensor
    texture_basis: Tensor
    faces: Tensor
    front_faces: Tensor
    landmark_triangles: Tensor
    landmark_weights: Tensor
    expression_lower: Tensor
    expression_upper: Tensor
    expression_prior: Tensor
    contour_triangles: Tensor
    contour_weights: Tensor

    def __init__(self, data: ModelData):
        super().__init__()
        self.model_id = data.model_id
        self.checksum = data.checksum
        self.expression_names = data.expression_names
        self.num_identity = data.identity_basis.shape[2]
        self._group_names = tuple(data.groups)
        mean = np.asarray(data.mean_shape, np.float64)
        shape_basis = np.concatenate([data.identity_basis, data.expression_basis], axis=2)
        floats = {
            "mean_shape": mean - mean.mean(0),
            "shape_basis": shape_basis,
            "mean_texture": data.mean_texture,
            "texture_basis": data.texture_basis,
            "landmark_weights": data.landmark_weights,
            "expression_lower": data.expression_lower,
            "expression_upper": data.expression_upper,
            "expression_prior": data.expression_prior,
            "contour_weights": data.contour_weights,
        }
        integers = {
            "faces": data.faces,
            "front_faces": data.front_faces,
            "landmark_triangles": data.landmark_triangles,
            "contour_triangles": data.contour_triangles,
            **{f"group_{name}": ids for name, ids in data.groups.items()},
        }
        for name, array in floats.items():
            tensor = torch.from_numpy(np.ascontiguousarray(array, np.float32))
            self.register_buffer(name, tensor, persistent=False)
        for name, array in integers.items():
            tensor = torch.from_numpy(np.ascontiguousarray(array, np.int64))
            self.register_buffer(name, tensor, persistent=False)

    @property
    def num_vertices(self) -> int:
        """V."""
        return len(self.mean_shape)

    @property
    def identity_basis(self) -> Tensor:
        """`[V, 3, 80]` dm per standard deviation."""
        return self.shape_basis[..., : self.num_identity]

    @property
    def expression_basis(self) -> Tensor:
        """`[V, 3, 64]` dm per unit."""
        return self.shape_basis[..., self.num_identity :]

    @property
    def vertex_groups(self) -> dict[str, Tensor]:
        """Name -> vertex ids; `lips_outer`, `lips_inner`, `eye_*` are ordered contours."""
        return {name: self.get_buffer(f"group_{name}") for name in self._group_names}

    def vertices(self, identity: Tensor, expression: Tensor) -> Tensor:
        """Return shapes `[B, V, 3]` in model space, dm (spec 2.3).

        Args:
            identity: `[B, 80]`.
            expression: `[B, 64]`.
        """
        weights = torch.cat([identity, expression], dim=1)
        offsets = weights @ self.shape_basis.flatten(0, 1).T
        return self.mean_shape + offsets.reshape(len(offsets), -1, 3)

    def landmarks(self, identity: Tensor, expression: Tensor) -> Tensor:
        """Return the 68 landmarks `[B, 68, 3]` in model space without evaluating the mesh."""
        mean, basis = self.landmark_basis()
        return mean + torch.einsum("lck,bk->blc", basis, torch.cat([identity, expression], dim=1))

    def landmark_basis(self) -> tuple[Tensor, Tensor]:
        """Return the mean `[68, 3]` and the joint basis `[68, 3, 144]` at the landmarks."""
        mean = self.landmarks_of(self.mean_shape[None])[0]
        corners = self.shape_basis[self.landmark_triangles]
        return mean, (self.landmark_weights[..., None, None] * corners).sum(1)

    def contour_basis(self) -> tuple[Tensor, Tensor]:
        """Return mean `[17, C, 3]` and joint basis `[17, C, 3, 144]` of the jaw's candidates."""
        weights = self.contour_weights[..., None]
        mean = (weights * self.mean_shape[self.contour_triangles]).sum(2)
        corners = self.shape_basis[self.contour_triangles]
        return mean, (weights[..., None] * corners).sum(2)

    def landmarks_of(self, vertices: Tensor) -> Tensor:
        """Return the landmarks `[B, 68, 3]` of given vertices `[B, V, 3]` (posed or not)."""
        return (self.landmark_weights[..., None] * vertices[:, self.landmark_triangles]).sum(2)

    def albedo(self, texture: Tensor) -> Tensor:
        """Return vertex albedo `[B, V, 3]`, nominally in [0, 1] and not clamped.

        Args:
            texture: `[B, 80]`.
        """
        offsets = texture @ self.texture_basis.flatten(0, 1).T
        return self.mean_texture + offsets.reshape(len(offsets), -1, 3)
