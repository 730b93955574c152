"""Rendering an identity: the one place where inversion talks to the generator."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nfs.stylenerf.generator import Generator, Rendering, RenderOptions


def render(
    generator: Generator, ws: Tensor, cam2world: Tensor, *, background_code: Tensor
) -> Rendering:
    """Render one identity under several cameras, with the background frozen.

    The background is seen by one fixed camera, as the talker renders it: it does not turn with the
    head, and it is the same in every frame of the person.

    Args:
        generator: The generator, in eval mode.
        ws: `[1, num_ws, w_dim]`.
        cam2world: `[B, 4, 4]`.
        background_code: `[1, background_dim]`.
    """
    batch = len(cam2world)
    options = RenderOptions(background_cam2world=generator.frozen_background_camera(batch))
    return generator.synthesis(
        ws.expand(batch, -1, -1),
        cam2world,
        background_code=background_code.expand(batch, -1),
        options=options,
    )


def turned_cameras(cam2world: Tensor, yaw_deg: list[float]) -> Tensor:
    """Return `[len(yaw_deg), 4, 4]`: a camera `[4, 4]` swung about the vertical axis of the world.

    Args:
        cam2world: `[4, 4]`, world z up.
        yaw_deg: Angles; positive moves the camera towards world +y.
    """
    turned = []
    for angle in yaw_deg:
        c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        rotation = cam2world.new_tensor([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        turned.append(rotation @ cam2world)
    return torch.stack(turned)


def frames_of_step(step: int, *, num_frames: int, frames_per_step: int) -> list[int]:
    """Return the frames of a step: all in turn, `frames_per_step` at a time, without randomness.

    Every frame is used equally often (up to one) after any number of steps.
    """
    if frames_per_step >= num_frames:
        return list(range(num_frames))
    start = step * frames_per_step
    return [(start + offset) % num_frames for offset in range(frames_per_step)]
