"""Photometric stage of a clip: key frames are rendered and compared, the rest follows.

Identity, texture and light are one for the whole clip. Clips with no more usable frames than key
frames (photos above all) keep everything the stage finds; longer clips keep the identity, texture
and light, and their poses and expressions are fitted to the landmarks again with that identity.
Legend: T frames, K key frames, S image side.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from nfs.morphable.appearance import photometric_l1
from nfs.morphable.coefficients import Coefficients
from nfs.morphable.landmark_fit import Fit, FitSettings, fit_landmarks, measure_fit
from nfs.morphable.model import MorphableModel
from nfs.morphable.photometric_fit import PhotometricSettings, fit_photometric
from nfs.optim.loop import LoopResult

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Refined:
    """Result of the photometric stage.

    Attributes:
        fit: All T frames.
        photometric_l1: `[K]` colour error of the key frames after the stage, in [0, 1].
        before_l1: `[K]` the same before it.
        history: Losses of the joint steps.
    """

    fit: Fit
    photometric_l1: Tensor
    before_l1: Tensor
    history: LoopResult


class Refiner:
    """Photometric stage for clips; holds a copy of the model on the device it renders on.

    Args:
        model: The model that was fitted.
        settings: Steps, weights and rasteriser; `shared` is set by the stage.
        image_size_px: Side that key frames are scaled to.
    """

    def __init__(self, model: MorphableModel, settings: PhotometricSettings, image_size_px: int):
        self.settings = replace(settings, shared=True)
        self.size = image_size_px
        self.model_on_cpu = model
        on_gpu = settings.backend != "numba" and torch.cuda.is_available()
        self.device = torch.device("cuda" if on_gpu else "cpu")
        self.model = copy.deepcopy(model).to(self.device) if on_gpu else model

    def __call__(
        self,
        fit: Fit,
        images: Mapping[int, Images],
        landmarks_px: Tensor,
        usable: Tensor,
        *,
        temporal_weight: float = 1.0,
        landmark_settings: FitSettings | None = None,
    ) -> Refined:
        """Refine the fit of one clip.

        Args:
            fit: Landmark fit, with texture and light to start from.
            images: Key frame index -> uint8 RGB `[S, S, 3]`; usable frames.
            landmarks_px: `[T, 68, 2]` detected, pixels of those images.
            usable: `[T]` frames with landmarks.
            temporal_weight: See `fit_landmarks`, for the frames that are not key frames.
            landmark_settings: See `fit_landmarks`.

        Raises:
            NonFiniteError: If a loss becomes NaN or infinite.
        """
        rows = torch.tensor(sorted(images))
        stack = np.stack([images[int(row)] for row in rows])
        side = stack.shape[1]
        pictures = torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 255
        if side != self.size:
            pictures = functional.interpolate(
                pictures, size=(self.size, self.size), mode="bilinear", antialias=True
            )
        pictures = pictures.to(self.device)
        start = fit.coefficients[rows].to(self.device)
        found = fit_photometric(
            self.model,
            pictures.permute(0, 2, 3, 1),
            (landmarks_px[rows] * (self.size / side)).to(pictures),
            start=start,
            settings=self.settings,
        )
        before = photometric_l1(self.model, start, pictures)
        refined = self._whole_clip(
            fit, rows, found.coefficients.to("cpu"), landmarks_px, usable, side, temporal_weight,
            landmark_settings or FitSettings(),
        )  # fmt: skip
        after = photometric_l1(self.model, refined.coefficients[rows].to(self.device), pictures)
        return Refined(refined, after.cpu(), before.cpu(), found.joint)

    def _whole_clip(
        self,
        fit: Fit,
        rows: Tensor,
        found: Coefficients,
        landmarks_px: Tensor,
        usable: Tensor,
        side: int,
        temporal_weight: float,
        settings: FitSettings,
    ) -> Fit:
        old = fit.coefficients
        start = replace(
            old,
            identity=found.identity[:1].expand(len(old), -1).clone(),
            texture=found.texture[:1].expand(len(old), -1).clone(),
            lighting=found.lighting[:1].expand(len(old), -1).clone(),
        )
        if len(rows) == int(usable.sum()):
            for name in ("expression", "rotation", "translation"):
                value = getattr(start, name).clone()
                value[rows] = getattr(found, name)
                start = replace(start, **{name: value})
            return measure_fit(
                self.model_on_cpu, start, landmarks_px, side, usable=usable, settings=settings
            )
        again = fit_landmarks(
            self.model_on_cpu,
            landmarks_px,
            side,
            temporal_weight=temporal_weight,
            weights=usable.float(),
            settings=replace(settings, hold_identity=True),
            start=start,
        )
        coefficients = replace(again.coefficients, texture=start.texture, lighting=start.lighting)
        return replace(again, coefficients=coefficients)
