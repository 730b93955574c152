"""Adversarial losses (spec/stylenerf.md 2.8)."""

import torch
from torch import Tensor
from torch.nn import functional as F


def generator_loss(fake_logits: Tensor) -> Tensor:
    """Non-saturating loss of the generator: mean of `softplus(-D(fake))`."""
    return F.softplus(-fake_logits).mean()


def discriminator_loss(fake_logits: Tensor, real_logits: Tensor) -> Tensor:
    """Logistic loss of the discriminator: fakes down, reals up."""
    return F.softplus(fake_logits).mean() + F.softplus(-real_logits).mean()


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
    return gradient.square().sum(dim=(1, 2, 3)).mean() * (gamma / 2)


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
