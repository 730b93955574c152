"""Settings of `jobs.evaluate`, and of the evaluations within a StyleNeRF training."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from nfs.config.base import Config, JobConfig
from nfs.config.image_data import ImageData


class FaceFeatures(Config):
    """dlib's face network, built in; metrics end in `_face`."""

    kind: Literal["face"] = "face"
    """Tag."""


class InceptionFile(Config):
    """An Inception network that you have; metrics are `fid` and `kid`."""

    kind: Literal["inception"] = "inception"
    """Tag."""
    path: str
    """TorchScript detector, or state dict (`.pth`, `.safetensors`) in torchvision's names."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Of the file; another file is refused before anything of it is read."""


class ArcfaceFeatures(Config):
    """A backbone of `jobs.train_arcface`; metrics end in its name."""

    kind: Literal["arcface"] = "arcface"
    """Tag."""
    checkpoint: str
    """Checkpoint directory."""


class GanEvaluationConfig(Config):
    """What is measured and drawn at each evaluation of a training."""

    features: Annotated[FaceFeatures | InceptionFile, Field(discriminator="kind")] = FaceFeatures()
    """Network whose features are compared."""
    num_samples: int = Field(256, ge=0)
    """Generated and real images that are compared; 0 compares none."""
    batch_size: int = Field(8, ge=1)
    """Images rendered or described at once by each worker."""
    orbit_latents: int = Field(4, ge=0, le=32)
    """Faces shown side by side in the orbit video, at most `grid_size`; 0 makes none."""
    orbit_frames: int = Field(24, ge=2)
    """Frames of one turn of the camera, shown at 12 per second."""


class EvaluateConfig(JobConfig):
    """Root of `jobs.evaluate`: a generator checkpoint to numbers and pictures.

    Augmenting options of `data` (`mirror`) count: they make the images that the generator learned.
    """

    checkpoint: str
    """Checkpoint directory of `jobs.train_stylenerf`."""
    weights: Literal["ema", "raw"] = "ema"
    """Averaged or last weights."""
    data: ImageData | None = None
    """Real images; null measures the generator alone, by its views."""
    num_real: int | None = Field(None, ge=4)
    """Real images, evenly spaced over the data; null takes all."""
    num_samples: int | None = Field(None, ge=4)
    """Generated images that are compared with the real ones; null takes 50 000."""
    real_features: str | None = None
    """Folder that keeps the features of real images for other evaluations on the same data; null
    keeps them in the run directory."""
    features: Annotated[
        FaceFeatures | InceptionFile | ArcfaceFeatures, Field(discriminator="kind")
    ] = FaceFeatures()
    """Network whose features are compared."""
    identity: Annotated[FaceFeatures | ArcfaceFeatures, Field(discriminator="kind")] = (
        FaceFeatures()
    )
    """Network that judges whether several views show one person."""
    num_views: int = Field(256, ge=2)
    """Latents whose views, depth and diversity are measured."""
    grid_size: int = Field(8, ge=1, le=64)
    """Latents on the grid of views and depths."""
    orbit_latents: int = Field(4, ge=0, le=32)
    """Faces shown side by side in the orbit video; 0 makes none."""
    orbit_frames: int = Field(96, ge=2)
    """Frames of one turn of the camera."""
    orbit_fps: float = Field(24.0, gt=0)
    """Frames per second."""
    alpha: float | None = Field(None, ge=0, le=1)
    """Growth stage that is rendered; null: that of the checkpoint."""
    batch_size: int = Field(8, ge=1)
    """Images rendered or described at once."""
    images_per_unit: int = Field(256, ge=1)
    """Images per unit of work; a killed evaluation repeats at most one unit per worker."""

    @model_validator(mode="after")
    def _needs_data(self) -> Self:
        names = ("num_real", "num_samples", "real_features")
        idle = [name for name in names if getattr(self, name) is not None]
        if self.data is None and idle:
            raise ValueError(
                f"{', '.join(idle)} has no effect without data; "
                f"set {' '.join(f'{name}=null' for name in idle)}, or data"
            )
        return self

    @property
    def num_generated(self) -> int:
        """Generated images that are compared with real ones; 0 without data."""
        if self.data is None:
            return 0
        return 50_000 if self.num_samples is None else self.num_samples
