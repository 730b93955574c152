"""What a batch of fakes is made from: latents, cameras, styles to mix, labels.

Everything random is drawn by `draw_inputs` from torch's global generator, or given: a recording of
another program can be replayed.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from nfs.geometry.cameras import cam2world_to_yaw_pitch, orbit_cameras
from nfs.stylenerf.cameras import CameraDraw, draw_positions
from nfs.stylenerf.generator import Generator, Rendering, RenderOptions
from nfs.stylenerf.phases import Fakes, mixed
from nfs.stylenerf.rendering import RenderDraws
from nfs.stylenerf.settings import Precision
from nfs.stylenerf.spec import CameraPrior


@dataclass(frozen=True)
class FakeInputs:
    """Inputs of one training pass of the generator."""

    z: Tensor
    """`[B, z_dim]`."""
    cam2world: Tensor
    """`[B, 4, 4]`."""
    background_code: Tensor
    """`[B, background_dim]`."""
    position: Tensor
    """`[B, 3]` where the cameras stand in the prior's ranges: see `CameraDraw`."""
    background_cam2world: Tensor | None = None
    """`[B, 4, 4]`; None: as `cam2world`."""
    c: Tensor | None = None
    """Labels `[B, c_dim]`, or None."""
    mixing: tuple[Tensor, int | Tensor] | None = None
    """Second latents `[B, z_dim]` and the first row of `ws` they drive, or None."""
    draws: RenderDraws = field(default_factory=RenderDraws)
    """Random numbers of the rendering; missing ones are drawn there."""

    def render(
        self, network: nn.Module, options: RenderOptions, precision: Precision = "fp32"
    ) -> Rendering:
        """Render with `network`: the generator or its DDP wrapper.

        DDP expects a backward pass after each forward with gradients, so the wrapper is for passes
        whose gradients are wanted.
        """
        options = replace(options, background_cam2world=self.background_cam2world)
        with mixed(precision, self.z.device):
            rendering: Rendering = network(
                self.z,
                self.cam2world,
                background_code=self.background_code,
                mixing=self.mixing,
                options=options,
                draws=self.draws,
                c=self.c,
            )
        return rendering

    def fakes(self, rendering: Rendering) -> Fakes:
        """Return the images of `rendering` with what these inputs say about them."""
        return Fakes(rendering.image, rendering.image_low, self.c, self.position)


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
    cameras = _cameras(generator.spec.cameras, count, conditions.yaw_pitch, device)
    inputs = FakeInputs(
        z=z,
        cam2world=cameras.cam2world,
        background_code=code,
        position=cameras.position,
        c=_shuffled(conditions.c, count),
    )
    if coded is not None:
        return _with_coded(inputs, coded, generator)
    if float(torch.rand(())) >= mixing_prob:
        return inputs
    cutoff = torch.randint(1, generator.num_ws, ()).to(device)
    return replace(inputs, mixing=(torch.randn(count, generator.z_dim, device=device), cutoff))


def _with_coded(inputs: FakeInputs, coded: Coded, generator: Generator) -> FakeInputs:
    first = slice(len(coded.codes))
    z, cameras, code = inputs.z.clone(), inputs.cam2world.clone(), inputs.background_code.clone()
    z[first], cameras[first] = coded.codes, coded.cam2world
    code[first] = coded.codes[:, : generator.background_dim]
    background = inputs.cam2world.clone()
    # In an aligned crop the background stays where it is when the head turns.
    background[first] = generator.frozen_background_camera(1)
    return replace(
        inputs,
        z=z,
        cam2world=cameras,
        background_code=code,
        background_cam2world=background,
        position=_position(generator.spec.cameras, cameras),
    )


def _cameras(
    prior: CameraPrior, count: int, yaw_pitch: Tensor | None, device: torch.device
) -> CameraDraw:
    chosen = _shuffled(yaw_pitch, count)
    if chosen is None:
        return draw_positions(prior, count, device=device)
    cameras = orbit_cameras(chosen[:, 0], chosen[:, 1], sum(prior.radius) / 2)
    return CameraDraw(cameras, _position(prior, cameras))


def _position(prior: CameraPrior, cameras: Tensor) -> Tensor:
    """Return yaw, pitch and radius as fractions of the prior's ranges; 0 where one is empty."""
    yaw, pitch = cam2world_to_yaw_pitch(cameras)
    radius = cameras[:, :3, 3].norm(dim=1)
    low, high = cameras.new_tensor([prior.yaw_rad, prior.pitch_rad, prior.radius]).unbind(dim=1)
    share = (torch.stack([yaw, pitch, radius], dim=1) - low) / (high - low)
    return torch.where(high > low, share, 0.0)


def _shuffled(values: Tensor | None, count: int) -> Tensor | None:
    if values is None:
        return None
    return values[torch.randperm(len(values))[:count].to(values.device)]
