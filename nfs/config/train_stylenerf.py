"""Settings of `jobs.train_stylenerf`; the defaults are the published FFHQ model at 256 pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from nfs.config.base import Config, TrainingConfig
from nfs.config.evaluate import GanEvaluationConfig
from nfs.config.image_data import ImageData
from nfs.config.stylenerf_generator import GeneratorConfig

AugmentOperations = Literal[
    "blit", "geom", "color", "filter", "noise", "cutout",
    "bg", "bgc0", "bgc", "bgcf", "bgcfn", "bgcfnc",
]  # fmt: skip
FILTERING, FILTER_PX = ("filter", "bgcf", "bgcfn", "bgcfnc"), 22
"""Sets that filter bands, and the smallest image that their filter fits."""


class DiscriminatorConfig(Config):
    """Architecture of the discriminator; its resolution is the generator's."""

    channel_base: float = Field(0.5, gt=0)
    """Width of a block: `channel_base * 32768 / resolution`."""
    channel_max: int = Field(512, ge=1)
    """Largest width."""
    conv_clamp: float | None = Field(256.0, gt=0)
    """Clamp of activations; null for none."""
    mbstd_group_size: int = Field(8, ge=1)
    """Samples per group of the minibatch statistics; divides the batch of one worker."""
    mbstd_num_channels: int = Field(1, ge=1)
    """Channels of the minibatch statistics."""
    architecture: Literal["skip", "orig", "resnet"] = "skip"
    """Where blocks see the image: all of them, or the first alone (`resnet`: with a bypass)."""
    progressive: bool = True
    """Grow with the generator; needs the architecture `skip`."""
    fade: bool = False
    """Blend a new block in instead of switching to it at once, as the original does in fact."""
    cmap_dim: int | None = Field(None, ge=1)
    """Size that labels or cameras are mapped to; null: the width at 4x4."""
    mapping_num_layers: int = Field(8, ge=1)
    """Layers of that mapping."""
    dual_discriminator: bool = False
    """Judge the low-resolution images too, with blocks of their own."""
    dual_input_ratio: int | None = Field(None, ge=2)
    """Show the low-resolution image as more channels; real ones are reduced by this factor."""
    camera: Literal["matrix", "pose9", "uvr"] | None = None
    """Predict cameras: matrix, rotation rows with translation, or yaw, pitch and radius."""
    separate_camera: bool = False
    """Predict the camera with low-resolution blocks of its own."""
    camera_condition: bool = True
    """Whether the predicted camera conditions the logits."""
    num_frozen_layers: int = Field(0, ge=0)
    """Layers, counted from the image, that keep their initial weights (fine-tuning)."""

    @model_validator(mode="after")
    def _variants(self) -> Self:
        if self.progressive and self.architecture != "skip":
            raise ValueError(
                f"architecture={self.architecture} cannot grow: set discriminator.progressive=false"
            )
        if self.fade and not self.progressive:
            raise ValueError("discriminator.fade needs progressive=true")
        if self.camera is None and (self.separate_camera or not self.camera_condition):
            raise ValueError("separate_camera and camera_condition=false need discriminator.camera")
        chosen = [
            name
            for name in ("dual_discriminator", "dual_input_ratio", "separate_camera")
            if getattr(self, name)
        ]
        if len(chosen) > 1:
            raise ValueError(f"choose one of discriminator.{' and discriminator.'.join(chosen)}")
        return self


class PriorCameras(Config):
    """Cameras drawn from a fixed distribution."""

    kind: Literal["prior"] = "prior"
    yaw_rad: tuple[float, float] = (-0.3, 0.3)
    """Range; the gaussian has its mean in the middle and half the width as deviation."""
    pitch_rad: tuple[float, float] = (math.pi / 2 - 0.155, math.pi / 2 + 0.155)
    """Range of the polar angle; pi/2 is level."""
    radius: tuple[float, float] = (1.0, 1.0)
    """Range of the distance, scene units."""
    gaussian: bool = True
    """Normal instead of uniform."""
    angular: bool = True
    """False: the ranges are shares of the sphere, yaw / 2 pi and (1 - cos pitch) / 2."""
    roll_deg: float = Field(0.0, ge=0)
    """Twice the standard deviation of the images' roll, degrees."""


class FittedCameras(Config):
    """Cameras drawn from a normal distribution with the mean and spread of fitted head poses."""

    kind: Literal["fits"] = "fits"
    path: str
    """Artifact of `jobs.fit_3dmm` for the same clips."""
    min_spread_rad: float = Field(0.05, gt=0)
    """Smallest standard deviation of yaw and pitch."""
    max_spread_rad: float = Field(0.3, gt=0)
    """Largest standard deviation of yaw and pitch."""
    per_image: bool = False
    """See fakes from the cameras of the batch's images instead of the normal distribution; frames
    without a fit are left out."""


class GrowthConfig(Config):
    """Progressive growth from `resolution_start`; equal ends (0, 0) start at full resolution."""

    start_kimg: float = Field(500.0, ge=0)
    """Images (thousands) at the first resolution."""
    end_kimg: float | None = Field(5000.0, ge=0)
    """Images (thousands) after which everything is active; null: it never grows."""
    first_alpha: float = Field(0.0, ge=0, lt=1)
    """Stage that growth starts from: 0 is the first resolution, 1 everything."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.end_kimg is not None and self.end_kimg < self.start_kimg:
            raise ValueError("end_kimg is below start_kimg")
        return self


class GanOptimizer(Config):
    """Adam for both networks and the averaged generator."""

    generator_lr: float = Field(0.0025, gt=0)
    """Learning rate of the generator before the correction for lazy regularisation."""
    discriminator_lr: float = Field(0.0025, gt=0)
    """Learning rate of the discriminator before the correction for lazy regularisation."""
    final_lr_scale: float = Field(1.0, gt=0, le=1)
    """Both rates fall linearly to this share of themselves at the end of the run."""
    betas: tuple[float, float] = (0.0, 0.99)
    """Adam's decay rates."""
    ema_kimg: float = Field(20.0, ge=0)
    """Half-life of the averaged generator, thousands of images."""
    ema_rampup: float | None = Field(None, gt=0)
    """Shortens the half-life to this share of the images seen so far; null: constant."""
    discriminator_ema: bool = False
    """Average the discriminator too."""


class GanLoss(Config):
    """Losses."""

    r1_gamma: float = Field(0.5, ge=0)
    """Weight of the R1 penalty, applied as gamma / 2; 0 leaves it out."""
    r1_interval: int = Field(16, ge=1)
    """Steps between R1 penalties, each scaled by the interval."""
    pl_weight: float = Field(2.0, ge=0)
    """Weight of the path-length penalty of the generator; 0 leaves it out."""
    pl_interval: int = Field(4, ge=1)
    """Steps between path-length penalties, each scaled by the interval."""
    pl_decay: float = Field(0.01, gt=0, le=1)
    """Share of a new path length in its running mean."""
    pl_batch_shrink: int = Field(2, ge=1)
    """The path-length penalty sees the batch divided by this."""
    path_pixels: int = Field(16, ge=0)
    """Pixels per side at which the NeRF-path regulariser compares field and image; 0: none."""
    path_weight: float = Field(1.0, gt=0)
    """Weight of the NeRF-path regulariser."""
    path_fade: bool = False
    """Fade the regulariser's colours as the image fades in; published weights did not."""
    label_smooth: float = Field(0.0, ge=0, le=0.5)
    """Share of the opposite label in the losses of fakes (G) and real images (D)."""
    camera_weight: float = Field(1.0, ge=0)
    """Weight of the camera loss of a discriminator that predicts cameras."""
    style_mixing_prob: float = Field(0.9, ge=0, le=1)
    """Share of batches whose later layers get another style."""
    share_fakes: bool = False
    """Train the discriminator on the generator step's images instead of drawing new ones."""


class GanSpeed(Config):
    """How the numbers are computed; what is computed stays the same."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of matrix products and convolutions; cameras, depths, compositing, styles, statistics, images
    and norms stay single. `fp16` has no loss scaling."""
    recompute_field: bool = False
    """Compute the fields' hidden states again in the backward pass: less memory, more time."""
    channels_last: bool = False
    """Memory layout of the discriminator; for GPUs."""
    compile: bool = False
    """Compile both networks for the main phases; each growth stage compiles anew."""


class FixedAugment(Config):
    """Distort what the discriminator sees with a fixed strength."""

    kind: Literal["fixed"] = "fixed"
    operations: AugmentOperations = "bgc"
    """Set of operations (b blit, g geometry, c colour, f filter, n noise, c cutout)."""
    p: float = Field(0.2, ge=0, le=1)
    """Probability of each operation."""


class AdaptiveAugmentConfig(Config):
    """Distort what the discriminator sees the more, the surer it is of real images (ADA)."""

    kind: Literal["adaptive"] = "adaptive"
    operations: AugmentOperations = "bgc"
    """Set of operations (b blit, g geometry, c colour, f filter, n noise, c cutout)."""
    initial_p: float = Field(0.0, ge=0, le=1)
    """Probability of each operation at the start."""
    target: float = Field(0.6, gt=-1, lt=1)
    """Mean sign of the logits of real images that the strength aims at."""
    kimg: float = Field(500.0, gt=0)
    """Images (thousands) in which the strength can rise from 0 to 1."""
    every: int = Field(4, ge=1)
    """Steps between changes of the strength."""


class WarmStartConfig(Config):
    """Reconstruction of frames from linear codes before and beside the adversarial losses."""

    kimg: float = Field(gt=0)
    """Images (thousands) at the start during which the generator only reconstructs."""
    weight: float = Field(10.0, ge=0)
    """Weight of the squared error afterwards, on half of each batch."""
    style_gain: float = Field(0.2, gt=0, le=1)
    """Initial scale of the style layers: small makes all latents start as the same image."""
    num_images: int = Field(512, ge=2)
    """Evenly spaced frames that the linear code is fitted to."""


class TrainStylenerfConfig(TrainingConfig):
    """Train StyleNeRF on images of faces (or of anything photographed alike)."""

    data: ImageData
    """Images. `clips: PATH` is short for `data: {kind: clips, path: PATH}`."""
    generator: GeneratorConfig = GeneratorConfig()
    """Generator."""
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    """Discriminator."""
    cameras: Annotated[PriorCameras | FittedCameras, Field(discriminator="kind")] = PriorCameras()
    """Cameras of generated images."""
    growth: GrowthConfig = GrowthConfig()
    """Progressive growth."""
    optimizer: GanOptimizer = GanOptimizer()
    """Optimisers."""
    loss: GanLoss = GanLoss()
    """Losses."""
    augment: Annotated[FixedAugment | AdaptiveAugmentConfig, Field(discriminator="kind")] | None = (
        None
    )
    """Augmentation of the discriminator's images; null: none."""
    speed: GanSpeed = GanSpeed()
    """Precision, memory and compilation."""
    init: str | None = None
    """Checkpoint directory that G, its average and D start from (`nfs checkpoint import`, or an
    earlier run); a smaller `img_resolution` there is continued with new blocks. Null: random."""
    warm_start: WarmStartConfig | None = None
    """Start by reconstruction (runs of minutes on a few clips); null as published."""
    total_samples: int = Field(25_000_000, ge=1)
    """Length of the training, images."""
    batch_size: int = Field(64, ge=2)
    """Images per step over all workers."""
    micro_batch: int | None = Field(None, ge=1)
    """Most images of one worker in one pass; more are divided into rounds. Null: one pass."""
    log_every: int = Field(4_096, ge=1)
    """Images between points of the loss curves."""
    evaluate_every: int = Field(40_960, ge=1)
    """Images between sample grids."""
    checkpoint_every: int = Field(204_800, ge=1)
    """Images between saved states."""
    grid_size: int = Field(8, ge=1, le=32)
    """Latents per sample grid; each is shown from several cameras."""
    evaluation: GanEvaluationConfig = GanEvaluationConfig()
    """What else is measured and drawn every `evaluate_every` images."""

    @model_validator(mode="before")
    @classmethod
    def _clips_are_the_default(cls, tree: object) -> object:
        if not isinstance(tree, Mapping):
            return tree
        data, rest = tree.get("data", {}), {k: v for k, v in tree.items() if k != "clips"}
        if not isinstance(data, Mapping):
            return rest
        data = {"kind": "clips", **data}
        if tree.get("clips") is not None:
            if data["kind"] != "clips":
                raise ValueError(f"clips={tree['clips']} has no place in data.kind={data['kind']}")
            data["path"] = tree["clips"]
        return {**rest, "data": data}

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.init is not None and self.warm_start is not None:
            raise ValueError("init and warm_start exclude each other: trained weights need none")
        return self

    @model_validator(mode="after")
    def _cameras_of_frames(self) -> Self:
        if self.cameras.kind == "fits" and self.data.kind != "clips":
            raise ValueError("cameras.kind=fits needs data.kind=clips: fits belong to clips")
        return self

    @model_validator(mode="after")
    def _batch(self) -> Self:
        workers, group = self.launch.num_workers, self.discriminator.mbstd_group_size
        if self.batch_size % workers:
            raise ValueError(
                f"batch_size={self.batch_size} is not divisible by launch.num_workers={workers}"
            )
        per_pass = self._images_per_pass(self.batch_size // workers)
        if per_pass % min(group, per_pass):
            raise ValueError(
                f"{per_pass} images per worker and pass are not a multiple of "
                f"discriminator.mbstd_group_size={group}"
            )
        return self

    @model_validator(mode="after")
    def _one_image(self) -> Self:
        dual = self.discriminator.dual_discriminator or self.discriminator.dual_input_ratio
        if self.augment is not None and dual:
            raise ValueError(
                "augment distorts the image alone, which would tell it from the low-resolution "
                "image of a dual discriminator; set augment=null"
            )
        return self

    @model_validator(mode="after")
    def _filtered(self) -> Self:
        smallest = self._first_image_px()
        if self.augment and self.augment.operations in FILTERING and smallest < FILTER_PX:
            raise ValueError(
                f"augment.operations={self.augment.operations} filters images of at least "
                f"{FILTER_PX} px, but they begin with {smallest} px; use a set without filter "
                "(bgc), or a larger generator.resolution_start"
            )
        return self

    @model_validator(mode="after")
    def _networks_fit(self) -> Self:
        if self.generator.grow_field and self.discriminator.progressive:
            raise ValueError(
                "generator.grow_field: images have their full size at every stage; "
                "set discriminator.progressive=false"
            )
        grows = self.growth.end_kimg != 0 and not self.generator.grow_field
        smaller = self.generator.resolution_start < self.generator.img_resolution
        if grows and smaller and not self.discriminator.progressive:
            raise ValueError(
                "discriminator.progressive=false needs images of one size: set growth.start_kimg=0 "
                "and growth.end_kimg=0, or generator.grow_field=true"
            )
        if grows and smaller and self.generator.architecture != "skip":
            raise ValueError(
                f"generator.architecture={self.generator.architecture}: only the last block has a "
                "colour, so it cannot grow; set growth.start_kimg=0 and growth.end_kimg=0"
            )
        return self

    @model_validator(mode="after")
    def _regulariser(self) -> Self:
        sizes = self.generator
        if self.loss.path_pixels and sizes.resolution_vol == sizes.img_resolution:
            raise ValueError("loss.path_pixels: there are no 2-D blocks to regularise; set it to 0")
        if self.loss.path_pixels and sizes.foreground.normalization == "rows":
            raise ValueError(
                "generator.foreground.normalization=rows needs whole images; use channels, "
                "or set loss.path_pixels=0"
            )
        smallest = min(2 * sizes.resolution_start, sizes.img_resolution)
        if self.loss.path_pixels > smallest:
            raise ValueError(
                f"loss.path_pixels={self.loss.path_pixels} exceeds {smallest} px, the first "
                "resolution after generator.resolution_start; choose a divisor of it, or 0"
            )
        return self

    def _first_image_px(self) -> int:
        """Return the side of the first images (spec/stylenerf.md 2.6)."""
        sizes, growth = self.generator, self.growth
        if growth.end_kimg == 0 or sizes.grow_field:
            return sizes.img_resolution
        levels = int(math.log2(sizes.img_resolution / sizes.resolution_start))
        level = int(growth.first_alpha * levels) + 1 if growth.first_alpha > 0 else 0
        return sizes.resolution_start << level

    def _images_per_pass(self, per_worker: int) -> int:
        limit = self.micro_batch or per_worker
        return max(n for n in range(1, min(limit, per_worker) + 1) if per_worker % n == 0)
