"""Settings of `jobs.train_audio2exp`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from nfs.config.base import Config, TrainingConfig


class ScratchInit(Config):
    """Random encoder; the output layer starts at the best guess without audio, or with it."""

    kind: Literal["scratch"] = "scratch"
    warm_start: bool = False
    """Start the output layer at ridge regression from the random encoder's features, and keep the
    BatchNorm statistics of the data: for seconds to minutes of speech."""


class CheckpointInit(Config):
    """Weights from a file: our checkpoint folder, SadTalker's release, or Wav2Lip's generator."""

    kind: Literal["checkpoint", "original", "wav2lip"]
    path: str
    """Checkpoint folder, or a `.safetensors` / `.pth` file."""
    freeze_norm: bool = True
    """Keep the imported BatchNorm statistics fixed (small data would spoil them)."""
    freeze_encoder: bool = False
    """Train the output layer only."""


class AugmentConfig(Config):
    """Changes of the wave before the mel."""

    gain_db: float = Field(6.0, ge=0)
    """Largest gain in either direction, dB."""
    noise_probability: float = Field(0.5, ge=0, le=1)
    """Share of windows that get white noise."""
    min_snr_db: float = 10.0
    """Strongest noise, dB below the speech."""
    max_snr_db: float = 40.0
    """Weakest noise, dB below the speech."""
    mask_probability: float = Field(0.0, ge=0, le=1)
    """Share of windows with one masked mel band range (set to silence)."""
    max_mask_bands: int = Field(12, ge=1, le=40)
    """Widest masked range, of 80 bands."""


class TeacherConfig(Config):
    """Target expression made from the fit of the real frame (spec/audio.md 4.2)."""

    kind: Literal["direct", "raw"] = "direct"
    """`direct` keeps the fit's lips and the reference's upper face; `raw` is the fit itself."""
    upper_weight: float = Field(1.0, ge=0)
    """Weight (lambda) of the upper face against the lips; unused by `raw`."""
    ridge: float = Field(1e-3, gt=0)
    """Damping relative to the mean diagonal of the normal matrix; unused by `raw`."""


class Audio2ExpData(Config):
    """What one training sample is."""

    num_frames: int = Field(40, ge=2)
    """Consecutive video frames of one sample (K)."""
    reference: Literal["random", "first"] = "random"
    """Reference expression: a random frame of the clip outside the sample, or its first frame."""
    teacher: TeacherConfig = TeacherConfig()
    """Target expression."""
    augment: AugmentConfig = AugmentConfig()
    """Augmentation of the audio."""
    holdout_fraction: float = Field(0.2, gt=0, lt=0.9)
    """Last part of each clip kept for validation when identities cannot be split."""
    max_offset_s: float = Field(0.5, ge=0)
    """Clips whose audio starts further away from the video are left out."""
    cache_clips: int = Field(128, ge=1)
    """Clips whose audio and fits stay in memory (about 1 MB each for 10 s)."""


class Audio2ExpLoss(Config):
    """Weights of the training loss (spec/audio.md 4.3)."""

    expression: float = Field(2.0, ge=0)
    """Mean squared error of the coefficients."""
    lip: float = Field(1.0, ge=0)
    """Mean squared distance of the lip vertices, per mm^2."""
    velocity: float = Field(5.0, ge=0)
    """Mean squared difference of lip velocity, per (mm/frame)^2."""
    eye: float = Field(0.04, ge=0)
    """Eye aspect against `(1 - blink) * reference aspect`; 0 turns the blink input off."""


class Audio2ExpOptimizer(Config):
    """Adam with cosine decay and averaged weights."""

    lr: float = Field(1e-4, gt=0)
    """Learning rate at the start."""
    final_lr: float = Field(1e-6, ge=0)
    """Learning rate at the end."""
    warmup_samples: int = Field(0, ge=0)
    """Samples over which the rate rises linearly."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay (AdamW)."""
    ema_kimg: float = Field(20.0, ge=0)
    """Half-life of the averaged weights, in thousands of samples."""


class TrainAudio2expConfig(TrainingConfig):
    """Train Audio2Exp on `clips` and their `fits`."""

    clips: str
    """Artifact of `jobs.preprocess`."""
    fits: str
    """Artifact of `jobs.fit_3dmm` for the same clips."""
    face_basis: str | None = None
    """`.npz` of face points in mm (nfs.audio.face_basis); made by the job when not given."""
    init: Annotated[ScratchInit | CheckpointInit, Field(discriminator="kind")] = ScratchInit()
    """Where the weights start."""
    data: Audio2ExpData = Audio2ExpData()
    """What one sample is."""
    loss: Audio2ExpLoss = Audio2ExpLoss()
    """Loss weights."""
    optimizer: Audio2ExpOptimizer = Audio2ExpOptimizer()
    """Optimiser."""
    total_samples: int = Field(400_000, ge=1)
    """Length of the training, in samples of `data.num_frames` frames."""
    batch_size: int = Field(32, ge=1)
    """Samples per step over all workers."""
    log_every: int = Field(640, ge=1)
    """Samples between points of the loss curves."""
    evaluate_every: int = Field(16_000, ge=1)
    """Samples between evaluations."""
    checkpoint_every: int = Field(16_000, ge=1)
    """Samples between saved states."""
    max_eval_frames: int = Field(3000, ge=16)
    """Held-out frames used by an evaluation."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        workers = self.launch.num_workers
        if self.batch_size % workers:
            raise ValueError(
                f"batch_size={self.batch_size} is not divisible by launch.num_workers={workers}"
            )
        return self

    @model_validator(mode="after")
    def _noise_range(self) -> Self:
        if self.data.augment.min_snr_db > self.data.augment.max_snr_db:
            raise ValueError("data.augment.min_snr_db is above data.augment.max_snr_db")
        return self
