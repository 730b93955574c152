"""What a batch of fakes is made from: latents, cameras, styles to mix, labels.

Everything random is drawn by `draw_inputs` from torch's global generator, or given: a recording of
another program can be replayed.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from nfs.geometry.cameras import orbit_cameras
from nfs.stylenerf.cameras import draw_cameras
from nfs.stylenerf.generator import Generator, Rendering, RenderOptions
from nfs.stylenerf.rendering import RenderDraws


@dataclass(frozen=True)
class FakeInputs:
    """Inputs of one training pass of the generator."""

    z: Tensor
    """`[B, z_dim]`."""
    cam2world: Tensor
    """`[B, 4, 4]`."""
    background_code: Tensor
    """`[B, background_dim]`."""
    background_cam2world: Tensor | None = None
    """`[B, 4, 4]`; None: as `cam2world`."""
    c: Tensor | None = None
    """Labels `[B, c_dim]`, or None."""
    mixing: tuple[Tensor, int] | None = None
    """Second latents `[B, z_dim]` and the first row of `ws` they drive, or None."""
    draws: RenderDraws = field(default_factory=RenderDraws)
    """Random numbers of the rendering; missing ones are drawn there."""

    def render(self, network: nn.Module, options: RenderOptions) -> Rendering:
        """Render with `network`: the generator or its DDP wrapper.

        DDP expects a backward pass after each forward with gradients, so the wrapper is for passes
        whose gradients are wanted.
        """
        options = replace(options, background_cam2world=self.background_cam2world)
        labels = {} if self.c is None else {"c": self.c}
        rendering: Rendering = network(
            self.z,
            self.cam2world,
            background_code=self.background_code,
            mixing=self.mixing,
            options=options,
            draws=self.draws,
            **labels,
        )
        return rendering


@dataclass(frozen=True)
class Coded:
    """Fakes that reproduce real images: the first rows of a pass."""

    codes: Tensor
    """`[K, z_dim]`."""
    cam2world: Tensor
    """`[K, 4, 4]`, or `[1, 4, 4]` for all."""


@dataclass(frozen=True)
class Conditions:
    """What fakes have in common with the real images of their batch; rows are shuffled."""

    c: Tensor | None = None
    """Labels `[B, c_dim]`."""
    yaw_pitch: Tensor | None = None
    """Cameras of the images, radians `[B, 2]`; None: cameras come from the prior."""


def draw_inputs(
    generator: Generator,
    count: int,
    *,
    conditions: Conditions,
    mixing_prob: float,
    coded: Coded | None = None,
) -> FakeInputs:
    """Draw the inputs of `count` fakes.

    Args:
        generator: Sizes and camera prior.
        count: Rows; at most those of `conditions`.
        conditions: Labels and cameras to choose from.
        mixing_prob: Probability that later layers get other styles.
        coded: Rows that reproduce real images; then no styles are mixed.
    """
    device = generator.w_avg.device
    z = torch.randn(count, generator.z_dim, device=device)
    code = torch.randn(count, generator.background_dim, device=device)
    cameras = _cameras(generator, count, conditions.yaw_pitch)
    if coded is not None:
        background = cameras.clone()
        first = slice(len(coded.codes))
        z[first], cameras[first] = coded.codes, coded.cam2world
        code[first] = coded.codes[:, : generator.background_dim]
        # In an aligned crop the background stays where it is when the head turns.
        background[first] = generator.frozen_background_camera(1)
        labels = _shuffled(conditions.c, count)
        return FakeInputs(z, cameras, code, background_cam2world=background, c=labels)
    mixing = None
    if float(torch.rand(())) < mixing_prob:
        cutoff = int(torch.randint(1, generator.num_ws, ()))
        mixing = (torch.randn(count, generator.z_dim, device=device), cutoff)
    return FakeInputs(z, cameras, code, c=_shuffled(conditions.c, count), mixing=mixing)


def _cameras(generator: Generator, count: int, yaw_pitch: Tensor | None) -> Tensor:
    prior = generator.spec.cameras
    chosen = _shuffled(yaw_pitch, count)
    if chosen is None:
        return draw_cameras(prior, count, device=generator.w_avg.device)
    return orbit_cameras(chosen[:, 0], chosen[:, 1], sum(prior.radius) / 2)


def _shuffled(values: Tensor | None, count: int) -> Tensor | None:
    if values is None:
        return None
    return values[torch.randperm(len(values))[:count].to(values.device)]
