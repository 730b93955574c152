"""Using a trained regressor on frames: pictures and landmarks in, coefficients of the frame out.

Legend: T frames.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nfs.media.images import invert_affine
from nfs.morphable.coefficients import Coefficients
from nfs.morphable.model import MorphableModel
from nfs.morphable.recon.alignment import Picture, crop, frame_to_input, repose
from nfs.morphable.recon.checkpoint import load_network
from nfs.morphable.recon.network import ReconNet, check_network_model, clamp_expressions

BATCH = 16


class ReconPredictor:
    """Predicts coefficients in the camera of the frames.

    Args:
        network: Trained network, eval mode.
        model: The morphable model of its coefficients.
    """

    def __init__(self, network: ReconNet, model: MorphableModel):
        self._network, self._model = network, model

    @classmethod
    def load(cls, directory: str | Path, model: MorphableModel) -> ReconPredictor:
        """Load a checkpoint directory of `jobs.train_recon`.

        Raises:
            ArtifactError: If it is none.
            InputError: If it was trained for another morphable model.
        """
        network = load_network(directory)
        check_network_model(network.spec, model, str(directory))
        return cls(network.to(model.mean_shape.device), model)

    @torch.no_grad()
    def __call__(self, images: Picture, landmarks_px: NDArray[np.floating]) -> Coefficients:
        """Return T rows, expressions within the model's bounds.

        Args:
            images: `[T, H, H, 3]` square frames.
            landmarks_px: `[T, 68, 2]` finite, continuous pixels of the frames.
        """
        size, device = self._network.spec.image_size_px, self._model.mean_shape.device
        matrices = frame_to_input(landmarks_px, size)
        rows = []
        for start in range(0, len(images), BATCH):
            part = slice(start, start + BATCH)
            crops = [crop(i, m, size)[0] for i, m in zip(images[part], matrices[part], strict=True)]
            batch = torch.from_numpy(np.stack(crops)).to(device).permute(0, 3, 1, 2).float() / 255
            rows.append(self._network.unpack(self._network(batch)).pack())
        found = clamp_expressions(self._model, Coefficients.unpack(torch.cat(rows)))
        back = torch.from_numpy(invert_affine(matrices)).float().to(device)
        return repose(found, back, from_px=size, to_px=images.shape[1])
