"""Locality: away from the pivot the tuned generator should stay the original one.

Original: PTI (Roich et al. 2021, section 3.3), spec/inversion_and_talker.md 2.3. It nearly doubles
the time of a step, so it is off by default and evaluated at intervals.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from nfs.inversion.rendering import render
from nfs.optim import step_generator
from nfs.perceptual.protocol import ImageDistance
from nfs.stylenerf.generator import Generator

_Z_STREAM = 3


def near_pivot(pivot_ws: Tensor, ws: Tensor, alpha: float) -> Tensor:
    """Return `pivot + alpha (w - pivot) / |w - pivot|`, the norm over layers and dimensions.

    Args:
        pivot_ws: `[1, num_ws, w_dim]`.
        ws: `[B, num_ws, w_dim]`.
        alpha: Distance from the pivot.
    """
    direction = ws - pivot_ws
    norm = direction.flatten(1).norm(dim=1)[:, None, None]
    return pivot_ws + alpha * direction / norm


class Locality:
    """Difference between tuned and original renderings of latents near the pivot.

    Args:
        base: The original generator; a frozen copy is kept.
        pivot_ws: `[1, num_ws, w_dim]`.
        background_code: `[1, background_dim]`.
        cam2world: `[T, 4, 4]`; each evaluation uses one, in turn.
        distance: Perceptual backend.
        alpha: Distance of the sampled latents from the pivot (30 in the original).
        seed: Seed of the sampled latents.
    """

    truncation_psi = 0.5
    l2_weight = 0.1
    perceptual_weight = 0.1

    def __init__(
        self,
        base: Generator,
        pivot_ws: Tensor,
        background_code: Tensor,
        cam2world: Tensor,
        distance: ImageDistance,
        alpha: float = 30.0,
        seed: int = 0,
    ):
        self.base = copy.deepcopy(base).eval().requires_grad_(False)
        self.pivot_ws, self.background_code = pivot_ws.detach(), background_code.detach()
        self.cam2world, self.distance = cam2world, distance
        self.alpha, self.seed = alpha, seed

    def __call__(self, generator: Generator, step: int) -> Tensor:
        """Return the scalar loss at a step."""
        draws = step_generator(self.seed, step, stream=_Z_STREAM)
        z = torch.randn(1, self.base.z_dim, generator=draws).to(self.pivot_ws)
        camera = self.cam2world[[step % len(self.cam2world)]]
        with torch.no_grad():
            ws = self.base.mapping(z, truncation_psi=self.truncation_psi)
        return self.difference(generator, near_pivot(self.pivot_ws, ws, self.alpha), camera)

    def difference(self, generator: Generator, ws: Tensor, camera: Tensor) -> Tensor:
        """Return the weighted l2 and perceptual difference of both generators at one latent.

        Args:
            generator: The tuned generator.
            ws: `[1, num_ws, w_dim]`.
            camera: `[1, 4, 4]`.
        """
        with torch.no_grad():
            wanted = render(self.base, ws, camera, background_code=self.background_code).image
            features = self.distance.features(wanted)
        image = render(generator, ws, camera, background_code=self.background_code).image
        perceptual = self.distance.distance(self.distance.features(image), features).mean()
        l2 = (image - wanted).square().mean()
        return self.l2_weight * l2 + self.perceptual_weight * perceptual
