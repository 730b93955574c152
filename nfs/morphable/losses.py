"""Losses on coefficients, landmarks and renderings (spec 2.9 and 2.10).

Two families of code use the same terms with other constants; the constants are arguments here.
Legend: B faces, V vertices.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from nfs.morphable.coefficients import Coefficients
from nfs.morphable.lighting import NUM_HARMONICS

NUM_LANDMARKS = 68


def recon_landmark_weights() -> Tensor:
    """Return Deep3D's weights `[68]`: 20 on 28-30 and the inner lips, else 1; divided by 68."""
    weights = torch.ones(NUM_LANDMARKS)
    weights[28:31] = 20
    weights[60:68] = 20
    return weights / NUM_LANDMARKS


def fitting_landmark_weights() -> Tensor:
    """Return 3DMM-Fitting's weights `[68]`: 10 on 28-30 and the mouth, else 1; the sum is one."""
    weights = torch.ones(NUM_LANDMARKS)
    weights[28:31] = 10
    weights[48:68] = 10
    return weights / weights.sum()


def landmark_loss(predicted: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Return the mean over faces of the weighted squared landmark distances.

    Args:
        predicted: `[B, 68, 2]`, pixels or fractions of the image side.
        target: `[B, 68, 2]`, the same unit.
        weights: `[68]`.
    """
    return (weights * (predicted - target).square().sum(-1)).sum(1).mean()


def coefficient_penalty(
    coefficients: Coefficients,
    *,
    identity: float = 1.0,
    expression: float = 0.8,
    texture: float = 0.017,
) -> Tensor:
    """Return the weighted squared norms of identity, expression and texture, mean over faces."""
    terms = (
        identity * coefficients.identity.square().sum(),
        expression * coefficients.expression.square().sum(),
        texture * coefficients.texture.square().sum(),
    )
    return torch.stack(terms).sum() / max(len(coefficients), 1)


def gray_light_penalty(lighting: Tensor) -> Tensor:
    """Return the mean squared difference of the three channels' light from their mean.

    Args:
        lighting: `[B, 27]`.
    """
    channels = lighting.reshape(-1, 3, NUM_HARMONICS)
    return (channels - channels.mean(1, keepdim=True)).square().mean()


def reflectance_loss(albedo: Tensor, skin: Tensor) -> Tensor:
    """Return how much the skin's albedo varies: mean squared distance from its mean colour.

    Args:
        albedo: `[B, V, 3]` in [0, 1].
        skin: `[V]` weights, 1 on skin.
    """
    weights = skin[None, :, None]
    mean = (weights * albedo).sum(1, keepdim=True) / skin.sum()
    variation = ((albedo - mean) * weights).square().sum()
    return variation / (len(albedo) * skin.sum())


def photometric_loss(
    image: Tensor,
    target: Tensor,
    mask: Tensor,
    *,
    eps: float = 1e-6,
    over: Literal["batch", "image"] = "batch",
) -> Tensor:
    """Return the mean colour distance per covered pixel.

    Args:
        image: `[B, H, W, 3]` in [0, 1].
        target: `[B, H, W, 3]` in [0, 1].
        mask: `[B, H, W]`, a constant.
        eps: Added to the squared distance: 1e-6 in Deep3D; a tiny value keeps the gradient of an
            exact match finite where the original has none.
        over: `batch` divides by all covered pixels (Deep3D), `image` averages per image first
            (3DMM-Fitting).
    """
    distance = ((image - target).square().sum(-1) + eps).sqrt() * mask
    if over == "batch":
        return distance.sum() / mask.sum().clamp_min(1)
    return (distance.sum((1, 2)) / mask.sum((1, 2)).clamp_min(1)).mean()


def feature_loss(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean cosine distance of feature rows `[B, C]`."""
    return (1 - functional.cosine_similarity(first, second, dim=-1)).mean()
