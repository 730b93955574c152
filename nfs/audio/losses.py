"""Training losses of Audio2Exp (spec/audio.md 4.3). Legend: B samples, K frames, L lip vertices."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nfs.audio.face_basis import FaceBasis, displace, eye_aspect


@dataclass(frozen=True)
class LossWeights:
    """Weight of each term, >= 0.

    Args:
        expression: Squared error of the coefficients.
        lip: Squared lip distance, per mm^2.
        velocity: Squared lip velocity difference, per (mm/frame)^2.
        eye: Absolute eye-aspect error.
    """

    expression: float
    lip: float
    velocity: float
    eye: float


def audio2exp_loss(
    prediction: Tensor,
    target: Tensor,
    *,
    reference: Tensor,
    blink: Tensor,
    basis: FaceBasis,
    weights: LossWeights,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted loss and its unweighted terms.

    Args:
        prediction: Expressions [B, K, 64].
        target: Target expressions [B, K, 64].
        reference: Reference expressions [B, 64].
        blink: Blink ratios [B, 1] given to the network; the eyes close as it rises.
        basis: Face points.
        weights: Weight of each term.
    """
    difference = prediction - target
    lips = displace(basis.lips, difference)
    terms = {
        "loss/expression_mse": difference.square().mean(),
        "loss/lip_mm2": lips.square().sum(-1).mean(),
        "loss/lip_velocity_mm2": lips.diff(dim=1).square().sum(-1).mean(),
    }
    total = (
        weights.expression * terms["loss/expression_mse"]
        + weights.lip * terms["loss/lip_mm2"]
        + weights.velocity * terms["loss/lip_velocity_mm2"]
    )
    if weights.eye > 0:
        wanted = (1.0 - blink) * eye_aspect(basis, reference)[:, None]
        terms["loss/eye_aspect"] = (eye_aspect(basis, prediction) - wanted).abs().mean()
        total = total + weights.eye * terms["loss/eye_aspect"]
    return total, terms


def lip_vertex_error_mm(prediction: Tensor, target: Tensor, basis: FaceBasis) -> Tensor:
    """Return LVE of [T, 64]: mean over frames of the largest lip vertex distance, mm (4.9)."""
    return displace(basis.lips, prediction - target).norm(dim=-1).amax(-1).mean()


def lip_vertex_error_mm2(prediction: Tensor, target: Tensor, basis: FaceBasis) -> Tensor:
    """Return the squared variant of LVE, mm^2 (4.9, CodeTalker's scripts)."""
    return displace(basis.lips, prediction - target).square().sum(-1).amax(-1).mean()


def lip_velocity_error_mm(prediction: Tensor, target: Tensor, basis: FaceBasis) -> Tensor:
    """Return the mean lip vertex velocity difference in mm per frame of one run [T, 64]."""
    return displace(basis.lips, (prediction - target).diff(dim=0)).norm(dim=-1).mean()
