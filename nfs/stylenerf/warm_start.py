"""A linear code for every training image, so that a short run can start by reconstruction.

From scratch, an adversarial pair needs millions of images. With a handful of clips and minutes of
time the generator first learns to reproduce frames from whitened principal components, which are
distributed about like the latents it is later sampled with. This is ours, not StyleNeRF's.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_THUMBNAIL_PX = 16
_LIMIT = 3.0


@dataclass(frozen=True)
class LinearEncoder:
    """Whitened principal components of thumbnails."""

    mean: NDArray[np.float32]
    """`[768]`."""
    matrix: NDArray[np.float32]
    """`[768, z_dim]`; columns beyond the rank of the data are zero."""

    def encode(self, image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.float32]:
        """Return the code `[z_dim]` of an image uint8 `[H, W, 3]`; unused entries are noise."""
        code = (_thumbnail(image) - self.mean) @ self.matrix
        noise = rng.standard_normal(len(code)).astype(np.float32)
        unused = ~self.matrix.any(axis=0)
        return np.where(unused, noise, code.clip(-_LIMIT, _LIMIT)).astype(np.float32)


def fit_linear_encoder(images: Iterable[NDArray[np.uint8]], z_dim: int) -> LinearEncoder:
    """Fit the encoder to images uint8 `[H, W, 3]`; codes have unit variance per entry.

    Raises:
        ValueError: If there are fewer than two images.
    """
    rows = np.stack([_thumbnail(image) for image in images])
    if len(rows) < 2:
        raise ValueError(f"a linear encoder needs at least two images, got {len(rows)}")
    mean = rows.mean(axis=0)
    _, scales, directions = np.linalg.svd(rows - mean, full_matrices=False)
    usable = min(z_dim, len(rows) - 1, int((scales > 1e-4 * scales[0]).sum()))
    matrix = np.zeros((rows.shape[1], z_dim), np.float32)
    whitening = np.sqrt(len(rows)) / scales[:usable]
    matrix[:, :usable] = directions[:usable].T * whitening
    return LinearEncoder(mean.astype(np.float32), matrix)


def _thumbnail(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    small = Image.fromarray(image).resize((_THUMBNAIL_PX, _THUMBNAIL_PX), Image.Resampling.BOX)
    return np.asarray(small, np.float32).ravel() / 127.5 - 1
