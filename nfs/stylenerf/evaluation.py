"""Looking at a generator: fixed latents from fixed cameras, depth maps, collapse measures."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nfs.geometry.cameras import orbit_cameras
from nfs.media.images import image_grid, to_uint8
from nfs.stylenerf.generator import Generator, Rendering, RenderOptions
from nfs.stylenerf.spec import CameraPrior
from nfs.training.task import Evaluation

_SEED = 0
_YAW_DEVIATIONS = (-1.0, 0.0, 1.0)


def evaluate_generator(generator: Generator, *, count: int, alpha: float = 1.0) -> Evaluation:
    """Draw a grid (a row per latent: three yaws, then depth) and measure opacity and depth.

    Args:
        generator: In eval mode.
        count: Latents.
        alpha: Growth stage.
    """
    z, code = fixed_latents(generator, count)
    cells: list[NDArray[np.uint8]] = []
    opacity, spread, difference = [], [], []
    for index in range(count):
        view = _render_views(generator, z[index], code[index], alpha)
        cells.extend(to_uint8(view.image))
        cells.append(depth_picture(view.depth[1, 0], generator, view.image.shape[-1]))
        opacity.append(float(view.opacity.mean()))
        spread.append(float(view.depth[1].std()))
        difference.append(view.image[1])
    images = torch.stack(difference)
    diversity = float(images.std(dim=0).mean()) if count > 1 else 0.0
    metrics = {
        "eval/opacity": float(np.mean(opacity)),
        "eval/depth_std": float(np.mean(spread)),
        "eval/diversity": diversity,
    }
    grid = image_grid(cells, columns=len(_YAW_DEVIATIONS) + 1)
    return Evaluation(metrics, {"samples": grid})


def fixed_latents(generator: Generator, count: int) -> tuple[Tensor, Tensor]:
    """Return `z [count, z_dim]` and background codes that never change between evaluations."""
    random = torch.Generator().manual_seed(_SEED)
    z = torch.randn(count, generator.z_dim, generator=random)
    code = torch.randn(count, generator.background_dim, generator=random)
    return z.to(generator.w_avg.device), code.to(generator.w_avg.device)


def view_cameras(prior: CameraPrior, like: Tensor) -> Tensor:
    """Return cameras `[3, 4, 4]`: one half-range left, middle, one half-range right."""
    low, high = prior.yaw_rad
    deviations = like.new_tensor(_YAW_DEVIATIONS)
    yaw = (low + high) / 2 + deviations * (high - low) / 2
    pitch = torch.full_like(yaw, sum(prior.pitch_rad) / 2)
    return orbit_cameras(yaw, pitch, sum(prior.radius) / 2)


def depth_picture(depth: Tensor, generator: Generator, size_px: int) -> NDArray[np.uint8]:
    """Return depth `[h, w]` as grey `[size_px, size_px, 3]`: near is white."""
    near, far = generator.spec.depth_range
    level = ((far - depth) / (far - near)).clamp(0, 1)[None, None] * 2 - 1
    larger = torch.nn.functional.interpolate(level, size=(size_px, size_px), mode="nearest")
    return to_uint8(larger.expand(1, 3, -1, -1))[0]


@torch.no_grad()
def _render_views(generator: Generator, z: Tensor, code: Tensor, alpha: float) -> Rendering:
    cameras = view_cameras(generator.spec.cameras, generator.w_avg)
    ws = generator.mapping(z[None]).expand(len(cameras), -1, -1)
    codes = code[None].expand(len(cameras), -1)
    options = RenderOptions(alpha=alpha)
    return generator.synthesis(ws, cameras, background_code=codes, options=options)
