"""Adversarial losses and regularisers (spec/stylenerf.md 2.8)."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def real_loss(logits: Tensor, label_smooth: float = 0.0) -> Tensor:
    """Mean of `softplus(-logits)`: how little they look real; the generator's loss on its fakes.

    Args:
        logits: `[B, 1]`.
        label_smooth: Share of the opposite loss.
    """
    loss = F.softplus(-logits).mean()
    if label_smooth == 0:
        return loss
    return (1 - label_smooth) * loss + label_smooth * F.softplus(logits).mean()


def fake_loss(logits: Tensor) -> Tensor:
    """Mean of `softplus(logits)`: how little they look fake."""
    return F.softplus(logits).mean()


def reconstruction_loss(fake: Tensor, real: Tensor) -> Tensor:
    """Mean squared difference of images `[B, 3, R, R]`."""
    return (fake - real).square().mean()


def r1_penalty(real_logits: Tensor, real: Tensor, gamma: float) -> Tensor:
    """R1 penalty (Mescheder et al. 2018): `gamma / 2` times the squared gradient, mean over B.

    Args:
        real_logits: `D(real)`, `[B, 1]`.
        real: The images, requiring gradients, `[B, 3, R, R]`.
        gamma: Weight.
    """
    (gradient,) = torch.autograd.grad(real_logits.sum(), real, create_graph=True)
    return gradient.float().square().sum(dim=(1, 2, 3)).mean() * (gamma / 2)


def path_lengths(image: Tensor, ws: Tensor, noise: Tensor) -> Tensor:
    """Return how far images move per unit of style, `[B]` (StyleGAN2, section 3.2).

    Args:
        image: `[B, 3, R, R]`, made from `ws`.
        ws: Styles `[B, num_ws, w_dim]`.
        noise: Standard normal direction `[B, 3, R, R]`.
    """
    noise = noise / math.sqrt(image.shape[2] * image.shape[3])
    (gradient,) = torch.autograd.grad((image * noise).sum(), ws, create_graph=True)
    return gradient.float().square().sum(dim=2).mean(dim=1).sqrt()


def lazy_adam(
    lr: float, betas: tuple[float, float], interval: int | None
) -> tuple[float, tuple[float, float]]:
    """Return Adam's rate and betas when a regulariser makes one extra step every `interval`.

    StyleGAN2, appendix B: with c = interval / (interval + 1), `lr * c` and `betas ** c`.
    """
    if interval is None:
        return lr, betas
    factor = interval / (interval + 1)
    return lr * factor, (betas[0] ** factor, betas[1] ** factor)
