"""Make a face data set of rendered open heads: `python -m jobs._render_identities OUT_DIR`.

Writes `train.rec`/`train.idx` (InsightFace layout, 112 px) and pairs of identities that are not in
the records: `heldout.bin`, where pose, light, expression and background differ, and
`heldout_hard.bin`, where pictures are also blurred, noisy, covered or of another day, as in the
records. For trying a training; rendered heads are no substitute for people.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from jobs._rendered_looks import Look
    from nfs.morphable import MorphableModel

    Floats = NDArray[np.float64]

logger = logging.getLogger(__name__)

_RENDER_PX = 144
_ROTATION_STD_RAD = tuple(math.radians(d) for d in (9, 17, 5))
_ACTIVE_EXPRESSIONS = 4
# Standard deviations of the model's own sampling give caricatures.
_SHAPE_SIZE = 0.8
_OTHER_DAY = 0.3
_LEAST_LIGHT = 0.12
_LANDMARK_NOISE_PX = 1.0
_OCCLUDED = 0.08


@dataclass(frozen=True)
class RenderPlan:
    """What to render.

    Attributes:
        identities: Identities in the records.
        held_out: Identities in the pairs.
        images: Images per identity.
        pairs: Pairs of the verification set, half of one person.
        seed: Seed of everything.
    """

    identities: int = 800
    held_out: int = 50
    images: int = 20
    pairs: int = 1200
    seed: int = 0


def write_identities(folder: Path, plan: RenderPlan) -> int:
    """Render a data set; return the number of training images."""
    import numpy as np

    from nfs.arcface.pair_files import draw_pairs, write_pairs
    from nfs.arcface.records import write_face_records

    studio = HeadStudio(plan)

    def training() -> Iterator[tuple[int, bytes]]:
        for identity in range(plan.identities):
            for image in studio.render_identity(identity):
                yield identity, image
            if identity % 20 == 19:
                logger.info("%d of %d identities", identity + 1, plan.identities)

    count = write_face_records(folder / "train", training())
    numbers = range(plan.identities, plan.identities + plan.held_out)
    for name, hard in (("heldout", False), ("heldout_hard", True)):
        faces = [studio.render_identity(number, hard=hard) for number in numbers]
        rng = np.random.default_rng(plan.seed + 1)
        images, same = draw_pairs([range(len(f)) for f in faces], plan.pairs, rng)
        write_pairs(folder / f"{name}.bin", [faces[i][j] for i, j in images], same)
    return count


class HeadStudio:
    """Renders people; holds what all of them share.

    Args:
        plan: What to render.
    """

    def __init__(self, plan: RenderPlan) -> None:
        from jobs._rendered_looks import Painter
        from nfs.morphable import load_model

        self.plan, self.model = plan, load_model()
        self.painter = Painter(self.model)

    def render_identity(self, identity: int, *, hard: bool = True) -> list[bytes]:
        """Render one person's images as aligned 112 px JPEG.

        Args:
            identity: Number of the person.
            hard: Bad pictures too, and other days' hair, beard, make-up and glasses.
        """
        import numpy as np
        import torch

        from jobs._rendered_camera import develop, occlude
        from jobs._rendered_looks import draw_look, vary_look
        from nfs.arcface.datasets import align_face
        from nfs.media.images import encode_jpeg

        rng = np.random.default_rng((self.plan.seed, identity))
        usual = draw_look(rng)
        other = vary_look(usual, rng)
        days = rng.random(self.plan.images) < _OTHER_DAY
        looks = [other if day and hard else usual for day in days]
        with torch.no_grad():
            heads, masks, points = self._heads(looks, rng)
        out = []
        for look, head, mask, landmarks in zip(looks, heads, masks, points, strict=True):
            picture = _photograph(head, mask, landmarks, look, rng)
            if hard and rng.random() < _OCCLUDED:
                picture = occlude(picture, rng)
            noise = rng.normal(0, _LANDMARK_NOISE_PX, landmarks.shape)
            pixels = align_face((picture * 255).astype(np.uint8), landmarks + noise)
            out.append(develop(pixels, rng) if hard else encode_jpeg(pixels))
        return out

    def _heads(
        self, looks: list[Look], rng: np.random.Generator
    ) -> tuple[Floats, NDArray[np.bool_], Floats]:
        """Return lit heads `[N, H, W, 3]`, masks `[N, H, W]` and landmarks `[N, 68, 2]` (px)."""
        import torch

        from nfs.geometry.rotations import euler_to_matrix
        from nfs.morphable import project_points, rasterize
        from nfs.morphable.lighting import irradiance
        from nfs.morphable.normals import vertex_normals
        from nfs.morphable.projection import pose_points, to_screen
        from nfs.morphable.shading import interpolate

        model, count = self.model, len(looks)
        person = _tensor(rng.standard_normal((2, 80)))
        identity = (_SHAPE_SIZE * person[:1]).expand(count, -1)
        expression = _tensor(_expressions(model, count, rng))
        turn = euler_to_matrix(_tensor(rng.standard_normal((count, 3)) * _ROTATION_STD_RAD))
        move = _tensor(rng.standard_normal((count, 3)) * (0.08, 0.08, 0.3))
        colours, hair = self.painter.paint_all(model.albedo(person[1:])[0], looks)
        shape = model.vertices(identity, expression) + hair
        normals = vertex_normals(shape, model.faces) @ turn.transpose(1, 2)
        light = irradiance(normals, _tensor(_lights(count, rng))).clamp(min=_LEAST_LIGHT)
        screen = to_screen(pose_points(shape, turn, move), _RENDER_PX)
        seen = rasterize(screen, model.faces, _RENDER_PX)
        image = interpolate(screen, colours * light, model.faces, seen.pix_to_face)
        landmarks = pose_points(model.landmarks(identity, expression), turn, move)
        points = project_points(landmarks, _RENDER_PX)
        return image.double().numpy(), torch.as_tensor(seen.mask).numpy(), points.double().numpy()


def _photograph(
    head: Floats,
    mask: NDArray[np.bool_],
    landmarks: Floats,
    look: Look,
    rng: np.random.Generator,
) -> Floats:
    """Return the scene `[H, W, 3]` in [0, 1] with a head in it."""
    import numpy as np

    from jobs._rendered_camera import background, draw_glasses, draw_long_hair, expose

    behind = background(_RENDER_PX, rng)
    if look.long_hair:
        behind = draw_long_hair(behind, look, landmarks, rng)
    picture = np.where(mask[..., None], head, behind)
    if look.glasses:
        picture = draw_glasses(picture, landmarks, look.glasses)
    return expose(picture, mask, rng)


def _expressions(model: MorphableModel, count: int, rng: np.random.Generator) -> Floats:
    """Draw a few active blend shapes per image, within the model's bounds."""
    import numpy as np

    low, high = model.expression_lower.numpy(), model.expression_upper.numpy()
    low, high = np.maximum(low, -1.0), np.minimum(high, 1.0)
    weights = np.zeros((count, len(high)))
    for row in weights:
        active = rng.choice(len(high), _ACTIVE_EXPRESSIONS, replace=False)
        row[active] = 0.7 * rng.uniform(low[active], high[active])
    return weights


def _lights(count: int, rng: np.random.Generator) -> Floats:
    """Draw nine harmonics per channel: nearly white, from any side in front, more from above."""
    size = (0.1, 0.15, 0.15, 0.22, *([0.06] * 5))
    white = rng.standard_normal((count, 1, 9)) * size
    white[..., 1] -= 0.08
    white[..., 2] += 0.08
    tint = rng.standard_normal((count, 3, 9)) * (0.015, *([0.01] * 8))
    return (white + tint).reshape(count, 27)


def _tensor(values: Floats) -> Tensor:
    import torch

    return torch.as_tensor(values, dtype=torch.float32)


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and render."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(prog="python -m jobs._render_identities", description=__doc__)
    parser.add_argument("folder", type=Path)
    for name, value in vars(RenderPlan()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    options = vars(parser.parse_args(arguments))
    folder = options.pop("folder")
    count = write_identities(folder, RenderPlan(**options))
    logger.info("%s: %d training images, heldout.bin, heldout_hard.bin", folder, count)
    return 0


if __name__ == "__main__":
    sys.exit(main())
