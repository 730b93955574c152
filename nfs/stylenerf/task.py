"""The adversarial training of StyleNeRF as a `TrainTask`.

Legend: B images of this rank. G, D, G_ema as in the literature. Phases: spec/stylenerf.md 2.8.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nfs.geometry.cameras import orbit_cameras
from nfs.runtime.context import WorkerContext, unwrap
from nfs.stylenerf.cameras import draw_cameras, middle_camera
from nfs.stylenerf.discriminator import Discriminator
from nfs.stylenerf.evaluation import evaluate_generator
from nfs.stylenerf.export import export_generator
from nfs.stylenerf.generator import Generator, Rendering, RenderOptions
from nfs.stylenerf.losses import (
    discriminator_loss,
    generator_loss,
    lazy_adam,
    r1_penalty,
    reconstruction_loss,
)
from nfs.training.ema import Ema, ema_beta
from nfs.training.guard import guarded_step
from nfs.training.task import Evaluation


@dataclass(frozen=True)
class GanSettings:
    """Numbers of the training; see `nfs.config.train_stylenerf` for units and meaning."""

    batch_size: int
    """Global batch."""
    total_samples: int = 25_000_000
    generator_lr: float = 0.0025
    discriminator_lr: float = 0.0025
    final_lr_scale: float = 1.0
    betas: tuple[float, float] = (0.0, 0.99)
    r1_gamma: float = 0.5
    r1_interval: int = 16
    style_mixing_prob: float = 0.9
    share_fakes: bool = False
    ema_kimg: float = 20.0
    ema_rampup: float | None = None
    warm_start_kimg: float = 0.0
    reconstruction_weight: float = 0.0
    growth_start_kimg: float = 0.0
    growth_end_kimg: float = 0.0
    grid_size: int = 8

    def alpha(self, samples_seen: int) -> float:
        """Return the growth stage in [0, 1]."""
        start, end = 1000 * self.growth_start_kimg, 1000 * self.growth_end_kimg
        if samples_seen >= end:
            return 1.0
        return max(0.0, (samples_seen - start) / (end - start)) if end > start else 0.0

    def lr_scale(self, samples_seen: int) -> float:
        """Return the factor of both learning rates."""
        share = min(1.0, samples_seen / self.total_samples)
        return 1.0 + share * (self.final_lr_scale - 1.0)

    def adversarial(self, samples_seen: int) -> bool:
        """Return whether the warm start is over."""
        return samples_seen >= 1000 * self.warm_start_kimg

    def num_coded(self, samples_seen: int, count: int) -> int:
        """Return how many of `count` fakes are made from the codes of real images."""
        if not self.adversarial(samples_seen):
            return count
        return count // 2 if self.reconstruction_weight > 0 else 0


@dataclass(frozen=True)
class _Coded:
    """Fakes that reproduce the first images of a batch."""

    codes: Tensor
    """`[K, z_dim]`."""
    cam2world: Tensor
    """`[K, 4, 4]`, or `[1, 4, 4]` for all."""


class StyleNerfTask:
    """Generator against discriminator.

    Args:
        generator: G, on any device.
        discriminator: D, on any device.
        settings: Numbers.
        card: Facts about data and configuration for the model card.
    """

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        settings: GanSettings,
        card: dict[str, Any] | None = None,
    ) -> None:
        self.G, self.D = generator, discriminator
        self.settings = settings
        self.card = card or {}

    def setup(self, context: WorkerContext) -> None:
        """Move, wrap and average the networks, make the optimisers."""
        settings = self.settings
        self.device = context.device
        self.G.to(self.device).train()
        self.D.to(self.device).train()
        self.G_ema = Ema(self.G)
        self._G = context.wrap(self.G)
        self._D = context.wrap(self.D)
        self.G, self.D = _generator(self._G), _discriminator(self._D)
        lr, betas = lazy_adam(settings.discriminator_lr, settings.betas, settings.r1_interval)
        self.D_lr = lr
        self.D_optimizer = torch.optim.Adam(self.D.parameters(), lr=lr, betas=betas, eps=1e-8)
        # Without a lazy regulariser of G there is no extra step to correct for.
        lr, betas = lazy_adam(settings.generator_lr, settings.betas, None)
        self.G_lr = lr
        self.G_optimizer = torch.optim.Adam(self.G.parameters(), lr=lr, betas=betas, eps=1e-8)

    def train_step(self, batch: dict[str, Tensor], samples_seen: int) -> dict[str, Tensor]:
        """Step G, then D, then D's R1 penalty when it is due; D waits during a warm start.

        Args:
            batch: `image`: uint8 `[B, 3, R, R]`; for a warm start `code`: `[B, z_dim]` and, if
                cameras are known, `yaw_pitch`: `[B, 2]`.
            samples_seen: The clock.
        """
        settings = self.settings
        where = f"samples_seen={samples_seen}"
        alpha = settings.alpha(samples_seen)
        self._set_rates(settings.lr_scale(samples_seen))
        real = self._real(batch["image"], alpha)
        adversarial = settings.adversarial(samples_seen)
        coded = self._coded(batch, settings.num_coded(samples_seen, len(real)))
        fake, metrics = self._step_generator(
            real, coded, alpha=alpha, adversarial=adversarial, where=where
        )
        if adversarial and not settings.share_fakes:
            with torch.no_grad():
                fake = self._fakes(self.G, len(real), alpha, None).image
        if adversarial:
            metrics |= self._step_discriminator(fake.detach(), real, alpha, where)
        if adversarial and (samples_seen // settings.batch_size) % settings.r1_interval == 0:
            metrics |= self._step_r1(real, alpha, where)
        half_life = settings.ema_kimg
        if settings.ema_rampup is not None:
            half_life = min(half_life, samples_seen * settings.ema_rampup / 1000)
        self.G_ema.update(self.G, ema_beta(settings.batch_size, half_life))
        return metrics

    def evaluate(self, samples_seen: int) -> Evaluation:
        """Draw fixed latents from fixed cameras with G_ema; measure opacity and depth."""
        G_ema = _generator(self.G_ema.module)
        alpha = self.settings.alpha(samples_seen)
        return evaluate_generator(G_ema, count=self.settings.grid_size, alpha=alpha)

    def state_dict(self) -> dict[str, Any]:
        """Return networks, averages and optimisers."""
        return {
            "G": self.G.state_dict(),
            "D": self.D.state_dict(),
            "G_ema": self.G_ema.module.state_dict(),
            "G_optimizer": self.G_optimizer.state_dict(),
            "D_optimizer": self.D_optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.G.load_state_dict(state["G"])
        self.D.load_state_dict(state["D"])
        self.G_ema.module.load_state_dict(state["G_ema"])
        self.G_optimizer.load_state_dict(state["G_optimizer"])
        self.D_optimizer.load_state_dict(state["D_optimizer"])

    def export(self, directory: Path) -> None:
        """Write G, G_ema and D as a checkpoint directory."""
        export_generator(
            directory,
            self.G,
            ema=_generator(self.G_ema.module),
            discriminator=self.D,
            card=self.card,
        )

    def _set_rates(self, scale: float) -> None:
        for optimizer, lr in ((self.G_optimizer, self.G_lr), (self.D_optimizer, self.D_lr)):
            for group in optimizer.param_groups:
                group["lr"] = lr * scale

    def _coded(self, batch: dict[str, Tensor], count: int) -> _Coded | None:
        if count == 0:
            return None
        codes = batch["code"][:count]
        if "yaw_pitch" in batch:
            yaw, pitch = batch["yaw_pitch"][:count].unbind(dim=1)
            return _Coded(codes, orbit_cameras(yaw, pitch, sum(self.G.spec.cameras.radius) / 2))
        return _Coded(codes, middle_camera(self.G.spec.cameras, codes))

    def _real(self, images: Tensor, alpha: float) -> Tensor:
        """Convert to [-1, 1] and resize to the stage: `[B, 3, r, r]`."""
        real = images.float() / 127.5 - 1
        size = self.G.stage(alpha).image_resolution
        if real.shape[-1] != size:
            real = F.interpolate(real, size=(size, size), mode="area")
        return real

    def _fakes(
        self, network: nn.Module, count: int, alpha: float, coded: _Coded | None
    ) -> Rendering:
        """Draw latents, cameras and mixing from torch's global generator and render.

        The first rows are `coded`: they reproduce real images.

        DDP expects a backward pass after each forward with gradients, and skips the exchange of
        buffers after one without: so `network` is the wrapper only where gradients are wanted.
        """
        z = torch.randn(count, self.G.z_dim, device=self.device)
        code = torch.randn(count, self.G.background_dim, device=self.device)
        cameras = draw_cameras(self.G.spec.cameras, count, device=self.device)
        background = cameras.clone()
        if coded is not None:
            first = slice(len(coded.codes))
            z[first], cameras[first] = coded.codes, coded.cam2world
            code[first] = coded.codes[:, : self.G.background_dim]
            # In an aligned crop the background stays where it is when the head turns.
            background[first] = self.G.frozen_background_camera(1)
        mixing = None
        if coded is None and float(torch.rand(())) < self.settings.style_mixing_prob:
            cutoff = int(torch.randint(1, self.G.num_ws, ()))
            mixing = (torch.randn(count, self.G.z_dim, device=self.device), cutoff)
        rendering: Rendering = network(
            z,
            cameras,
            background_code=code,
            mixing=mixing,
            options=RenderOptions(alpha=alpha, background_cam2world=background),
        )
        return rendering

    def _step_generator(
        self, real: Tensor, coded: _Coded | None, *, alpha: float, adversarial: bool, where: str
    ) -> tuple[Tensor, dict[str, Tensor]]:
        self.D.requires_grad_(False)
        self.G.requires_grad_(True)
        self.G_optimizer.zero_grad(set_to_none=True)
        rendering = self._fakes(self._G, len(real), alpha, coded)
        terms: dict[str, Tensor] = {}
        total = torch.zeros((), device=self.device)
        if adversarial:
            terms["loss/g"] = generator_loss(self.D(rendering.image, alpha=alpha))
            total = total + terms["loss/g"]
        if coded is not None:
            first = slice(len(coded.codes))
            error = reconstruction_loss(rendering.image[first], real[first])
            terms["loss/g_reconstruction"] = error
            total = total + self.settings.reconstruction_weight * error
        idle = list(self._idle(self.G.upsampler.blocks, self.G.stage(alpha).image_resolution))
        torch.autograd.backward(total + _touch(idle))
        _forget(idle)
        norm = guarded_step(self.G_optimizer, terms, self.G.parameters(), where)
        opacity = rendering.opacity.detach()
        metrics = {
            **{name: term.detach() for name, term in terms.items()},
            "grad/g_norm": norm,
            "render/opacity": opacity.mean(),
            "render/depth_std": rendering.depth.detach().std(),
            "growth/alpha": torch.tensor(alpha),
        }
        return rendering.image, metrics

    def _step_discriminator(
        self, fake: Tensor, real: Tensor, alpha: float, where: str
    ) -> dict[str, Tensor]:
        self.G.requires_grad_(False)
        self.D.requires_grad_(True)
        self.D_optimizer.zero_grad(set_to_none=True)
        fake_logits, real_logits = self._D(fake, alpha=alpha), self._D(real, alpha=alpha)
        loss = discriminator_loss(fake_logits, real_logits)
        norm = self._backward_discriminator(loss, alpha, {"loss/d": loss}, where)
        return {
            "loss/d": loss.detach(),
            "grad/d_norm": norm,
            "score/fake": fake_logits.detach().mean(),
            "score/real": real_logits.detach().mean(),
        }

    def _step_r1(self, real: Tensor, alpha: float, where: str) -> dict[str, Tensor]:
        settings = self.settings
        self.D_optimizer.zero_grad(set_to_none=True)
        real = real.detach().requires_grad_(True)
        logits = self._D(real, alpha=alpha)
        penalty = r1_penalty(logits, real, settings.r1_gamma)
        # Keeps the last bias, which the penalty does not depend on, in the graph for DDP.
        loss = penalty * settings.r1_interval + 0 * logits.sum()
        self._backward_discriminator(loss, alpha, {"loss/d_r1": penalty}, where)
        return {"loss/d_r1": penalty.detach()}

    def _backward_discriminator(
        self, loss: Tensor, alpha: float, terms: dict[str, Tensor], where: str
    ) -> Tensor:
        first = self.D.first_resolution(alpha, self.G.stage(alpha).image_resolution)
        idle = list(self._idle(self.D.blocks, first))
        torch.autograd.backward(loss + _touch(idle))
        _forget(idle)
        return guarded_step(self.D_optimizer, terms, self.D.parameters(), where)

    @staticmethod
    def _idle(blocks: nn.ModuleDict, active_resolution: int) -> Iterator[nn.Parameter]:
        """Yield parameters of blocks above the active resolution."""
        for name, block in blocks.items():
            if int(name) > active_resolution:
                yield from block.parameters()


def _touch(parameters: list[nn.Parameter]) -> Tensor | float:
    """Zero that depends on `parameters`, so that DDP does not wait for gradients of idle blocks."""
    return sum((0 * parameter.sum() for parameter in parameters), start=0.0)


def _forget(parameters: list[nn.Parameter]) -> None:
    """Drop gradients of idle blocks, so that Adam's statistics start when the block does."""
    for parameter in parameters:
        parameter.grad = None


def _generator(module: nn.Module) -> Generator:
    inner = unwrap(module)
    assert isinstance(inner, Generator)
    return inner


def _discriminator(module: nn.Module) -> Discriminator:
    inner = unwrap(module)
    assert isinstance(inner, Discriminator)
    return inner
