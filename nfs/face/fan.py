"""FAN 2-D landmarks (Bulat and Tzimiropoulos 2017) in batches, with boxes passed in.

The network is the face-alignment package's; crops and decoding are ours (spec/face_and_media.md
2.7), so that faces of many frames run as one batch and points are not cut to whole pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PilImage

from nfs.errors import InputError
from nfs.face.protocols import NUM_LANDMARKS, Array, Image, frame_from_landmarks
from nfs.media.images import apply_affine, invert_affine, warp_affine

_FILE = "2DFAN4-11f355bf06.pth.tar"
_PATCH_PX, _MAP_PX = 256, 64
# The crop's side is 200 / 195 of the box's width plus height; the face's middle lies 0.12 heights
# above the box's.
_SIDE_PER_SUM, _RISE = 200.0 / 195.0, 0.12
_BATCH_GPU, _BATCH_CPU = 32, 4


class FanLandmarks:
    """FAN; seconds per face on a CPU, meant for GPUs.

    Args:
        device: Torch device.
        net: Crops [B, 3, 256, 256] in [0, 1] to heat maps [B, 68, 64, 64]; by default the 2-D
            network of the package, whose weights come from torch's cache or the network.
    """

    def __init__(self, device: str = "cpu", net: Callable[[Any], Any] | None = None):
        self.device = device
        self.net = _package_net(device) if net is None else net
        self.batch_size = _BATCH_CPU if device == "cpu" else _BATCH_GPU

    def landmarks(self, image: Image, boxes: Array) -> tuple[Array, Array]:
        """Return points [N, 68, 2] and scores [N] (mean heat map peak)."""
        return self.landmarks_of_frames([image] * len(boxes), boxes)

    def follow(self, image: Image, previous: Array) -> tuple[Array, float]:
        """Return points [68, 2] and score for the box of the previous points."""
        points, scores = self.landmarks(image, frame_from_landmarks(previous).box()[None])
        return points[0], float(scores[0])

    def landmarks_of_frames(self, images: Sequence[Image], boxes: Array) -> tuple[Array, Array]:
        """Return points [N, 68, 2] and scores [N] for one box [N, 4] in each of N pictures."""
        points, scores = np.zeros((len(boxes), NUM_LANDMARKS, 2)), np.zeros(len(boxes))
        for start in range(0, len(boxes), self.batch_size):
            part = slice(start, start + self.batch_size)
            matrices = np.stack([_crop_matrix(box) for box in boxes[part]])
            maps = self._maps(images[part], matrices)
            found, peaks = decode_heat_maps(maps)
            scale = _PATCH_PX / _MAP_PX
            points[part] = apply_affine(invert_affine(matrices), found * scale)
            scores[part] = np.clip(peaks.mean(axis=1), 0.0, 1.0)
        return points, scores

    def _maps(self, images: Sequence[Image], matrices: Array) -> Array:
        import torch

        bilinear = PilImage.Resampling.BILINEAR
        patches = [
            warp_affine(image, matrix, _PATCH_PX, resample=bilinear)
            for image, matrix in zip(images, matrices, strict=True)
        ]
        batch = torch.from_numpy(np.stack(patches)).to(self.device)
        with torch.inference_mode():
            maps = self.net(batch.permute(0, 3, 1, 2).float() / 255)
        last = maps[-1] if isinstance(maps, list) else maps
        return np.asarray(last.float().cpu().numpy(), np.float64)


def decode_heat_maps(maps: Array) -> tuple[Array, Array]:
    """Return places [B, K, 2] in continuous map pixels and peaks [B, K] of maps [B, K, h, w].

    A quarter pixel towards the larger neighbour is added, except at the border.
    """
    batch, count, height, width = maps.shape
    flat = maps.reshape(batch, count, -1)
    best = flat.argmax(axis=-1)
    y, x = best // width, best % width
    b, k = np.meshgrid(np.arange(batch), np.arange(count), indexing="ij")
    inside = (x > 0) & (x < width - 1) & (y > 0) & (y < height - 1)
    xs, ys = np.clip(x, 1, width - 2), np.clip(y, 1, height - 2)
    step_x = np.sign(maps[b, k, y, xs + 1] - maps[b, k, y, xs - 1])
    step_y = np.sign(maps[b, k, ys + 1, x] - maps[b, k, ys - 1, x])
    steps = np.where(inside[..., None], 0.25 * np.stack([step_x, step_y], axis=-1), 0.0)
    return np.stack([x, y], axis=-1) + 0.5 + steps, flat.max(axis=-1)


def _crop_matrix(box: Array) -> Array:
    """Return the map [2, 3] from a picture to the network's square around a box [4]."""
    width, height = float(box[2] - box[0]), float(box[3] - box[1])
    centre = (box[:2] + box[2:]) / 2 - np.array([0.0, _RISE * height])
    scale = _PATCH_PX / max(_SIDE_PER_SUM * (width + height), 1.0)
    offset = _PATCH_PX / 2 - scale * centre
    return np.array([[scale, 0.0, offset[0]], [0.0, scale, offset[1]]])


def _package_net(device: str) -> Callable[[Any], Any]:
    import face_alignment

    try:
        loaded = face_alignment.FaceAlignment(
            face_alignment.LandmarksType.TWO_D,
            device=device,
            flip_input=False,
            compile=False,
            face_detector="folder",  # boxes come from our detector; this one needs no weights
        )
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"landmarks=fan: its weights {_FILE} are neither in the cache {_hub_folder()} nor "
            f"downloadable ({error}); put the file there or use landmarks=dlib"
        ) from None
    return loaded.face_alignment_net


def _hub_folder() -> Path:
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"
