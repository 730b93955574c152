"""The objective of the regressor (spec 2.10) and optional pulls towards fits.

Legend: B pictures, S side, V vertices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from nfs.morphable.coefficients import Coefficients
from nfs.morphable.losses import (
    coefficient_penalty,
    feature_loss,
    gray_light_penalty,
    landmark_loss,
    photometric_loss,
    recon_landmark_weights,
    reflectance_loss,
)
from nfs.morphable.model import MorphableModel
from nfs.morphable.projection import REFERENCE_SIZE_PX, pose_points, project_points
from nfs.morphable.recon.identity import FaceIdentity
from nfs.morphable.recon.skin import skin_probability
from nfs.morphable.shading import Shaded, render

Batch = dict[str, Tensor]
MaskKind = Literal["skin", "face"]
MM_PER_DM = 100.0


@dataclass(frozen=True)
class ReconWeights:
    """Factors of the terms; see `nfs.config.train_recon` for each."""

    feature: float = 0.2
    color: float = 1.92
    landmark: float = 1.6e-3
    regular: float = 3e-4
    identity: float = 1.0
    expression: float = 0.8
    texture: float = 0.017
    light: float = 10.0
    reflectance: float = 5.0
    bounds: float = 1.0
    fit_shape: float = 0.0
    fit_coefficients: float = 0.0
    fit_texture: float = 0.0
    fit_pose: float = 0.0


@dataclass(frozen=True)
class Rendered:
    """Predicted faces over their pictures.

    Attributes:
        image: `[B, S, S, 3]`, zero outside the head.
        mask: `[B, S, S]` where colours are compared, a constant in [0, 1].
    """

    image: Tensor
    mask: Tensor


class ReconObjective:
    """All terms of the training, on one device.

    Args:
        model: Morphable model.
        image_size_px: S.
        weights: Factors; a term of factor 0 is not computed.
        mask: See `face_mask`.
        identity: Network of the perceptual term.
    """

    def __init__(
        self,
        model: MorphableModel,
        *,
        image_size_px: int,
        weights: ReconWeights,
        mask: MaskKind = "skin",
        identity: FaceIdentity | None = None,
    ):
        self.model, self.size, self.weights = model, image_size_px, weights
        self.mask_kind: MaskKind = mask
        self.identity = identity
        self._prepare()

    def to(self, device: torch.device) -> ReconObjective:
        """Move everything to a device and return this object."""
        self.model = self.model.to(device)
        if self.identity is not None:
            self.identity = self.identity.to(device)
        self._prepare()
        return self

    def __call__(
        self, coefficients: Coefficients, batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum and its unweighted terms.

        Args:
            coefficients: B predictions.
            batch: As `ReconFrames` makes it.
        """
        terms = self._terms(coefficients, batch)
        weighted = [getattr(self.weights, name) * term for name, term in terms.items()]
        return torch.stack(weighted).sum(), terms

    def landmarks(self, coefficients: Coefficients) -> Tensor:
        """Return the projected landmarks `[B, 68, 2]`."""
        points = self.model.landmarks(coefficients.identity, coefficients.expression)
        posed = pose_points(points, coefficients.rotation_matrix, coefficients.translation)
        return project_points(posed, self.size)

    def rendered(self, coefficients: Coefficients, batch: Batch) -> Rendered:
        """Render predictions and find where to compare them with the pictures."""
        shaded = render(self.model, coefficients, self.size)
        return Rendered(shaded.image, self.face_mask(shaded, batch))

    @torch.no_grad()
    def face_mask(self, shaded: Shaded, batch: Batch) -> Tensor:
        """Return `[B, S, S]`: visible front of the face inside the frame, times skin if asked."""
        faces = shaded.fragments.pix_to_face
        mask = (self._front_face[faces.clamp_min(0)] & (faces >= 0) & batch["inside"]).float()
        if self.mask_kind == "skin":
            mask = mask * skin_probability(batch["image"])
        return mask

    def shape_error_mm2(self, coefficients: Coefficients, other: Coefficients) -> Tensor:
        """Return the mean squared distance `[B]` of the front vertices in model space, mm^2."""
        difference = torch.cat(
            [
                coefficients.identity - other.identity,
                coefficients.expression - other.expression,
            ],
            dim=1,
        )
        offsets = (difference @ self._front_basis).unflatten(1, (-1, 3)) * MM_PER_DM
        return offsets.square().sum(-1).mean(1)

    def _prepare(self) -> None:
        model = self.model
        device = model.mean_shape.device
        front = torch.zeros(model.num_vertices, dtype=torch.bool, device=device)
        front[model.vertex_groups["front"]] = True
        self._front_face = front[model.faces].all(1)
        self._front_basis = model.shape_basis[front].flatten(0, 1).T
        self._skin = torch.zeros(model.num_vertices, device=device)
        self._skin[model.vertex_groups["skin"]] = 1
        self._landmark_weights = recon_landmark_weights().to(device)

    def _terms(self, coefficients: Coefficients, batch: Batch) -> dict[str, Tensor]:
        weights, terms = self.weights, dict[str, Tensor]()
        landmarks = self.landmarks(coefficients)
        to_reference = REFERENCE_SIZE_PX / self.size
        if weights.landmark:
            terms["landmark"] = to_reference**2 * landmark_loss(
                landmarks, batch["landmarks"], self._landmark_weights
            )
        if weights.color or weights.feature:
            terms |= self._picture_terms(coefficients, batch, landmarks)
        if weights.regular:
            terms["regular"] = coefficient_penalty(
                coefficients,
                identity=weights.identity,
                expression=weights.expression,
                texture=weights.texture,
            )
        if weights.light:
            terms["light"] = gray_light_penalty(coefficients.lighting)
        if weights.reflectance:
            albedo = self.model.albedo(coefficients.texture)
            terms["reflectance"] = reflectance_loss(albedo, self._skin)
        if weights.bounds:
            terms["bounds"] = self._excess(coefficients.expression)
        if "fit" in batch:
            terms |= self._fit_terms(coefficients, batch)
        return terms

    def _picture_terms(
        self, coefficients: Coefficients, batch: Batch, landmarks: Tensor
    ) -> dict[str, Tensor]:
        target = batch["image"].float() / 255
        rendered = self.rendered(coefficients, batch)
        terms = {}
        if self.weights.color:
            terms["color"] = photometric_loss(
                rendered.image, target.permute(0, 2, 3, 1), rendered.mask
            )
        if self.weights.feature and self.identity is not None:
            with torch.no_grad():
                wanted = self.identity(target, batch["landmarks"])
            found = self.identity(rendered.image.permute(0, 3, 1, 2), landmarks)
            terms["feature"] = feature_loss(found, wanted)
        return terms

    def _excess(self, expression: Tensor) -> Tensor:
        low, high = self.model.expression_lower, self.model.expression_upper
        outside = functional.relu(low - expression) + functional.relu(expression - high)
        return outside.square().sum(1).mean()

    def _fit_terms(self, coefficients: Coefficients, batch: Batch) -> dict[str, Tensor]:
        fit, weights = Coefficients.unpack(batch["fit"]), self.weights
        terms = {}
        if weights.fit_shape:
            error = self.shape_error_mm2(coefficients, fit)
            terms["fit_shape"] = _mean(error, batch["fit_shape"])
        if weights.fit_coefficients:
            error = _squared(coefficients, fit, "identity", "expression")
            terms["fit_coefficients"] = _mean(error, batch["fit_shape"])
        if weights.fit_texture:
            error = _squared(coefficients, fit, "texture")
            terms["fit_texture"] = _mean(error, batch["fit_shape"])
        if weights.fit_pose:
            error = _squared(coefficients, fit, "rotation", "translation")
            terms["fit_pose"] = _mean(error, batch["fit_pose"])
        return terms


def _squared(first: Coefficients, second: Coefficients, *names: str) -> Tensor:
    """Return the squared distance `[B]` of some parts."""
    return torch.stack(
        [(getattr(first, n) - getattr(second, n)).square().sum(1) for n in names]
    ).sum(0)


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum() / weights.sum().clamp_min(1)
