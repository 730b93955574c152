"""Settings of the whole chain."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from nfs.config.base import Config, JobConfig


class StageConfig(Config):
    """One stage: the job's own configuration file, and what is different here."""

    config: str
    """YAML file of the job, relative to the working directory."""
    overrides: tuple[str, ...] = ()
    """`key.path=value` items on top of the file."""
    enabled: bool = True
    """False leaves the stage out."""


class PipelineConfig(JobConfig):
    """From a talking clip to a rendered talking head.

    `storage`, `seed`, `launch` and `tracking` given here hold for every stage; a stage's file or
    overrides choose the rest. Paths between stages are filled in.
    """

    input: str | list[str]
    """Video(s) of the person; the first usable one is inverted and made to talk."""
    extra_inputs: tuple[str, ...] = ()
    """More videos, photos, folders or globs of faces, for the generator's training."""
    speech: str | None = None
    """File with the voice to speak; default: the sound of the input clip itself."""
    preprocess: StageConfig
    """Clips and photos to aligned frames and audio."""
    fit_3dmm: StageConfig
    """Frames to 3DMM coefficients."""
    train_stylenerf: StageConfig
    """Frames to a 3D-aware generator."""
    train_audio2exp: StageConfig
    """Audio and fits to the expression network."""
    tune_audio2exp: StageConfig | None = None
    """Search of the expression network's settings; left out when not given."""
    invert: StageConfig
    """The person's frames to an identity: latent code and tuned generator."""
    tune_pti: StageConfig | None = None
    """Search of the inversion's settings; left out when not given."""
    render: StageConfig
    """Identity and voice to a video."""

    @model_validator(mode="after")
    def _needed_stages(self) -> Self:
        for name in ("preprocess", "fit_3dmm"):
            if not getattr(self, name).enabled:
                raise ValueError(f"{name}.enabled must be true: the other stages read its output")
        if self.render.enabled and not (self.invert.enabled and self.train_audio2exp.enabled):
            raise ValueError("render needs invert and train_audio2exp enabled")
        if self.invert.enabled and not self.train_stylenerf.enabled:
            raise ValueError("invert needs train_stylenerf enabled")
        return self

    @model_validator(mode="after")
    def _mounted(self) -> Self:
        far = [path for path in self.inputs() if "://" in path]
        if far:
            raise ValueError(
                f"input={far[0]}: must be a mounted file, since later stages read its sound; URIs "
                "may stand in extra_inputs"
            )
        return self

    def inputs(self) -> list[str]:
        """Return the person's videos as a list."""
        return [self.input] if isinstance(self.input, str) else list(self.input)
