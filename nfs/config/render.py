"""Settings of `jobs.render`: portrait and speech to a talking video."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from nfs.config.base import Config, JobConfig


class SpeechSource(Config):
    """Expressions predicted from the speech."""

    kind: Literal["audio2exp"] = "audio2exp"
    """Tag."""
    checkpoint: str
    """Checkpoint directory of `jobs.train_audio2exp`."""
    scale: float = Field(1.0, ge=0)
    """Exaggeration of the motion around its neutral; 1 = as predicted (the original uses 1.5)."""
    feedback: float = Field(0.5, ge=0, le=1)
    """Share of the last prediction in the next reference."""
    neutral: Literal["pauses", "silence", "reference"] = "pauses"
    """Which prediction shows the portrait as it is: the mean over the quietest tenth of the speech,
    the answer to digital silence, or one equal to the portrait's expression (the original)."""


class FitsSource(Config):
    """Expressions of a fitted clip (self-reenactment, comparison)."""

    kind: Literal["fits"] = "fits"
    """Tag."""
    fits: str
    """Artifact of `jobs.fit_3dmm`."""
    clip_id: str | None = None
    """Clip to follow; not needed when there is only one."""
    source_fps: float = Field(25.0, gt=0)
    """Frame rate of that clip."""
    scale: float = Field(1.0, ge=0)
    """Exaggeration of the motion around the clip's neutral."""


class StillFace(Config):
    """The face as it is and no sound: a preview with `pose.kind=orbit`."""

    kind: Literal["still"] = "still"
    """Tag."""


class FixedPose(Config):
    """The camera of the portrait, bit-constant."""

    kind: Literal["fixed"] = "fixed"
    """Tag."""


class SwayPose(Config):
    """A slow swing about the portrait's camera that shows the head in 3-D."""

    kind: Literal["sway"] = "sway"
    """Tag."""
    yaw_deg: float = Field(6.0, ge=0, le=25)
    """Largest turn to each side, degrees."""
    period_s: float = Field(5.0, gt=0)
    """Duration of one swing, seconds."""


class OrbitPose(Config):
    """An ellipse about the portrait's camera."""

    kind: Literal["orbit"] = "orbit"
    """Tag."""
    yaw_deg: float = Field(17.0, ge=0, le=180)
    """Half axis to the sides, degrees."""
    pitch_deg: float = Field(6.0, ge=0, le=45)
    """Half axis up and down, degrees."""
    period_s: float = Field(4.0, gt=0)
    """Duration of one turn, seconds."""


class WorldLocked(Config):
    """Backward warp in the image plane of each camera (spec/inversion_and_talker.md 4.3)."""

    kind: Literal["world_locked"] = "world_locked"
    """Tag."""
    interpolation: Literal["linear", "nearest"] = "linear"
    """Between moved vertices: linear on their triangulation, or the mean of the nearest ones."""
    neighbours: int = Field(4, ge=1)
    """Nearest moved vertices averaged outside the mesh (inside too for `nearest`)."""
    falloff_radius: float = Field(0.04, gt=0)
    """Reach beyond the face, fraction of the image side."""
    ramp_start: float = Field(0.03, ge=0)
    """Depth behind the face surface that still moves fully, camera radii (1 radius = 1 m)."""
    ramp_end: float = Field(0.10, gt=0)
    """Depth behind the face surface that does not move, camera radii."""
    calibrate_depth: bool = True
    """Move the face to where the generator renders it instead of trusting the fit's distance."""

    @model_validator(mode="after")
    def _ramp(self) -> Self:
        if self.ramp_end <= self.ramp_start:
            raise ValueError(f"ramp_end={self.ramp_end} must exceed ramp_start={self.ramp_start}")
        return self


class Original(Config):
    """The warp of the original program, with its quirks (spec/inversion_and_talker.md 2.9)."""

    kind: Literal["original"] = "original"
    """Tag."""
    stride: int = Field(1, ge=1)
    """Every how many vertices one is used: 4 for BFM's 35709 vertices, 1 for the open head."""


class RenderConfig(JobConfig):
    """Root of `jobs.render`."""

    identity: str
    """Artifact of `jobs.invert`; for `expression.kind=still` also a StyleNeRF checkpoint."""
    speech: str | None = None
    """Sound file, or a video whose sound is used; required for `expression.kind=audio2exp`."""
    expression: Annotated[SpeechSource | FitsSource | StillFace, Field(discriminator="kind")]
    """What moves the face."""
    model: str = "open_head"
    """Face model of the fit: `open_head` or a path to a BFM file."""
    pose: Annotated[FixedPose | SwayPose | OrbitPose, Field(discriminator="kind")] = FixedPose()
    """Camera of the frames."""
    subjects: int = Field(4, ge=1, le=32)
    """Faces of a checkpoint shown side by side (`expression.kind=still`)."""
    warp: Annotated[WorldLocked | Original, Field(discriminator="kind")] = WorldLocked()
    """How ray samples follow the face."""
    mouth_interior: Literal["darken", "none"] = "darken"
    """`darken` paints a dark opening (no teeth or tongue yet); `none` shows the stretched lips."""
    blink: Literal["none", "random"] = "none"
    """`random` closes the eyes every few seconds, the same for the same seed."""
    smoothing_window: int = Field(5, ge=0)
    """Savitzky-Golay window on the expressions, frames, odd; 0 = off."""
    fps: float = Field(25.0, gt=0)
    """Frames per second."""
    max_frames: int | None = Field(None, ge=1)
    """Stop after this many frames (trial runs); sound is cut to the same length."""
    output_size_px: int | None = Field(None, ge=16)
    """Side of the video, even; None = the generator's resolution."""
    watermark: Literal["visible", "metadata", "none"] = "visible"
    """Disclosure: small text in the picture plus a comment in the file, only the comment, none."""
    batch_size: int = Field(4, ge=1)
    """Frames rendered at once."""
    frames_per_unit: int = Field(32, ge=1)
    """Frames per unit of work; a killed render repeats at most one unit per worker."""
    sheet_frames: int = Field(16, ge=1, le=100)
    """Pictures on the contact sheet."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.expression.kind == "audio2exp" and self.speech is None:
            raise ValueError("speech is required when expression.kind=audio2exp")
        if self.expression.kind == "still":
            if self.pose.kind != "orbit":
                raise ValueError("expression.kind=still needs pose.kind=orbit: nothing would move")
            if self.speech is not None:
                raise ValueError("speech has no effect when expression.kind=still")
        if self.smoothing_window and self.smoothing_window % 2 == 0:
            raise ValueError(f"smoothing_window={self.smoothing_window} must be odd (or 0)")
        if self.output_size_px is not None and self.output_size_px % 2:
            raise ValueError(f"output_size_px={self.output_size_px} must be even for H.264")
        return self
