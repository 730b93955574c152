"""The work of each part of a StyleNeRF step, counted from the real networks without computing.

Parts: `g main`, `g path length`, `d main` (its fakes and D on fakes and real images), `d r1`,
`updates` (Adam, averaged generator). `forward_backward` counts the networks alone. All at full
resolution (the end of the growth), where most of the training happens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from _op_counter import Op, OpCounter, Pass
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from nfs.config.train_stylenerf import TrainStylenerfConfig
from nfs.stylenerf.builders import (
    build_discriminator,
    build_generator,
    build_prior,
    build_settings,
)
from nfs.stylenerf.cameras import draw_cameras
from nfs.stylenerf.discriminator import Discriminator
from nfs.stylenerf.generator import Generator, Rendering
from nfs.stylenerf.latents import FakeInputs
from nfs.stylenerf.phases import (
    Critic,
    PhaseLoss,
    discriminator_main,
    discriminator_r1,
    generator_main,
    generator_path_length,
    main_options,
    plain_options,
)
from nfs.stylenerf.settings import GanSettings
from nfs.stylenerf.task import _RUNNING_MEANS

ADAM_BYTES, EMA_BYTES = 28, 12
"""Per parameter: weight, gradient and two moments in, three out; two weights in, one out."""


@dataclass(frozen=True)
class Volume:
    """Numbers that ranks exchange."""

    generator: int
    discriminator: int
    means: int

    def numbers(self, part: str) -> int:
        """Return how many numbers are averaged over ranks at the end of a part of the step."""
        if part == "updates":
            return self.means
        return self.generator if part.startswith("g") else self.discriminator


@dataclass(frozen=True)
class Networks:
    """G and D of a preset, without values."""

    G: Generator
    D: Discriminator
    settings: GanSettings

    @classmethod
    def build(cls, config: TrainStylenerfConfig) -> Networks:
        """Return the networks that `jobs.train_stylenerf` trains."""
        G = build_generator(config, build_prior(config)).train()
        D = build_discriminator(config).train()
        if G.camera_head is not None:
            G.camera_head.requires_grad_(False)
        return cls(G, D, build_settings(config))

    def volume(self) -> Volume:
        """Count what DDP and the running means exchange."""
        means = [b for n, b in self.G.named_buffers() if n.rsplit(".", 1)[-1] in _RUNNING_MEANS]
        path_length_and_sign = 2
        return Volume(
            sum(p.numel() for p in trained(self.G)),
            sum(p.numel() for p in trained(self.D)),
            sum(b.numel() for b in means) + path_length_and_sign,
        )


def trained(network: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that get gradients."""
    return [p for p in network.parameters() if p.requires_grad]


def count_step(config: TrainStylenerfConfig, batch: int) -> dict[str, Pass]:
    """Return what one rank does in each part of a step with `batch` images."""
    with FakeTensorMode():
        nets = Networks.build(config)
        G, D, settings = nets.G, nets.D, nets.settings
        critic = Critic(D, 1.0, precision=settings.speed.precision)
        real = torch.randn(batch, 3, G.img_resolution, G.img_resolution)

        def g_main() -> PhaseLoss:
            inputs, rendering = _render(nets, batch, with_path=True)
            return generator_main(rendering, inputs.fakes(rendering), critic, settings)

        def g_path() -> PhaseLoss:
            _, rendering = _render(nets, max(1, batch // settings.pl_batch_shrink))
            noise = torch.randn_like(rendering.image)
            return generator_path_length(rendering, noise, torch.zeros(()), settings)[0]

        def d_main() -> PhaseLoss:
            with torch.no_grad():
                inputs, rendering = _render(nets, batch)
            return discriminator_main(inputs.fakes(rendering), real, critic, settings)

        def d_r1() -> PhaseLoss:
            return discriminator_r1(real, critic, settings)

        found = {
            "g main": _counted(g_main, G, D),
            "g path length": _counted(g_path, G, D),
            "d main": _counted(d_main, D, G),
            "d r1": _counted(d_r1, D, G),
        }
        return {**found, "updates": updates(nets.volume())}


def updates(volume: Volume) -> Pass:
    """Return both main optimiser steps and the average as one pass over the parameters each."""
    both = volume.generator + volume.discriminator
    every = (Op(0, ADAM_BYTES * both, False), Op(0, EMA_BYTES * volume.generator, False))
    return Pass(Counter(every))


def shares(settings: GanSettings) -> dict[str, float]:
    """Return how often each part runs in a step."""
    lazy_g = 1 / settings.pl_interval if settings.pl_weight > 0 else 0.0
    lazy_d = 1 / settings.r1_interval if settings.r1_gamma > 0 else 0.0
    return {"g main": 1, "g path length": lazy_g, "d main": 1, "d r1": lazy_d, "updates": 1}


def forward_backward(config: TrainStylenerfConfig, batch: int) -> dict[str, Pass]:
    """Return forward and backward of G and of D alone, without any regulariser."""
    found = {}
    with FakeTensorMode():
        nets = Networks.build(config)
        critic = Critic(nets.D, 1.0, precision=nets.settings.speed.precision)
        images = torch.randn(batch, 3, nets.G.img_resolution, nets.G.img_resolution)
        runs: dict[str, tuple[nn.Module, Callable[[], Tensor]]] = {
            "G": (nets.G, lambda: _render(nets, batch)[1].image),
            "D": (nets.D, lambda: critic.reals(images)),
        }
        for name, (network, forward) in runs.items():
            with OpCounter() as counter:
                out = forward()
            found[f"{name} forward"] = counter.found
            with OpCounter() as counter:
                torch.autograd.grad(out.sum(), trained(network), allow_unused=True)
            found[f"{name} backward"] = counter.found
    return found


def _render(nets: Networks, batch: int, *, with_path: bool = False) -> tuple[FakeInputs, Rendering]:
    """Render with mixed styles, as 9 of 10 published steps do."""
    G, choose = nets.G, main_options if with_path else plain_options
    inputs = FakeInputs(
        z=torch.randn(batch, G.z_dim),
        cam2world=draw_cameras(G.spec.cameras, batch),
        background_code=torch.randn(batch, G.background_dim),
        position=torch.zeros(batch, 3),
        mixing=(torch.randn(batch, G.z_dim), torch.ones((), dtype=torch.long)),
    )
    return inputs, inputs.render(G, choose(nets.settings, 1.0), nets.settings.speed.precision)


def _counted(loss: Callable[[], PhaseLoss], player: nn.Module, other: nn.Module) -> Pass:
    with _frozen(other), OpCounter() as counter:
        torch.autograd.grad(loss().total, trained(player), allow_unused=True)
    return counter.found


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    parameters = trained(network)
    for parameter in parameters:
        parameter.requires_grad_(False)
    yield
    for parameter in parameters:
        parameter.requires_grad_(True)
