"""The four phases of a StyleNeRF step as losses (spec/stylenerf.md 2.8).

Gmain: adversarial loss of G, with the path regulariser. Greg: path length. Dmain: logistic loss
of D. Dreg: R1. What is checked against recordings of the original is what is trained: both call
these functions.

Legend: B images of one pass, R current resolution.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from nfs.stylenerf.generator import Rendering, RenderOptions
from nfs.stylenerf.losses import fake_loss, path_lengths, r1_penalty, real_loss
from nfs.stylenerf.settings import GanSettings

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


@dataclass(frozen=True)
class Critic:
    """The discriminator as a phase sees it.

    Attributes:
        network: The discriminator, or its DDP wrapper where its gradients are wanted.
        alpha: Growth stage.
        augment: Distorts images before they are judged.
    """

    network: nn.Module
    alpha: float
    augment: Augment = _same

    def __call__(self, image: Tensor, c: Tensor | None = None) -> Tensor:
        """Return logits `[B, 1]` of images `[B, 3, R, R]` with labels `[B, c_dim]`."""
        labels = {} if c is None else {"c": c}
        logits: Tensor = self.network(self.augment(image), alpha=self.alpha, **labels)
        return logits


def main_options(settings: GanSettings, alpha: float) -> RenderOptions:
    """Return how Gmain renders: with the rays of the path regulariser."""
    return RenderOptions(
        alpha=alpha, path_pixels=settings.path_pixels, path_fade=settings.path_fade
    )


def plain_options(settings: GanSettings, alpha: float) -> RenderOptions:
    """Return how the other phases render.

    The original renders the regulariser's rays in every phase, though only Gmain uses them.
    """
    if settings.path_in_all_phases:
        return main_options(settings, alpha)
    return RenderOptions(alpha=alpha)


def generator_main(
    rendering: Rendering, critic: Critic, settings: GanSettings, c: Tensor | None = None
) -> PhaseLoss:
    """Return Gmain: fakes should look real, and the 2-D stack should agree with the field."""
    logits = critic(rendering.image, c)
    terms = {"loss/g": real_loss(logits, settings.label_smooth)}
    total = terms["loss/g"]
    if rendering.path_loss is not None:
        terms["loss/g_path"] = rendering.path_loss.mean()
        total = total + settings.path_weight * terms["loss/g_path"]
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
    fake: Tensor,
    real: Tensor,
    critic: Critic,
    settings: GanSettings,
    labels: tuple[Tensor, Tensor] | None = None,
) -> PhaseLoss:
    """Return Dmain: fakes down, reals up.

    Args:
        fake: `[B, 3, R, R]`, detached.
        real: `[B, 3, R, R]`.
        critic: The discriminator.
        settings: Numbers.
        labels: Labels of fakes and reals, or None.
    """
    c_fake, c_real = labels or (None, None)
    fake_logits, real_logits = critic(fake, c_fake), critic(real, c_real)
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
    return PhaseLoss(total, terms, observed)


def discriminator_r1(
    real: Tensor, critic: Critic, settings: GanSettings, c: Tensor | None = None
) -> PhaseLoss:
    """Return Dreg: the slope of D at real images `[B, 3, R, R]` should be small."""
    real = real.detach().requires_grad_(True)
    logits = critic(real, c)
    penalty = r1_penalty(logits, real, settings.r1_gamma)
    # Keeps the last bias, which the penalty does not depend on, in the graph for DDP.
    total = penalty * settings.r1_interval + 0 * logits.sum()
    return PhaseLoss(total, {"loss/d_r1": penalty})


def drop_gradients(parameters: list[nn.Parameter]) -> None:
    """Drop gradients of idle blocks, so that Adam's statistics start when the block does."""
    for parameter in parameters:
        parameter.grad = None


def touch(parameters: list[nn.Parameter]) -> Tensor | float:
    """Zero that depends on `parameters`, so that DDP does not wait for gradients of idle blocks."""
    return sum((0 * parameter.sum() for parameter in parameters), start=0.0)


def idle_parameters(blocks: nn.ModuleDict, active_resolution: int) -> list[nn.Parameter]:
    """Return the parameters of blocks above the active resolution."""
    return [
        parameter
        for name, block in blocks.items()
        if int(name) > active_resolution
        for parameter in block.parameters()
    ]
