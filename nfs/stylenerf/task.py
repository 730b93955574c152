"""The adversarial training of StyleNeRF as a `TrainTask`.

Legend: B images of this rank, divided into rounds whose gradients add up. G, D, G_ema as in the
literature. Phases: `nfs.stylenerf.phases`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nfs.runtime.context import WorkerContext, unwrap
from nfs.stylenerf.adaptive import AdaptiveAugment
from nfs.stylenerf.discriminator import Discriminator
from nfs.stylenerf.evaluation import EvaluationSettings, GeneratorEvaluator
from nfs.stylenerf.export import export_generator
from nfs.stylenerf.generator import Generator, Rendering, RenderOptions
from nfs.stylenerf.latents import Coded, FakeInputs, draw_inputs
from nfs.stylenerf.losses import reconstruction_loss
from nfs.stylenerf.phases import (
    Critic,
    Fakes,
    PhaseLoss,
    discriminator_main,
    discriminator_r1,
    generator_main,
    generator_path_length,
    main_options,
    plain_options,
)
from nfs.stylenerf.players import Player, block_parameters, colour_parameters
from nfs.stylenerf.rounds import Round, divide
from nfs.stylenerf.schedule import growth_levels, whole_stage
from nfs.stylenerf.settings import GanSettings
from nfs.training.ema import Ema, ema_beta
from nfs.training.task import Evaluation

_RUNNING_MEANS = ("w_avg", "magnitude")


@dataclass(frozen=True)
class _Moment:
    """What the clock decides for a step."""

    alpha: float
    """Growth stage; perhaps any value of it, with the `fade` of the moment."""
    fade: Tensor | None
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
        initial_ema: State dict that G_ema starts from; None: as G.
    """

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        settings: GanSettings,
        card: dict[str, Any] | None = None,
        evaluator: GeneratorEvaluator | None = None,
        initial_ema: dict[str, Tensor] | None = None,
    ) -> None:
        self.G, self.D = generator, discriminator
        self.settings = settings
        self.card = card or {}
        self.initial_ema = initial_ema
        self.evaluator = evaluator or GeneratorEvaluator(EvaluationSettings(settings.grid_size))
        self._evaluation: Evaluation | None = None

    def setup(self, context: WorkerContext) -> None:
        """Move, wrap and average the networks, make the optimisers."""
        settings = self.settings
        self.context, self.device = context, context.device
        speed = settings.speed
        self.G.to(self.device).train()
        self.G.recompute_field = speed.recompute_field
        self.D.to(self.device).train()
        if speed.channels_last:
            self.D.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's stub
        self.G_ema = Ema(self.G)
        if self.initial_ema is not None:
            self.G_ema.module.load_state_dict(self.initial_ema)
        self.D_ema = Ema(self.D) if settings.discriminator_ema else None
        self.pl_mean = torch.zeros((), device=self.device)
        self.augment = AdaptiveAugment(settings.augment, settings.batch_size, self.device)
        self.alpha = settings.alpha(0)
        if self.G.camera_head is not None:
            # An explicit camera always wins in training, so nothing would train it.
            self.G.camera_head.requires_grad_(False)
        self.g = Player(
            self.G,
            context,
            lr=settings.generator_lr,
            betas=settings.betas,
            interval=settings.pl_interval if settings.pl_weight > 0 else None,
            compiled=speed.compile,
        )
        self.d = Player(
            self.D,
            context,
            lr=settings.discriminator_lr,
            betas=settings.betas,
            interval=settings.r1_interval if settings.r1_gamma > 0 else None,
            compiled=speed.compile,
        )
        self._means = [
            buffer
            for name, buffer in self.G.named_buffers()
            if name.rsplit(".", 1)[-1] in _RUNNING_MEANS
        ]

    def train_step(self, batch: dict[str, Tensor], samples_seen: int) -> dict[str, Tensor]:
        """Step G and D, each with its regulariser when it is due; D waits during a warm start.

        Args:
            batch: `image`: uint8 `[B, 3, R, R]`; with labels `label [B, c_dim]`; with known
                cameras `yaw_pitch [B, 2]`; for a warm start `code [B, z_dim]`.
            samples_seen: The clock.
        """
        settings, now = self.settings, self._moment(samples_seen)
        for player in (self.g, self.d):
            player.set_rate(settings.lr_scale(samples_seen))
        rounds = self.rounds(batch, samples_seen)
        fakes: list[Fakes] = []
        metrics = self._generator_main(rounds, fakes, now)
        if now.adversarial:
            if settings.pl_weight > 0 and settings.due(samples_seen, settings.pl_interval):
                metrics |= self._generator_path_length(rounds, now)
            metrics |= self._discriminator_main(rounds, fakes, now)
            if settings.r1_gamma > 0 and settings.due(samples_seen, settings.r1_interval):
                metrics |= self.discriminator_r1(rounds, samples_seen)
        self._follow(metrics, samples_seen)
        self.alpha = settings.alpha(samples_seen + settings.batch_size)
        resolution = self.G.stage(now.alpha).image_resolution
        return metrics | {
            "growth/alpha": torch.tensor(settings.alpha(samples_seen)),
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
            "alpha": self.alpha,
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
        self.alpha = state.get("alpha", 1.0)

    def export(self, directory: Path) -> None:
        """Write G, G_ema and D as a checkpoint directory, with their growth stage."""
        export_generator(
            directory,
            self.G,
            ema=_generator(self.G_ema.module),
            discriminator=self.D,
            card=self.card,
            alpha=self.alpha,
        )

    def _moment(self, samples_seen: int) -> _Moment:
        alpha, fade, spec = self.settings.alpha(samples_seen), None, self.G.spec
        if not spec.grow_field and not self.D.spec.fade:
            levels = growth_levels(spec.resolution_start, spec.resolution_vol, spec.img_resolution)
            alpha, weight = whole_stage(alpha, len(levels))
            fade = None if weight is None else torch.tensor(weight, device=self.device)
        return _Moment(
            alpha, fade, self.settings.adversarial(samples_seen), f"samples_seen={samples_seen}"
        )

    def rounds(self, batch: dict[str, Tensor], samples_seen: int) -> list[Round]:
        """Divide a batch into passes at the current resolution."""
        size = self.G.stage(self.settings.alpha(samples_seen)).image_resolution
        return divide(
            batch,
            self.settings,
            self.G.spec.cameras,
            samples_seen=samples_seen,
            size=(size, size),
        )

    def _draw(self, part: Round, count: int, coded: Coded | None = None) -> FakeInputs:
        return draw_inputs(
            self.G,
            count,
            conditions=part.conditions,
            mixing_prob=self.settings.style_mixing_prob,
            coded=coded,
        )

    def _critic(self, network: nn.Module, now: _Moment) -> Critic:
        return Critic(
            network,
            now.alpha,
            augment=self.augment,
            predicts_position=self.D.spec.camera == "uvr",
            precision=self.settings.speed.precision,
        )

    def _render(self, network: nn.Module, inputs: FakeInputs, options: RenderOptions) -> Rendering:
        return inputs.render(network, options, self.settings.speed.precision)

    def _generator_main(
        self, rounds: list[Round], fakes: list[Fakes], now: _Moment
    ) -> dict[str, Tensor]:
        """Step G; the images go to `fakes`."""
        critic = self._critic(self.d.alone, now)
        # The path regulariser joins with the adversarial loss.
        choose = main_options if now.adversarial else plain_options
        options = choose(self.settings, now.alpha, now.fade)

        def loss(part: Round) -> PhaseLoss:
            inputs = self._draw(part, len(part.real), part.coded)
            rendering = self._render(self.g.main, inputs, options)
            made = inputs.fakes(rendering)
            if self.settings.share_fakes:
                fakes.append(made.detach())
            terms, total = {}, torch.zeros((), device=self.device)
            if now.adversarial:
                outcome = generator_main(rendering, made, critic, self.settings)
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

        return self._step(self.g, "g_main", [partial(loss, part) for part in rounds], now)

    def _generator_path_length(self, rounds: list[Round], now: _Moment) -> dict[str, Tensor]:
        def loss(part: Round) -> PhaseLoss:
            count = max(1, len(part.real) // self.settings.pl_batch_shrink)
            inputs = self._draw(part, count)
            rendering = self._render(
                self.g.wrapped, inputs, plain_options(self.settings, now.alpha, now.fade)
            )
            noise = torch.randn_like(rendering.image)
            outcome, mean = generator_path_length(rendering, noise, self.pl_mean, self.settings)
            self.pl_mean = mean
            return outcome

        return self._step(self.g, "g_reg", [partial(loss, part) for part in rounds], now)

    def _discriminator_main(
        self, rounds: list[Round], fakes: list[Fakes], now: _Moment
    ) -> dict[str, Tensor]:
        """Step D, on the given `fakes` where they are shared, else on new ones."""
        critic = self._critic(self.d.main, now)
        options = plain_options(self.settings, now.alpha, now.fade)

        def loss(number: int, part: Round) -> PhaseLoss:
            made = fakes[number] if self.settings.share_fakes else self._new_fakes(part, options)
            return discriminator_main(made, part.real, critic, self.settings, part.conditions.c)

        losses = [partial(loss, number, part) for number, part in enumerate(rounds)]
        return self._step(self.d, "d_main", losses, now)

    @torch.no_grad()
    def _new_fakes(self, part: Round, options: RenderOptions) -> Fakes:
        inputs = self._draw(part, len(part.real))
        return inputs.fakes(self._render(self.g.alone, inputs, options))

    def discriminator_r1(self, rounds: list[Round], samples_seen: int) -> dict[str, Tensor]:
        """Step D on its R1 penalty at the real images of `rounds`."""
        now = self._moment(samples_seen)
        critic = self._critic(self.d.wrapped, now)

        def loss(part: Round) -> PhaseLoss:
            return discriminator_r1(part.real, critic, self.settings, part.conditions.c)

        return self._step(self.d, "d_reg", [partial(loss, part) for part in rounds], now)

    def _step(
        self, player: Player, phase: str, losses: Sequence[Callable[[], PhaseLoss]], now: _Moment
    ) -> dict[str, Tensor]:
        for other in (self.g, self.d):
            other.require_gradients(other is player)
        resolution = self.G.stage(now.alpha).image_resolution
        unused: list[nn.Parameter] = []
        if player is self.g:
            idle = block_parameters(self.G.upsampler.blocks, above=resolution)
            if not self.G.spec.residual_image:
                # The colour of the newest block replaces those before it.
                unused += colour_parameters(self.G)
        else:
            first = self.D.first_resolution(now.alpha, resolution)
            idle = block_parameters(self.D.blocks, above=first)
            # Only the camera loss of fakes depends on these.
            for module in (self.D.camera_head, self.D.low_blocks):
                unused += [] if module is None else module.parameters()
        return player.step(losses, idle=idle, unused=unused, phase=phase, where=now.where)

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


def _generator(module: nn.Module) -> Generator:
    inner = unwrap(module)
    assert isinstance(inner, Generator)
    return inner
