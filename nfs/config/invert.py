"""Settings of `jobs.invert`: frames of a person to a latent and a tuned generator."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from nfs.config.base import Config, JobConfig


class ProjectConfig(Config):
    """Search of the latent (spec/inversion_and_talker.md 2.1)."""

    num_steps: int = Field(450, ge=1)
    """Optimiser steps."""
    space: Literal["w", "w_plus"] = "w"
    """`w`: one style for all layers; `w_plus`: one style per layer, closer and less editable."""
    learning_rate: float = Field(0.01, gt=0)
    """Peak rate of Adam on ws."""
    background_rate: float = Field(0.01, gt=0)
    """Peak rate of Adam on the background code."""
    noise_scale: float = Field(0.05, ge=0)
    """Largest noise on w, in standard deviations of w."""
    num_w_samples: int = Field(600, ge=2)
    """Latents for the statistics of w."""
    perceptual_weight: float = Field(1.0, ge=0)
    """Weight of the perceptual distance."""
    l2_weight: float = Field(1.0, ge=0)
    """Weight of the mean squared pixel difference (images in [-1, 1])."""
    delta_weight: float = Field(0.0, ge=0)
    """Weight of mean |ws - mean over layers|^2; only for `space=w_plus`."""
    frames_per_step: int | None = Field(None, ge=1)
    """Frames rendered per step; null = all."""
    time_limit_s: float | None = Field(None, gt=0)
    """Wall-clock limit in seconds; null = none."""

    @model_validator(mode="after")
    def _used(self) -> Self:
        if self.space == "w" and self.delta_weight > 0:
            raise ValueError("delta_weight has no effect with space=w; set space=w_plus")
        if self.perceptual_weight == 0 and self.l2_weight == 0:
            raise ValueError("perceptual_weight and l2_weight are both 0: nothing to fit")
        return self


class LocalityConfig(Config):
    """Keeps the tuned generator close to the original near the pivot; nearly doubles a step."""

    weight: float = Field(1.0, gt=0)
    """Weight of the term, on top of the 0.1 of its two parts."""
    alpha: float = Field(30.0, gt=0)
    """Distance of the sampled latents from the pivot."""
    interval: int = Field(4, ge=1)
    """Steps between evaluations; the weight is multiplied by it."""


class TuneConfig(Config):
    """Pivotal tuning of the generator (spec/inversion_and_talker.md 2.2)."""

    num_steps: int = Field(350, ge=1)
    """Most optimiser steps."""
    learning_rate: float = Field(1e-3, gt=0)
    """Peak rate of Adam."""
    ramp_up_fraction: float = Field(0.05, ge=0, le=1)
    """Part of the run with a rising rate; 0 = constant, as in the original."""
    ramp_down_fraction: float = Field(0.25, ge=0, le=1)
    """Part of the run with a falling rate; 0 = constant, as in the original."""
    trainable: Literal["all", "upsampler", "field"] = "all"
    """Which parameters move: everything, the 2-D blocks, or the radiance fields."""
    l2_weight: float = Field(1.0, ge=0)
    """Weight of the mean squared pixel difference."""
    perceptual_weight: float = Field(1.0, ge=0)
    """Weight of the perceptual distance."""
    identity_weight: float = Field(0.0, ge=0)
    """Weight of 1 - identity similarity; needs a backend that embeds faces (`dlib`, `arcface`)."""
    stop_factor: float | None = Field(1.0, gt=0)
    """Stop once the distance is below this factor times the distance of the target to its JPEG-75
    and 1 px shifted copies; null = run all steps."""
    locality: LocalityConfig | None = None
    """Locality term; null = off."""
    frames_per_step: int | None = Field(None, ge=1)
    """Frames rendered per step; null = all."""
    time_limit_s: float | None = Field(None, gt=0)
    """Wall-clock limit in seconds; null = none."""

    @model_validator(mode="after")
    def _used(self) -> Self:
        if self.perceptual_weight == 0 and self.l2_weight == 0:
            raise ValueError("perceptual_weight and l2_weight are both 0: nothing to fit")
        return self


class InvertConfig(JobConfig):
    """Root of `jobs.invert`.

    Give `clips` and `fits` (frames of a clip), or `portrait` (one photo).
    """

    checkpoint: str
    """Checkpoint directory of `jobs.train_stylenerf`."""
    clips: str | None = None
    """Artifact of `jobs.preprocess`."""
    fits: str | None = None
    """Artifact of `jobs.fit_3dmm` over `clips`."""
    clip_id: str | None = None
    """Clip to invert; null = the first with usable frames."""
    num_frames: int = Field(1, ge=1)
    """Frames fitted together: 1 = one portrait; more are spread over the head's yaw."""
    num_held_out: int = Field(0, ge=0)
    """Frames of the clip that are only measured."""
    portrait: str | None = None
    """Photo file instead of a clip; it is aligned and fitted here."""
    model: str = "open_head"
    """Face model for a `portrait`: `open_head` or a path to a BFM file."""
    perceptual: str = "dlib+pixel"
    """Perceptual backend: `dlib`, `pixel`, `arcface`, or a weighted sum such as
    `dlib+0.5*pixel`. The first that embeds faces (`dlib`, `arcface`) judges the identity."""
    arcface: str | None = None
    """Checkpoint directory of `jobs.train_arcface`, for the backend `arcface`."""
    project: ProjectConfig = ProjectConfig()
    """Search of the latent."""
    tune: TuneConfig = TuneConfig()
    """Tuning of the generator."""
    novel_yaw_deg: float = Field(20.0, gt=0, le=60)
    """Novel views are rendered at plus and minus this angle from the reference camera, degrees."""
    held_out_tiles: float = Field(0.0, ge=0, lt=0.5)
    """Share of the image (tiles of 1/8 side) that is hidden from the losses and only measured;
    for searches on a single photo. 0 = everything is fitted."""
    save_every: int = Field(50, ge=1)
    """Steps between saved states."""
    log_every: int = Field(10, ge=1)
    """Steps between logged losses."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.portrait is not None:
            clip_keys = {"clips": self.clips, "fits": self.fits, "clip_id": self.clip_id}
            given = [key for key, value in clip_keys.items() if value is not None]
            given += ["num_frames"] if self.num_frames > 1 else []
            given += ["num_held_out"] if self.num_held_out else []
            if given:
                raise ValueError(f"portrait is one photo: leave out {', '.join(given)}")
        elif self.clips is None or self.fits is None:
            raise ValueError("give clips and fits (artifact directories), or portrait (a photo)")
        if self.launch.num_workers > 1:
            raise ValueError("launch.num_workers must be 1: one identity is one optimisation")
        if ("arcface" in self.perceptual) != (self.arcface is not None):
            raise ValueError(
                f"perceptual={self.perceptual!r} and arcface={self.arcface!r} do not fit: name "
                "the backend arcface in perceptual and give its checkpoint directory in arcface"
            )
        embeds = any(name in self.perceptual for name in ("dlib", "arcface"))
        if self.tune.identity_weight > 0 and not embeds:
            raise ValueError(
                "tune.identity_weight needs a backend that embeds faces; "
                f"perceptual={self.perceptual!r} does not, add dlib or arcface"
            )
        return self
