"""The adversarial training of StyleNeRF as a `TrainTask`.

Legend: B images of this rank, divided into rounds whose gradients add up. G, D, G_ema as in the
literature. Phases: `nfs.stylenerf.phases`.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nfs.geometry.cameras import orbit_cameras
from nfs.runtime.context import WorkerContext, no_sync, unwrap
from nfs.stylenerf.adaptive import AdaptiveAugment
from nfs.stylenerf.cameras import middle_camera
from nfs.stylenerf.discriminator import Discriminator
from nfs.stylenerf.evaluation import EvaluationSettings, GeneratorEvaluator
from nfs.stylenerf.export import export_generator
from nfs.stylenerf.generator import Generator, RenderOptions
from nfs.stylenerf.latents import Coded, Conditions, FakeInputs, draw_inputs
from nfs.stylenerf.losses import lazy_adam, reconstruction_loss
from nfs.stylenerf.phases import (
    Critic,
    PhaseLoss,
    discriminator_main,
    discriminator_r1,
    drop_gradients,
    generator_main,
    generator_path_length,
    idle_parameters,
    main_options,
    plain_options,
    touch,
)
from nfs.stylenerf.settings import GanSettings
from nfs.training.ema import Ema, ema_beta
from nfs.training.guard import guarded_step
from nfs.training.task import Evaluation

_RUNNING_MEANS = ("w_avg", "magnitude")


@dataclass
class _Side:
    """One of the two players: its network, and what updates it."""

    network: nn.Module
    wrapped: nn.Module
    """DDP, or the network itself: for passes whose gradients are wanted."""
    lr: float
    optimizer: torch.optim.Optimizer
    parameters: list[nn.Parameter]
    """What is trained."""


@dataclass(frozen=True)
class _Round:
    """One pass's part of this rank's batch."""

    real: Tensor
    """`[b, 3, R, R]` in [-1, 1] at the current resolution."""
    conditions: Conditions
    coded: Coded | None


@dataclass(frozen=True)
class _Moment:
    """What the clock decides for a step."""

    alpha: float
    adversarial: bool
    where: str


class StyleNerfTask:
    """Generator against discriminator.

    Args:
        generator: G, on any device.
        discriminator: D, on any device.
        settings: Numbers.
        card: Facts about data and configuration for the model card.
        evaluator: Measures and draws G_ema; by default a grid alone.
    """

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        settings: GanSettings,
        card: dict[str, Any] | None = None,
        evaluator: GeneratorEvaluator | None = None,
    ) -> None:
        self.G, self.D = generator, discriminator
        self.settings = settings
        self.card = card or {}
        self.evaluator = evaluator or GeneratorEvaluator(EvaluationSettings(settings.grid_size))
        self._evaluation: Evaluation | None = None

    def setup(self, context: WorkerContext) -> None:
        """Move, wrap and average the networks, make the optimisers."""
        settings = self.settings
        self.context, self.device = context, context.device
        self.G.to(self.device).train()
        self.D.to(self.device).train()
        self.G_ema = Ema(self.G)
        self.D_ema = Ema(self.D) if settings.discriminator_ema else None
        self.pl_mean = torch.zeros((), device=self.device)
        self.augment = AdaptiveAugment(settings.augment, settings.batch_size, self.device)
        interval = settings.pl_interval if settings.pl_weight > 0 else None
        self.g = self._side(context, self.G, settings.generator_lr, interval)
        interval = settings.r1_interval if settings.r1_gamma > 0 else None
        self.d = self._side(context, self.D, settings.discriminator_lr, interval)
        self._means = [
            buffer
            for name, buffer in self.G.named_buffers()
            if name.rsplit(".", 1)[-1] in _RUNNING_MEANS
        ]

    def _side(
        self, context: WorkerContext, network: nn.Module, lr: float, interval: int | None
    ) -> _Side:
        lr, betas = lazy_adam(lr, self.settings.betas, interval)
        parameters = [p for p in network.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(parameters, lr=lr, betas=betas, eps=1e-8)
        return _Side(network, context.wrap(network), lr, optimizer, parameters)

    def train_step(self, batch: dict[str, Tensor], samples_seen: int) -> dict[str, Tensor]:
        """Step G and D, each with its regulariser when it is due; D waits during a warm start.

        Args:
            batch: `image`: uint8 `[B, 3, R, R]`; with labels `label [B, c_dim]`; with known
                cameras `yaw_pitch [B, 2]`; for a warm start `code [B, z_dim]`.
            samples_seen: The clock.
        """
        settings = self.settings
        now = _Moment(
            settings.alpha(samples_seen),
            settings.adversarial(samples_seen),
            f"samples_seen={samples_seen}",
        )
        for side in (self.g, self.d):
            for group in side.optimizer.param_groups:
                group["lr"] = side.lr * settings.lr_scale(samples_seen)
        rounds = self._rounds(batch, samples_seen, now.alpha)
        fakes: list[Tensor] = []
        metrics = self._generator_main(rounds, fakes, now)
        if now.adversarial:
            if settings.pl_weight > 0 and settings.due(samples_seen, settings.pl_interval):
                metrics |= self._generator_path_length(rounds, now)
            metrics |= self._discriminator_main(rounds, fakes, now)
            if settings.r1_gamma > 0 and settings.due(samples_seen, settings.r1_interval):
                metrics |= self._discriminator_r1(rounds, now)
        self._follow(metrics, samples_seen)
        resolution = self.G.stage(now.alpha).image_resolution
        return metrics | {
            "growth/alpha": torch.tensor(now.alpha),
            "growth/resolution_px": torch.tensor(float(resolution)),
            "augment/p": torch.tensor(self.augment.p),
            "score/path_length_mean": self.pl_mean.clone(),
        }

    def prepare_evaluation(self, samples_seen: int) -> None:
        """Measure and draw with G_ema; every rank does its share."""
        G_ema = _generator(self.G_ema.module)
        alpha = self.settings.alpha(samples_seen)
        self._evaluation = self.evaluator.run(G_ema, alpha=alpha, samples_seen=samples_seen)

    def evaluate(self, samples_seen: int) -> Evaluation:
        """Return what `prepare_evaluation` found; measure now if it was not called."""
        if self._evaluation is None:
            self.prepare_evaluation(samples_seen)
        evaluation, self._evaluation = self._evaluation, None
        assert evaluation is not None
        return evaluation

    def state_dict(self) -> dict[str, Any]:
        """Return networks, averages, optimisers, and what the regularisers remember."""
        return {
            "G": self.G.state_dict(),
            "D": self.D.state_dict(),
            "G_ema": self.G_ema.module.state_dict(),
            "D_ema": None if self.D_ema is None else self.D_ema.module.state_dict(),
            "G_optimizer": self.g.optimizer.state_dict(),
            "D_optimizer": self.d.optimizer.state_dict(),
            "pl_mean": self.pl_mean,
            "augment": self.augment.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.G.load_state_dict(state["G"])
        self.D.load_state_dict(state["D"])
        self.G_ema.module.load_state_dict(state["G_ema"])
        if self.D_ema is not None:
            self.D_ema.module.load_state_dict(state["D_ema"])
        self.g.optimizer.load_state_dict(state["G_optimizer"])
        self.d.optimizer.load_state_dict(state["D_optimizer"])
        self.pl_mean = state["pl_mean"].to(self.device)
        self.augment.load_state_dict(state["augment"])

    def export(self, directory: Path) -> None:
        """Write G, G_ema and D as a checkpoint directory."""
        export_generator(
            directory,
            self.G,
            ema=_generator(self.G_ema.module),
            discriminator=self.D,
            card=self.card,
        )

    def _rounds(self, batch: dict[str, Tensor], samples_seen: int, alpha: float) -> list[_Round]:
        settings = self.settings
        real = self._real(batch["image"], alpha)
        size = len(real) // settings.num_rounds(len(real))
        rounds = []
        for first in range(0, len(real), size):
            rows = {name: value[first : first + size] for name, value in batch.items()}
            conditions = Conditions(
                c=rows.get("label"),
                yaw_pitch=rows["yaw_pitch"] if settings.image_cameras else None,
            )
            coded = self._coded(rows, settings.num_coded(samples_seen, size))
            rounds.append(_Round(real[first : first + size], conditions, coded))
        return rounds

    def _real(self, images: Tensor, alpha: float) -> Tensor:
        """Convert to [-1, 1] and resize to the stage: `[B, 3, r, r]`."""
        real = images.float() / 127.5 - 1
        size = self.G.stage(alpha).image_resolution
        if real.shape[-1] != size:
            real = F.interpolate(real, size=(size, size), mode="area")
        return real

    def _coded(self, batch: dict[str, Tensor], count: int) -> Coded | None:
        if count == 0:
            return None
        codes = batch["code"][:count]
        if "yaw_pitch" in batch:
            yaw, pitch = batch["yaw_pitch"][:count].unbind(dim=1)
            return Coded(codes, orbit_cameras(yaw, pitch, sum(self.G.spec.cameras.radius) / 2))
        return Coded(codes, middle_camera(self.G.spec.cameras, codes))

    def _draw(self, part: _Round, count: int, coded: Coded | None = None) -> FakeInputs:
        return draw_inputs(
            self.G,
            count,
            conditions=part.conditions,
            mixing_prob=self.settings.style_mixing_prob,
            coded=coded,
        )

    def _critic(self, network: nn.Module, now: _Moment) -> Critic:
        return Critic(network, now.alpha, self.augment)

    def _generator_main(
        self, rounds: list[_Round], fakes: list[Tensor], now: _Moment
    ) -> dict[str, Tensor]:
        """Step G; the images go to `fakes`."""
        critic = self._critic(self.D, now)

        def loss(part: _Round) -> PhaseLoss:
            inputs = self._draw(part, len(part.real), part.coded)
            rendering = inputs.render(self.g.wrapped, main_options(self.settings, now.alpha))
            fakes.append(rendering.image.detach())
            terms, total = {}, torch.zeros((), device=self.device)
            if now.adversarial:
                outcome = generator_main(rendering, critic, self.settings, inputs.c)
                terms, total = dict(outcome.terms), outcome.total
            if part.coded is not None:
                first = slice(len(part.coded.codes))
                error = reconstruction_loss(rendering.image[first], part.real[first])
                terms["loss/g_reconstruction"] = error
                total = total + self.settings.reconstruction_weight * error
            observed = {
                "render/opacity": rendering.opacity.detach().mean(),
                "render/depth_std": rendering.depth.detach().std(),
            }
            return PhaseLoss(total, terms, observed)

        return self._update(self.g, "g_main", [partial(loss, part) for part in rounds], now)

    def _generator_path_length(self, rounds: list[_Round], now: _Moment) -> dict[str, Tensor]:
        def loss(part: _Round) -> PhaseLoss:
            count = max(1, len(part.real) // self.settings.pl_batch_shrink)
            inputs = self._draw(part, count)
            rendering = inputs.render(self.g.wrapped, plain_options(self.settings, now.alpha))
            noise = torch.randn_like(rendering.image)
            outcome, mean = generator_path_length(rendering, noise, self.pl_mean, self.settings)
            self.pl_mean = mean
            return outcome

        return self._update(self.g, "g_reg", [partial(loss, part) for part in rounds], now)

    def _discriminator_main(
        self, rounds: list[_Round], fakes: list[Tensor], now: _Moment
    ) -> dict[str, Tensor]:
        """Step D, on the given `fakes` where they are shared, else on new ones."""
        critic = self._critic(self.d.wrapped, now)
        options = plain_options(self.settings, now.alpha)

        def loss(part: _Round, fake: Tensor) -> PhaseLoss:
            labels = None
            if not self.settings.share_fakes:
                fake, c_fake = self._new_fakes(part, options)
                if c_fake is not None and part.conditions.c is not None:
                    labels = (c_fake, part.conditions.c)
            return discriminator_main(fake, part.real, critic, self.settings, labels)

        losses = [partial(loss, part, fake) for part, fake in zip(rounds, fakes, strict=True)]
        return self._update(self.d, "d_main", losses, now)

    @torch.no_grad()
    def _new_fakes(self, part: _Round, options: RenderOptions) -> tuple[Tensor, Tensor | None]:
        inputs = self._draw(part, len(part.real))
        return inputs.render(self.G, options).image, inputs.c

    def _discriminator_r1(self, rounds: list[_Round], now: _Moment) -> dict[str, Tensor]:
        critic = self._critic(self.d.wrapped, now)

        def loss(part: _Round) -> PhaseLoss:
            return discriminator_r1(part.real, critic, self.settings, part.conditions.c)

        return self._update(self.d, "d_reg", [partial(loss, part) for part in rounds], now)

    def _update(
        self, side: _Side, phase: str, losses: Sequence[Callable[[], PhaseLoss]], now: _Moment
    ) -> dict[str, Tensor]:
        """Step one network on the mean loss of all rounds."""
        start = time.monotonic()
        for parameter in self.g.parameters + self.d.parameters:
            parameter.requires_grad_(False)
        for parameter in side.parameters:
            parameter.requires_grad_(True)
        side.optimizer.zero_grad(set_to_none=True)
        idle = self._idle(side, now.alpha)
        terms: list[dict[str, Tensor]] = []
        observed: list[dict[str, Tensor]] = []
        for number, loss in enumerate(losses, start=1):
            # Gradients travel between ranks once, with the last round.
            with nullcontext() if number == len(losses) else no_sync(side.wrapped):
                outcome = loss()
                torch.autograd.backward(outcome.total / len(losses) + touch(idle))
            terms.append({name: term.detach() for name, term in outcome.terms.items()})
            observed.append(outcome.observed)
        drop_gradients(idle)
        norm = guarded_step(side.optimizer, _mean(terms), side.parameters, now.where)
        return {
            **_mean(terms),
            **_mean(observed),
            f"grad/{phase}_norm": norm,
            f"time/{phase}_s": torch.tensor(time.monotonic() - start),
        }

    def _idle(self, side: _Side, alpha: float) -> list[nn.Parameter]:
        resolution = self.G.stage(alpha).image_resolution
        if side is self.g:
            return idle_parameters(self.G.upsampler.blocks, resolution)
        return idle_parameters(self.D.blocks, self.D.first_resolution(alpha, resolution))

    def _follow(self, metrics: dict[str, Tensor], samples_seen: int) -> None:
        """Agree with the other ranks on running means, then let averages and p follow.

        The mean over ranks of running means is the running mean of the whole batch.
        """
        sign = metrics.get("score/real_sign")
        shared = [*self._means, self.pl_mean]
        self.context.average(shared if sign is None else [*shared, sign])
        if sign is not None:
            self.augment.observe(sign)
        beta = ema_beta(self.settings.batch_size, self.settings.ema_half_life_kimg(samples_seen))
        self.G_ema.update(self.G, beta)
        if self.D_ema is not None:
            self.D_ema.update(self.D, beta)


def _mean(rounds: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([values[name] for values in rounds]).mean() for name in rounds[0]}


def _generator(module: nn.Module) -> Generator:
    inner = unwrap(module)
    assert isinstance(inner, Generator)
    return inner
