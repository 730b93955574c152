"""Make a face data set of rendered open heads: `python -m jobs._render_identities OUT_DIR`.

Writes `train.rec`/`train.idx` (InsightFace layout, 112 px) and `heldout.bin`, pairs of identities
that are not in the records. Pose, light, expression and background differ between the images of an
identity. For trying a training; rendered heads are no substitute for people.
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

    from nfs.morphable import MorphableModel

logger = logging.getLogger(__name__)

_RENDER_PX = 224
_ROTATION_STD_RAD = tuple(math.radians(d) for d in (9, 17, 5))
_ACTIVE_EXPRESSIONS = 4
_JPEG_QUALITY = 92


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

    identities: int = 240
    held_out: int = 60
    images: int = 20
    pairs: int = 1200
    seed: int = 0


def write_identities(folder: Path, plan: RenderPlan) -> int:
    """Render a data set; return the number of training images."""
    import numpy as np

    from nfs.arcface.pair_files import draw_pairs, write_pairs
    from nfs.arcface.records import write_face_records
    from nfs.morphable import load_model

    model = load_model()

    def training() -> Iterator[tuple[int, bytes]]:
        for identity in range(plan.identities):
            for image in render_identity(model, identity, plan):
                yield identity, image
            if identity % 20 == 19:
                logger.info("%d of %d identities", identity + 1, plan.identities)

    count = write_face_records(folder / "train", training())
    numbers = range(plan.identities, plan.identities + plan.held_out)
    faces = [render_identity(model, identity, plan) for identity in numbers]
    rng = np.random.default_rng(plan.seed + 1)
    images, same = draw_pairs([len(f) for f in faces], plan.pairs, rng)
    write_pairs(folder / "heldout.bin", [faces[i][j] for i, j in images], same)
    return count


def render_identity(model: MorphableModel, identity: int, plan: RenderPlan) -> list[bytes]:
    """Render one person's images as aligned 112 px JPEG."""
    import numpy as np
    import torch

    from nfs.arcface.datasets import align_face
    from nfs.media.images import encode_jpeg
    from nfs.morphable import Coefficients, project_points
    from nfs.morphable.projection import pose_points
    from nfs.morphable.shading import render

    rng = np.random.default_rng((plan.seed, identity))
    count = plan.images
    person = rng.standard_normal((2, 80))
    parts = {
        "identity": np.repeat(person[:1], count, 0),
        "texture": np.repeat(person[1:], count, 0),
        "expression": _expressions(model, count, rng),
        "rotation": rng.standard_normal((count, 3)) * _ROTATION_STD_RAD,
        "translation": rng.standard_normal((count, 3)) * (0.08, 0.08, 0.3),
        "lighting": _lights(count, rng),
    }
    coefficients = Coefficients(
        **{k: torch.tensor(v, dtype=torch.float32) for k, v in parts.items()}
    )
    out = []
    with torch.no_grad():
        shaded = render(model, coefficients, _RENDER_PX)
        landmarks = pose_points(
            model.landmarks(coefficients.identity, coefficients.expression),
            coefficients.rotation_matrix,
            coefficients.translation,
        )
        points = project_points(landmarks, _RENDER_PX).numpy()
    for image, mask, landmark in zip(
        shaded.image.numpy(), shaded.mask.numpy(), points, strict=True
    ):
        pixels = np.where(mask[..., None], image * 255, _background(rng))
        pixels = pixels + rng.normal(0, rng.uniform(0, 5), pixels.shape)
        picture = np.clip(pixels, 0, 255).astype(np.uint8)
        out.append(encode_jpeg(align_face(picture, landmark), _JPEG_QUALITY))
    return out


def _expressions(
    model: MorphableModel, count: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Draw a few active blend shapes per image, within the model's bounds."""
    import numpy as np

    low, high = model.expression_lower.numpy(), model.expression_upper.numpy()
    low, high = np.maximum(low, -1.0), np.minimum(high, 1.0)
    weights = np.zeros((count, len(high)))
    for row in weights:
        active = rng.choice(len(high), _ACTIVE_EXPRESSIONS, replace=False)
        row[active] = 0.7 * rng.uniform(low[active], high[active])
    return weights


def _lights(count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw nine harmonics per channel: mostly white, from any side in front."""
    import numpy as np

    white = rng.standard_normal((count, 1, 9)) * (0.1, 0.15, 0.15, 0.2, *([0.05] * 5))
    tint = rng.standard_normal((count, 3, 9)) * (0.06, *([0.02] * 8))
    return np.broadcast_to(white + tint, (count, 3, 9)).reshape(count, 27)


def _background(rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw a smooth coloured background `[H, W, 3]`."""
    import numpy as np
    from PIL import Image

    grid = rng.integers(0, 256, (5, 5, 3)).astype(np.uint8)
    size = (_RENDER_PX, _RENDER_PX)
    return np.asarray(Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC), np.float64)


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
    logger.info("%s: %d training images, heldout.bin", folder, count)
    return 0


if __name__ == "__main__":
    sys.exit(main())
