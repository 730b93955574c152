"""How good an inversion is: on the fitted frames, on held-out ones, and from other sides.

Legend: T frames, V novel views.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nfs.inversion.rendering import render, turned_cameras
from nfs.perceptual.pixel import peak_signal_to_noise_db
from nfs.perceptual.protocol import IdentityEmbedding, ImageDistance, identity_similarity
from nfs.stylenerf.generator import Generator


@dataclass(frozen=True)
class Latent:
    """What a person is to a generator.

    Attributes:
        ws: `[1, num_ws, w_dim]`.
        background_code: `[1, background_dim]`.
    """

    ws: Tensor
    background_code: Tensor


@torch.no_grad()
def reproduce(generator: Generator, latent: Latent, cam2world: Tensor) -> Tensor:
    """Return renderings `[T, 3, H, H]`, one frame at a time to bound memory."""
    frames = [
        render(generator, latent.ws, camera[None], background_code=latent.background_code).image
        for camera in cam2world
    ]
    return torch.cat(frames)


@torch.no_grad()
def frame_metrics(
    rendered: Tensor,
    images: Tensor,
    *,
    distance: ImageDistance,
    identity: IdentityEmbedding | None,
    mask: Tensor | None = None,
) -> dict[str, float]:
    """Return means over frames of `l2`, `psnr_db`, `perceptual_<backend>`, `identity_similarity`.

    Args:
        rendered: `[T, 3, H, H]`.
        images: `[T, 3, H, H]`.
        distance: Perceptual backend.
        identity: Embedding, if any.
        mask: `[1, 1, H, H]`, 1 where pixels count; the rest is filled with the target.
    """
    if mask is not None:
        rendered = rendered * mask + images * (1 - mask)
    per_frame = distance.distance(distance.features(rendered), distance.features(images))
    metrics = {
        "l2": float((rendered - images).square().mean()),
        "psnr_db": float(peak_signal_to_noise_db(rendered, images).mean()),
        f"perceptual_{distance.name}": float(per_frame.mean()),
    }
    if identity is not None:
        similarity = identity_similarity(identity.embed(rendered), identity.embed(images))
        metrics["identity_similarity"] = float(similarity.mean())
    return metrics


@torch.no_grad()
def novel_views(
    generator: Generator, latent: Latent, cam2world: Tensor, yaw_deg: Sequence[float]
) -> Tensor:
    """Return renderings `[V, 3, H, H]` from cameras swung about the person.

    Args:
        generator: The generator.
        latent: The person.
        cam2world: Camera of the reference frame `[4, 4]`.
        yaw_deg: V angles from that camera.
    """
    return reproduce(generator, latent, turned_cameras(cam2world, list(yaw_deg)))


@torch.no_grad()
def novel_view_identity(views: Tensor, reference: Tensor, identity: IdentityEmbedding) -> float:
    """Return the mean identity similarity of novel views to the reference frame `[1, 3, H, H]`."""
    return float(identity_similarity(identity.embed(views), identity.embed(reference)).mean())


@torch.no_grad()
def depth_change(
    before: Generator, after: Generator, latent: Latent, cam2world: Tensor
) -> dict[str, float]:
    """Return how tuning changed the shape at the pivot, in scene units (camera radius = 1).

    `depth_change`: mean |depth difference| where both see the foreground; `depth_relief`: standard
    deviation of the tuned depth there. A relief near zero means a flat picture of a face.

    Args:
        before: Original generator.
        after: Tuned generator.
        latent: The pivot.
        cam2world: Camera `[4, 4]`.
    """
    old, new = (
        render(g, latent.ws, cam2world[None], background_code=latent.background_code)
        for g in (before, after)
    )
    weight = old.opacity * new.opacity
    total = weight.sum().clamp_min(1e-6)
    change = ((old.depth - new.depth).abs() * weight).sum() / total
    mean = (new.depth * weight).sum() / total
    relief = ((new.depth - mean).square() * weight).sum() / total
    return {"depth_change": float(change), "depth_relief": float(relief.sqrt())}
