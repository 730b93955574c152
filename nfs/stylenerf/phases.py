"""The four phases of a StyleNeRF step as losses (spec/stylenerf.md 2.8).

Gmain: adversarial loss of G, with the path regulariser. Greg: path length. Dmain: logistic loss
of D. Dreg: R1. What is checked against recordings of the original is what is trained: both call
these functions.

Legend: B images of one pass, R current resolution.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from nfs.stylenerf.generator import Rendering, RenderOptions
from nfs.stylenerf.losses import fake_loss, path_lengths, r1_penalty, real_loss
from nfs.stylenerf.settings import GanSettings, Precision

Augment = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class PhaseLoss:
    """Outcome of a phase on one pass."""

    total: Tensor
    """What is backpropagated."""
    terms: dict[str, Tensor]
    """Parts by metric key; all must be finite."""
    observed: dict[str, Tensor] = field(default_factory=dict)
    """Detached scalars by metric key that are not part of the loss."""


def _same(images: Tensor) -> Tensor:
    return images


_HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def mixed(precision: Precision, device: torch.device) -> torch.autocast:
    """Return a context in which products are computed in `precision`."""
    dtype = _HALVES.get(precision, torch.bfloat16)
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")


@dataclass(frozen=True)
class Fakes:
    """Generated images as the discriminator gets them."""

    image: Tensor
    """`[B, 3, R, R]`."""
    image_low: Tensor
    """`[B, 3, r, r]` the low-resolution images they came with."""
    c: Tensor | None
    """Labels `[B, c_dim]`."""
    position: Tensor
    """`[B, 3]` where their cameras stand: see `nfs.stylenerf.cameras.CameraDraw`."""

    def detach(self) -> "Fakes":
        """Return the images cut off from the generator."""
        return replace(self, image=self.image.detach(), image_low=self.image_low.detach())


@dataclass(frozen=True)
class Critic:
    """The discriminator as a phase sees it.

    Attributes:
        network: The discriminator, or its DDP wrapper where its gradients are wanted.
        alpha: Growth stage.
        augment: Distorts images before they are judged.
        predicts_position: The discriminator predicts where cameras stand.
        precision: Of the discriminator's products; losses are single.
    """

    network: nn.Module
    alpha: float
    augment: Augment = _same
    predicts_position: bool = False
    precision: Precision = "fp32"

    def reals(self, images: Tensor, c: Tensor | None = None) -> Tensor:
        """Return logits `[B, 1]` of images `[B, 3, R, R]` with labels `[B, c_dim]`."""
        images = self.augment(images)
        with mixed(self.precision, images.device):
            logits: Tensor = self.network(images, alpha=self.alpha, c=c)
        return logits

    def fakes(self, fakes: Fakes) -> tuple[Tensor, dict[str, Tensor]]:
        """Return logits `[B, 1]` (`[2 B, 1]` of dual discriminators) and the camera loss, if any.

        The camera loss is the squared difference of predicted and true positions.
        """
        image = self.augment(fakes.image)
        known = {"alpha": self.alpha, "image_low": fakes.image_low, "c": fakes.c}
        with mixed(self.precision, image.device):
            if not self.predicts_position:
                logits: Tensor = self.network(image, **known)
                return logits, {}
            logits, position = self.network(image, **known, return_camera=True)
        return logits, {"camera": (position - fakes.position).square().mean()}


def main_options(settings: GanSettings, alpha: float, fade: Tensor | None = None) -> RenderOptions:
    """Return how Gmain renders: with the rays of the path regulariser.

    Args:
        settings: Numbers.
        alpha: Growth stage.
        fade: Weight of the newest level, in place of the one that `alpha` gives.
    """
    return RenderOptions(
        alpha=alpha, fade=fade, path_pixels=settings.path_pixels, path_fade=settings.path_fade
    )


def plain_options(settings: GanSettings, alpha: float, fade: Tensor | None = None) -> RenderOptions:
    """Return how the other phases render; arguments as `main_options`.

    The original renders the regulariser's rays in every phase, though only Gmain uses them.
    """
    if settings.path_in_all_phases:
        return main_options(settings, alpha, fade)
    return RenderOptions(alpha=alpha, fade=fade)


def generator_main(
    rendering: Rendering, fakes: Fakes, critic: Critic, settings: GanSettings
) -> PhaseLoss:
    """Return Gmain: fakes should look real, and the 2-D stack should agree with the field.

    Args:
        rendering: What the generator made.
        fakes: Its images, with labels and cameras.
        critic: The discriminator.
        settings: Numbers.
    """
    logits, extra = critic.fakes(fakes)
    terms = {"loss/g": real_loss(logits, settings.label_smooth)}
    total = terms["loss/g"]
    if rendering.path_loss is not None:
        terms["loss/g_path"] = rendering.path_loss.mean()
        total = total + settings.path_weight * terms["loss/g_path"]
    for name, value in extra.items():
        terms[f"loss/g_{name}"] = value
        total = total + settings.camera_weight * value
    return PhaseLoss(total, terms)


def generator_path_length(
    rendering: Rendering, noise: Tensor, pl_mean: Tensor, settings: GanSettings
) -> tuple[PhaseLoss, Tensor]:
    """Return Greg: images should move evenly with the style; and the new mean length.

    Args:
        rendering: Fakes, connected to their `ws`.
        noise: Standard normal, shaped like the images.
        pl_mean: Running mean of the path length, a scalar.
        settings: Numbers.
    """
    lengths = path_lengths(rendering.image, rendering.ws, noise)
    mean = pl_mean.lerp(lengths.mean(), settings.pl_decay)
    penalty = (lengths - mean).square().mean()
    # Keeps parameters that do not bend the path, such as biases, in the graph for DDP.
    total = penalty * settings.pl_weight * settings.pl_interval + 0 * rendering.image.mean()
    observed = {"score/path_length": lengths.detach().mean()}
    return PhaseLoss(total, {"loss/g_path_length": penalty}, observed), mean.detach()


def discriminator_main(
    fakes: Fakes,
    real: Tensor,
    critic: Critic,
    settings: GanSettings,
    c: Tensor | None = None,
) -> PhaseLoss:
    """Return Dmain: fakes down, reals up.

    Args:
        fakes: Detached.
        real: `[B, 3, R, R]`.
        critic: The discriminator.
        settings: Numbers.
        c: Labels of the real images `[B, c_dim]`.
    """
    fake_logits, extra = critic.fakes(fakes)
    real_logits = critic.reals(real, c)
    terms = {
        "loss/d_fake": fake_loss(fake_logits),
        "loss/d_real": real_loss(real_logits, settings.label_smooth),
    }
    total = terms["loss/d_fake"] + terms["loss/d_real"]
    real_logits = real_logits.detach()
    observed = {
        "loss/d": total.detach(),
        "score/fake": fake_logits.detach().mean(),
        "score/real": real_logits.mean(),
        "score/real_sign": real_logits.sign().mean(),
    }
    for name, value in extra.items():
        terms[f"loss/d_{name}"] = value
        total = total + settings.camera_weight * value
    return PhaseLoss(total, terms, observed)


def discriminator_r1(
    real: Tensor, critic: Critic, settings: GanSettings, c: Tensor | None = None
) -> PhaseLoss:
    """Return Dreg: the slope of D at real images `[B, 3, R, R]` should be small."""
    real = real.detach().requires_grad_(True)
    logits = critic.reals(real, c)
    penalty = r1_penalty(logits, real, settings.r1_gamma)
    # Keeps the last bias, which the penalty does not depend on, in the graph for DDP.
    total = penalty * settings.r1_interval + 0 * logits.sum()
    return PhaseLoss(total, {"loss/d_r1": penalty})
