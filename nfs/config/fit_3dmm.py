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
    """Precision of left-right differences of the identity; keeps yawed photos from crooked noses."""
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
    jaw_weight: float = Field(0.5, ge=0)
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
    max_median_nme_percent: float = Field(5.0, gt=0)
    """Clips with a larger median landmark error (percent of eye distance) get status poor_fit."""
    sheet_frames: int = Field(6, ge=0, le=12)
    """Frames in the contact sheet of a clip; 0 writes none."""

    @model_validator(mode="after")
    def _regressor(self) -> Self:
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
