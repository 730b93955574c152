"""3-D morphable head models: the open head, BFM, fitting to landmarks, rasterising.

Names are loaded on first use, so that `import nfs.morphable` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nfs.morphable.clip_fit import fit_clip_frames as fit_clip_frames
    from nfs.morphable.coefficients import Coefficients as Coefficients
    from nfs.morphable.image_fit import ImageFit as ImageFit
    from nfs.morphable.image_fit import fit_images as fit_images
    from nfs.morphable.landmark_fit import Fit as Fit
    from nfs.morphable.landmark_fit import FitSettings as FitSettings
    from nfs.morphable.landmark_fit import fit_landmarks as fit_landmarks
    from nfs.morphable.loading import load_model as load_model
    from nfs.morphable.model import MorphableModel as MorphableModel
    from nfs.morphable.projection import project_points as project_points
    from nfs.morphable.rasterizer import Fragments as Fragments
    from nfs.morphable.rasterizer import rasterize as rasterize

_HOMES = {
    "Coefficients": "coefficients",
    "Fit": "landmark_fit",
    "FitSettings": "landmark_fit",
    "Fragments": "rasterizer",
    "ImageFit": "image_fit",
    "MorphableModel": "model",
    "fit_clip_frames": "clip_fit",
    "fit_images": "image_fit",
    "fit_landmarks": "landmark_fit",
    "load_model": "loading",
    "project_points": "projection",
    "rasterize": "rasterizer",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    """Import a public name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
