"""Settings of `jobs.train_arcface`: identity embeddings with Partial-FC."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from nfs.config.base import Config, TrainingConfig


class ArcfaceBackboneConfig(Config):
    """The embedding network."""

    name: str = "r50"
    """r18 r34 r50 r100 r200 r2060 mbf mbf_large vit_t vit_s vit_b vit_l vit_h, or an alias."""
    embedding_size: int = Field(512, ge=2)
    """Numbers per embedding."""
    image_size_px: int = Field(112, ge=32)
    """Pixels per side of the input; published weights and the verification sets have 112."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Probability before the last linear layer (IResNet)."""
    drop_path: float | None = Field(None, ge=0, lt=1)
    """Drop rate of the last block (ViT); null: what the name means."""
    mask_ratio: float | None = Field(None, ge=0, lt=1)
    """Share of tokens hidden in training (ViT); null: what the name means."""
    recompute: bool | None = None
    """Recompute activations in the backward pass (IResNet, ViT); null: what the name means."""
    init: str | None = None
    """Weights to start from: a checkpoint directory, or an original `.pt`, `.safetensors` file."""
    freeze: tuple[str, ...] = ()
    """Parameters whose names match one of these shell patterns (`layer1.*`) are not trained."""
    channels_last: bool = True
    """Memory format of convolutional networks; faster on CPU and GPU."""
    compile: bool = False
    """Compile the network with torch (pays off in long runs)."""


class CombinedMarginConfig(Config):
    """scale * (cos(m1 theta + m2) - m3): ArcFace is m2, CosFace m3, SphereFace m1."""

    kind: Literal["combined"] = "combined"
    m1: float = Field(1.0, gt=0)
    """Factor of the angle."""
    m2: float = Field(0.5, ge=0)
    """Added to the angle, radians."""
    m3: float = 0.0
    """Taken from the cosine."""
    scale: float = Field(64.0, gt=0)
    """Factor of the logits."""
    gradient: Literal["exact", "straight_through"] = "exact"
    """`straight_through`: slope 1 through the margin, as the 2023 original."""
    fold: Literal["none", "linear"] = "none"
    """`linear`: straight line where theta + m2 passes pi, as the 2022 original."""
    interclass_filter: float = Field(0.0, ge=0, lt=1)
    """Non-target cosines above this are dropped (noisy labels); 0 keeps all."""
    filter_mode: Literal["zero", "exclude"] = "zero"
    """A dropped logit becomes 0, as the original, or is left out of the sum."""

    @model_validator(mode="after")
    def _fold(self) -> Self:
        if self.fold == "linear" and self.m1 != 1:
            raise ValueError(f"fold=linear needs m1=1, got m1={self.m1}")
        if self.filter_mode != "zero" and not self.interclass_filter:
            raise ValueError("filter_mode has no effect without interclass_filter")
        return self


class UpstreamMarginConfig(Config):
    """What the 2023 original makes of its margin_list: m1 and m2 are ignored when m3 > 0."""

    kind: Literal["upstream"] = "upstream"
    margins: tuple[float, float, float] = (1.0, 0.5, 0.0)
    """m1, m2 (radians), m3."""
    scale: float = Field(64.0, gt=0)
    """Factor of the logits."""
    interclass_filter: float = Field(0.0, ge=0, lt=1)
    """Non-target cosines above this become 0; 0 keeps all."""


class AdafaceMarginConfig(Config):
    """Margin that depends on image quality (Kim et al. 2022)."""

    kind: Literal["adaface"] = "adaface"
    margin: float = Field(0.4, gt=0)
    """m of the paper."""
    concentration: float = Field(0.333, gt=0)
    """h of the paper."""
    decay: float = Field(0.01, gt=0, le=1)
    """Weight of a batch in the running statistics of embedding lengths."""
    scale: float = Field(64.0, gt=0)
    """Factor of the logits."""
    interclass_filter: float = Field(0.0, ge=0, lt=1)
    """Non-target cosines above this become 0; 0 keeps all."""


MarginConfig = Annotated[
    CombinedMarginConfig | UpstreamMarginConfig | AdafaceMarginConfig, Field(discriminator="kind")
]


class ArcfaceHeadConfig(Config):
    """The Partial-FC head."""

    margin: MarginConfig = CombinedMarginConfig()
    """Margin."""
    class_sample_ratio: float = Field(1.0, ge=0, le=1)
    """Share of the classes used per step; 1 all, 0 only the classes of the batch."""
    gather: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision in which embeddings travel between workers."""
    update: Literal["sparse", "dense"] = "sparse"
    """`dense`: classes outside the sample decay and coast too, as the 2023 original."""


class ArcfaceSgd(Config):
    """SGD with momentum, for backbone and class centres."""

    kind: Literal["sgd"] = "sgd"
    lr: float = Field(0.1, gt=0)
    """Base learning rate, for the global batch as configured."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum."""
    weight_decay: float = Field(5e-4, ge=0)
    """L2 penalty."""
    decay_norms: bool = True
    """Also decay BatchNorm, bias and PReLU parameters, as the original."""


class ArcfaceAdamw(Config):
    """AdamW, for backbone and class centres."""

    kind: Literal["adamw"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    """Base learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the moments."""
    eps: float = Field(1e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(0.1, ge=0)
    """Decoupled decay."""
    decay_norms: bool = True
    """Also decay BatchNorm, bias and PReLU parameters, as the original."""


class AugmentConfig(Config):
    """Changes to training images; each is drawn per image."""

    flip: float = Field(0.5, ge=0, le=1)
    """Probability of a left-right flip."""
    low_resolution: float = Field(0.0, ge=0, le=1)
    """Probability of shrinking to 50-80 % of the side and back (original `dali_aug`: 0.1)."""
    blur: float = Field(0.0, ge=0, le=1)
    """Probability of a Gaussian blur with a window of 3 or 5 pixels (0.2)."""
    colour: float = Field(0.0, ge=0, le=1)
    """Probability of a hue turn up to 20 degrees and saturation up to 1.2 (0.2)."""
    grey: float = Field(0.0, ge=0, le=1)
    """Probability of removing colour (0.1)."""
    crop: float = Field(0.0, ge=0, le=1)
    """Probability of keeping a random part (60-100 % of the area) on black, as AdaFace."""
    brightness: float = Field(0.0, ge=0, le=1)
    """Probability of changing brightness and contrast by up to 30 %."""


class SyntheticFaces(Config):
    """Procedural patterns, one per class: for speed tests and to try a configuration."""

    kind: Literal["synthetic"] = "synthetic"
    num_classes: int = Field(1000, ge=2)
    """Classes."""
    num_images: int = Field(100_000, ge=1)
    """Images in an epoch; image i has class i % num_classes."""
    noise: float = Field(24.0, ge=0)
    """Largest noise, grey levels."""


class RecordFaces(Config):
    """RecordIO files."""

    kind: Literal["recordio"] = "recordio"
    path: str
    """Folder with train.rec and train.idx, or a .rec file."""
    num_classes: int | None = Field(None, ge=2)
    """Classes; null: what the file says."""
    validation: tuple[str, ...] = ()
    """Verification sets: names of `.bin` files in the folder, or paths."""


class FolderFaces(Config):
    """A folder with one sub-folder of aligned images per identity."""

    kind: Literal["folder"] = "folder"
    path: str
    """Folder."""
    resize: bool = False
    """Resize images of another size instead of refusing them."""
    validation: tuple[str, ...] = ()
    """Verification sets: paths of `.bin` files, or names in the folder."""


class ParquetFaces(Config):
    """Parquet files with a column of encoded, aligned images and one of identities."""

    kind: Literal["parquet"] = "parquet"
    path: str
    """File, or folder of `.parquet` files; local path or URI."""
    image_column: str = "image"
    """Encoded pictures: binary, or a struct with a field `bytes`."""
    label_column: str = "label"
    """Identities: classes 0, 1, .. or texts, which are numbered in sorted order."""
    num_classes: int | None = Field(None, ge=2)
    """Classes; null: what the labels say."""
    resize: bool = False
    """Resize images of another size instead of refusing them."""
    cache_row_groups: int = Field(64, ge=1)
    """Row groups kept in memory."""
    validation: tuple[str, ...] = ()
    """Verification sets: paths of `.bin` files."""


class ClipFaces(Config):
    """Frames of a `clips` artifact, aligned by their landmarks; identity_id is the class."""

    kind: Literal["clips"] = "clips"
    path: str
    """Artifact of `jobs.preprocess`."""
    split: str | None = "train"
    """Value of the clips' `split` column; null uses all."""
    max_frames_per_clip: int | None = Field(None, ge=1)
    """Evenly spaced frames kept of each clip."""
    validation: tuple[str, ...] = ()
    """Verification sets: paths of `.bin` files."""


class TrainArcfaceConfig(TrainingConfig):
    """Train an identity embedding."""

    backbone: ArcfaceBackboneConfig = ArcfaceBackboneConfig()
    """Network."""
    head: ArcfaceHeadConfig = ArcfaceHeadConfig()
    """Class centres and margin."""
    data: Annotated[
        SyntheticFaces | RecordFaces | FolderFaces | ParquetFaces | ClipFaces,
        Field(discriminator="kind"),
    ]
    """Images and identities."""
    augment: AugmentConfig = AugmentConfig()
    """Changes to training images."""
    optimizer: Annotated[ArcfaceSgd | ArcfaceAdamw, Field(discriminator="kind")] = ArcfaceSgd()
    """Optimiser."""
    epochs: float = Field(20, gt=0)
    """Length of the training and of the learning-rate schedule."""
    warmup_epochs: float = Field(0, ge=0)
    """Linear rise of the learning rate."""
    schedule_power: float = Field(1.0, gt=0)
    """Exponent of the fall to zero; 1 as the 2023 original, 2 before."""
    full_first_step: bool = False
    """Make step 0 at the full rate in spite of a warm-up, as the original."""
    max_samples: int | None = Field(None, ge=1)
    """Stop after this many images (the schedule still spans all epochs)."""
    batch_size: int = Field(128, ge=2)
    """Images per optimiser step over all workers and micro-batches."""
    gradient_accumulation: int = Field(1, ge=1)
    """Micro-batches per optimiser step."""
    accumulate: Literal["mean", "sum"] = "mean"
    """`sum`: do not divide by the number of micro-batches, as the original."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the backbone; the head always computes in fp32."""
    gradient_compression: Literal["none", "bf16", "fp16"] = "none"
    """Precision in which the backbone's gradients travel between workers."""
    clip_norm: float = Field(5.0, gt=0)
    """Largest L2 norm of the backbone's gradient."""
    max_skipped_steps: int = Field(0, ge=0)
    """Consecutive steps with non-finite numbers that are skipped; one more ends the run."""
    num_folds: int = Field(10, ge=1)
    """Folds of the verification."""
    log_every: int = Field(1280, ge=1)
    """Images between points of the loss curve."""
    evaluate_every: int = Field(256_000, ge=1)
    """Images between verifications."""
    checkpoint_every: int = Field(256_000, ge=1)
    """Images between saved states."""

    @model_validator(mode="after")
    def _batch(self) -> Self:
        parts = self.launch.num_workers * self.gradient_accumulation
        if self.batch_size % parts:
            raise ValueError(
                f"batch_size={self.batch_size} is not divisible by launch.num_workers x "
                f"gradient_accumulation = {parts}"
            )
        if self.batch_size // parts < 2:
            raise ValueError(
                f"batch_size={self.batch_size} gives less than 2 images per worker and "
                "micro-batch; BatchNorm needs two"
            )
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs={self.warmup_epochs} is not below {self.epochs} epochs"
            )
        if self.accumulate == "sum" and self.gradient_accumulation == 1:
            raise ValueError("accumulate=sum has no effect with gradient_accumulation=1")
        return self
