"""Settings of `jobs.fit_3dmm`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from nfs.config.base import Config, JobConfig


class LandmarkFitConfig(Config):
    """Weights and iterations of the landmark fit (nfs.morphable.landmark_fit.FitSettings)."""

    iterations: int = Field(8, ge=2)
    """Gauss-Newton steps in all."""
    rigid_iterations: int = Field(2, ge=0)
    """Of those, first steps that only move the head."""
    identity_prior: float = Field(1.0, gt=0)
    """Precision of identity coefficients; residuals are percent of the face size."""
    asymmetry_prior: float = Field(0.5, ge=0)
    """Precision of left-right differences of the identity: no crooked noses from the side."""
    expression_prior: float = Field(2.0, gt=0)
    """Precision of expression coefficients."""
    temporal_weight: float = Field(1.0, ge=0)
    """Factor on both smoothness terms; 0 fits every frame on its own (identity stays shared)."""
    pose_smoothness: float = Field(30.0, ge=0)
    """Precision of pose differences (rad, dm) between neighbouring frames."""
    expression_smoothness: float = Field(6.0, ge=0)
    """Precision of expression differences between neighbouring frames."""
    huber_percent: float = Field(3.0, gt=0)
    """Landmark errors beyond this percentage of the face size count linearly."""
    jaw_weight: float = Field(0.25, ge=0)
    """Weight of the 17 jaw landmarks."""
    slide_contour: bool = True
    """Let the jaw landmarks of turned heads move along the outline."""
    mouth_weight: float = Field(2.0, ge=0)
    """Weight of the 20 mouth landmarks."""
    segment_frames: int = Field(640, ge=64)
    """Longest run of frames solved at once; bounds the memory."""
    segment_overlap: int = Field(32, ge=0)
    """Frames that neighbouring segments share."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.rigid_iterations >= self.iterations:
            raise ValueError(
                f"rigid_iterations={self.rigid_iterations} leaves nothing of "
                f"iterations={self.iterations} to fit the shape"
            )
        if self.segment_overlap * 2 > self.segment_frames:
            raise ValueError(
                f"segment_overlap={self.segment_overlap} is more than half of "
                f"segment_frames={self.segment_frames}"
            )
        return self


class PhotometricWeightsConfig(Config):
    """Factors of the losses of the photometric stage; defaults 3DMM-Fitting's but for landmarks."""

    landmarks: float = Field(2000.0, ge=0)
    """Squared landmark distances (fractions of the side); the original's 100 lets go of them."""
    identity: float = Field(1e-3, ge=0)
    """Squared identity coefficients."""
    expression: float = Field(0.8e-3, ge=0)
    """Squared expression coefficients, mean over frames."""
    texture: float = Field(1.7e-6, ge=0)
    """Squared texture coefficients."""
    reflectance: float = Field(1.0, ge=0)
    """Variance of the skin's albedo."""
    photometric: float = Field(1.6, ge=0)
    """Mean colour distance of the covered pixels, colours in [0, 1]."""


class PhotometricConfig(Config):
    """Photometric stage: key frames are rendered and compared with the pictures (Adam)."""

    frames: int = Field(8, ge=1)
    """Key frames; a clip with no more usable frames (a photo) keeps the poses found here."""
    rigid_steps: int = Field(0, ge=0)
    """First steps, on the pose and landmarks only."""
    joint_steps: int = Field(100, ge=1)
    """Steps on identity, texture, light, expressions and poses."""
    learning_rate: float = Field(1e-2, gt=0)
    """Of Adam, both stages."""
    image_size_px: int = Field(224, ge=32)
    """Side that pictures are scaled to; the cost is proportional to its square."""
    normal_weighting: Literal["unit", "area"] = "area"
    """Vertex normals: Deep3D's `unit` or 3DMM-Fitting's `area`."""
    backend: Literal["auto", "numba", "pytorch3d"] = "auto"
    """Rasteriser: auto is pytorch3d if the worker has a GPU, else the compiled z-buffer."""
    weights: PhotometricWeightsConfig = PhotometricWeightsConfig()
    """Factors of the losses."""


class ClipFitConfig(Config):
    """Fit of one clip."""

    model: str = "open_head"
    """`open_head`, or the path of a BFM `.mat` file that all workers can read."""
    init: Literal["mean", "recon"] = "mean"
    """Start of the landmark fit: the mean face, or what a trained regressor sees."""
    recon: str | None = None
    """Checkpoint directory of `jobs.train_recon`, for init=recon."""
    landmarks: LandmarkFitConfig = LandmarkFitConfig()
    """The landmark fit."""
    appearance_frames: int = Field(12, ge=0)
    """Frames per clip that light and skin colour are estimated from; 0 skips them."""
    photometric: PhotometricConfig | None = None
    """Photometric stage after the landmark fit; none by default (it costs seconds per clip)."""
    max_median_nme_percent: float = Field(5.0, gt=0)
    """Clips with a larger median landmark error (percent of eye distance) get status poor_fit."""
    sheet_frames: int = Field(6, ge=0, le=12)
    """Frames in the contact sheet of a clip; 0 writes none."""

    @model_validator(mode="after")
    def _stages_fit_together(self) -> Self:
        if self.photometric is not None and self.appearance_frames == 0:
            raise ValueError(
                "fit.photometric starts from the light and texture of appearance_frames, which "
                "is 0; give at least 1"
            )
        if (self.init == "recon") != (self.recon is not None):
            raise ValueError(
                f"init={self.init} and recon={self.recon}: init=recon needs the checkpoint "
                "directory in `recon`, and only then"
            )
        return self


class Fit3dmmConfig(JobConfig):
    """Root of `jobs.fit_3dmm`."""

    clips: str
    """Artifact of kind `clips`, written by `jobs.preprocess`."""
    fit: ClipFitConfig = ClipFitConfig()
    """Fit of one clip."""
    max_sheets: int = Field(200, ge=0)
    """Clips that get a contact sheet in the artifact (the first ones; poor fits always do)."""
    max_logged_sheets: int = Field(8, ge=0)
    """Contact sheets sent to the tracker."""
    max_failed_fraction: float = Field(0.5, ge=0, le=1)
    """The job fails when more than this fraction of the usable clips cannot be fitted."""
    artifacts: str | None = None
    """Folder or URI (`s3://bucket/folder`) for the artifact, `<artifacts>/<run>/fits`; the run's
    record stays in `storage`. Null: in the run directory."""
    shard_mb: float | None = Field(None, ge=1)
    """Merge the files of units into shards of this size (10^6 bytes; 64 to 256 for large sets) at
    the end; null keeps a file per unit."""
