"""Pictures and numbers of a finished inversion.

Legend: T frames, V novel views.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nfs.inversion.case import Case
from nfs.inversion.evaluation import (
    Latent,
    depth_change,
    frame_metrics,
    novel_view_identity,
    novel_views,
    reproduce,
)
from nfs.media.images import image_grid, to_uint8
from nfs.stylenerf.generator import Generator


@dataclass(frozen=True)
class Views:
    """Renderings of a person.

    Attributes:
        projected: `[T, 3, H, H]` before tuning.
        tuned: `[T, 3, H, H]` after tuning.
        novel: `[2, 3, H, H]` tuned, from the left and the right of the reference camera.
        held_out: `[M, 3, H, H]` tuned, under the cameras of the held-out frames, or None.
    """

    projected: Tensor
    tuned: Tensor
    novel: Tensor
    held_out: Tensor | None


@torch.no_grad()
def render_views(case: Case, tuned: Generator, latent: Latent, novel_yaw_deg: float) -> Views:
    """Render the fitted frames before and after tuning, novel views and held-out frames.

    Args:
        case: Frames and base generator.
        tuned: Tuned generator.
        latent: The person.
        novel_yaw_deg: Angle of the two novel views from the reference camera.
    """
    held_out = None
    if case.held_out is not None:
        held_out = reproduce(tuned, latent, case.held_out.cam2world.to(latent.ws.device))
    angles = (-novel_yaw_deg, novel_yaw_deg)
    return Views(
        projected=reproduce(case.generator, latent, case.cam2world),
        tuned=reproduce(tuned, latent, case.cam2world),
        novel=novel_views(tuned, latent, case.cam2world[0], angles),
        held_out=held_out,
    )


@torch.no_grad()
def measure(case: Case, tuned: Generator, latent: Latent, views: Views) -> dict[str, float]:
    """Return all numbers of an inversion.

    `projected_*` and `tuned_*` on the fitted frames, `held_out_*` on held-out frames (or, for one
    photo with hidden tiles, on those tiles), `novel_view_identity`, `stop_unit`, depth numbers.
    """

    def compare(rendered: Tensor, images: Tensor, mask: Tensor | None = None) -> dict[str, float]:
        return frame_metrics(
            rendered, images, distance=case.distance, identity=case.identity, mask=mask
        )

    rows = {
        "projected": compare(views.projected, case.images),
        "tuned": compare(views.tuned, case.images),
    }
    if views.held_out is not None and case.held_out is not None:
        images = case.held_out.images.to(case.images)
        rows["held_out"] = compare(views.held_out, images)
    elif case.mask is not None:
        hidden = 1 - case.mask
        rows["held_out"] = compare(views.tuned, case.images, hidden)
    metrics = {f"{group}_{k}": v for group, row in rows.items() for k, v in row.items()}
    if case.identity is not None:
        metrics["novel_view_identity"] = novel_view_identity(
            views.novel, case.images[:1], case.identity
        )
    metrics |= depth_change(case.generator, tuned, latent, case.cam2world[0])
    metrics["stop_unit"] = case.calibration.unit
    return metrics


def previews(case: Case, views: Views) -> dict[str, NDArray[np.uint8]]:
    """Return pictures by name.

    `preview`: target, projection, tuned, left and right novel view of the reference frame;
    `frames`: target, projection, tuned of every fitted frame; `held_out`: target, tuned.
    """
    target, projected, tuned = (to_uint8(x) for x in (case.images, views.projected, views.tuned))
    novel = to_uint8(views.novel)
    pictures = {
        "preview": image_grid([target[0], projected[0], tuned[0], *novel], columns=5),
        "frames": image_grid(
            [image for row in zip(target, projected, tuned, strict=True) for image in row],
            columns=3,
        ),
    }
    if views.held_out is not None and case.held_out is not None:
        pairs = zip(to_uint8(case.held_out.images), to_uint8(views.held_out), strict=True)
        pictures["held_out"] = image_grid([image for pair in pairs for image in pair], columns=2)
    return pictures
