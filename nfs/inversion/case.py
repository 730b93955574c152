"""What one inversion works on."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nfs.inversion.calibration import Calibration
from nfs.inversion.frames import Frames
from nfs.perceptual.protocol import IdentityEmbedding, ImageDistance
from nfs.stylenerf.generator import Generator


@dataclass(frozen=True)
class Case:
    """Everything that one inversion works on, on its device.

    Attributes:
        generator: The base generator.
        frames: Frames to fit, the reference first.
        held_out: Frames that are only measured.
        images: `[T, 3, H, H]` of `frames`.
        cam2world: `[T, 4, 4]` of `frames`.
        mask: `[1, 1, H, H]` of pixels that count, or None.
        distance: Perceptual backend.
        identity: Embedding for reports; the backend's own, else none.
        calibration: Distances of the target to near copies.
    """

    generator: Generator
    frames: Frames
    held_out: Frames | None
    images: Tensor
    cam2world: Tensor
    mask: Tensor | None
    distance: ImageDistance
    identity: IdentityEmbedding | None
    calibration: Calibration
