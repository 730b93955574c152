"""What the views of one subject say: shape, opacity, identity; and of all subjects: diversity.

Legend: K subjects, V = 3 views, E size of an embedding, R image side, h and w of the depth map.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nfs.media.images import image_grid
from nfs.perceptual.protocol import IdentityEmbedding
from nfs.stylenerf.flatness import Shape, measure_shape
from nfs.stylenerf.orbits import picture
from nfs.stylenerf.views import MIDDLE_VIEW, Gallery, depth_levels, quantised

NUMBERS = ("opacity", "depth_std", "relief", "bulge", "coverage")
ALARM_SHARE = 0.5
THUMBNAIL_PX = 64
"""Diversity is measured on images of at most this size."""


def describe_subject(
    gallery: Gallery, index: int, identity: IdentityEmbedding | None
) -> dict[str, Tensor]:
    """Render a subject from three sides and measure it.

    Args:
        gallery: Generator and subjects.
        index: Number of the subject.
        identity: Embeds the views; None does not.

    Returns:
        `image` uint8 `[1, V, 3, R, R]`; of the middle view `thumbnail` `[1, 3, r, r]` in [0, 255]
        and `depth` uint8 `[1, 1, h, w]`; `numbers` float64 `[1, 5]` in the order of `NUMBERS`; and
        `embedding` `[1, V, E]`.
    """
    spec = gallery.generator.spec
    views = gallery.views(index)
    depth, opacity = views.depth[MIDDLE_VIEW, 0], views.opacity[MIDDLE_VIEW, 0]
    shape = measure_shape(
        depth,
        opacity,
        tan_half_fov=math.tan(math.radians(spec.fov_deg / 2)),
        far=spec.depth_range[1],
    )
    numbers = [
        float(views.opacity.mean()),
        float(depth.std()),
        shape.relief,
        shape.bulge,
        shape.coverage,
    ]
    images = quantised(views.image)
    rows = {
        "image": images[None],
        "thumbnail": _thumbnail(images[MIDDLE_VIEW])[None],
        "depth": depth_levels(depth[None, None], spec.depth_range),
        "numbers": torch.tensor([numbers], dtype=torch.float64, device=images.device),
    }
    if identity is not None:
        with torch.no_grad():
            rows["embedding"] = identity.embed(images.float() / 127.5 - 1)[None]
    return rows


def summarise(
    rows: Mapping[str, Tensor], identity_name: str | None
) -> tuple[dict[str, float], list[str]]:
    """Return metrics over all subjects, and alarms in words.

    Args:
        rows: `describe_subject` of K subjects; images are not needed.
        identity_name: Of the embedding, if there is one.
    """
    numbers = rows["numbers"].numpy()
    means = dict(zip(NUMBERS, numbers.mean(axis=0).tolist(), strict=True))
    shapes = [Shape(*row) for row in numbers[:, 2:].tolist()]
    problems = Counter(shape.problem for shape in shapes if shape.problem is not None)
    middle = rows["thumbnail"] / 127.5
    metrics = {f"eval/{name}": value for name, value in means.items()}
    metrics["eval/flat_share"] = sum(problems.values()) / len(shapes)
    metrics["eval/diversity"] = float(middle.std(dim=0).mean()) if len(middle) > 1 else 0.0
    if identity_name is not None:
        metrics |= _identity_metrics(rows["embedding"], identity_name)
    alarms = [
        f"{problem} in {count} of {len(shapes)} faces (relief {means['relief']:.3f}, coverage "
        f"{means['coverage']:.2f}); see the depth maps"
        for problem, count in problems.items()
        if count >= ALARM_SHARE * len(shapes)
    ]
    return metrics, alarms


def _thumbnail(image: Tensor) -> Tensor:
    size = min(image.shape[-1], THUMBNAIL_PX)
    return torch.nn.functional.adaptive_avg_pool2d(image.float(), size)


def _identity_metrics(embeddings: Tensor, name: str) -> dict[str, float]:
    """Cosines of side views with the middle one, and of different subjects for comparison."""
    unit = torch.nn.functional.normalize(embeddings.double(), dim=-1)
    middle = unit[:, MIDDLE_VIEW]
    sides = unit[:, [v for v in range(unit.shape[1]) if v != MIDDLE_VIEW]]
    metrics = {f"eval/identity_views_{name}": float((sides * middle[:, None]).sum(-1).mean())}
    count = len(middle)
    if count > 1:
        between = (middle @ middle.T).sum() - count
        metrics[f"eval/identity_others_{name}"] = float(between / (count * (count - 1)))
    return metrics


def grid_of_views(rows: Mapping[str, Tensor]) -> NDArray[np.uint8]:
    """Return one picture: a row per subject with its three views and its depth."""
    size_px = rows["image"].shape[-1]
    cells = []
    for views, depth in zip(rows["image"], rows["depth"], strict=True):
        cells += [picture(view, size_px) for view in views]
        cells.append(picture(depth, size_px))
    return image_grid(cells, columns=rows["image"].shape[1] + 1)
