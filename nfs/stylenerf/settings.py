"""Numbers of the adversarial training, and the schedules that depend on the clock alone."""

from dataclasses import dataclass
from typing import Literal

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class SpeedSettings:
    """How the numbers are computed; none of it changes what is computed."""

    precision: Precision = "fp32"
    """Of matrix products and convolutions; what is sensitive stays single."""
    recompute_field: bool = False
    """Compute the fields' hidden states again in the backward pass instead of keeping them."""
    channels_last: bool = False
    """Memory layout of the discriminator's convolutions."""
    compile: bool = False
    """Compile the networks for the main phases (regularisers need second derivatives)."""


@dataclass(frozen=True)
class AugmentSettings:
    """How the discriminator's images are distorted (Karras et al. 2020)."""

    operations: str
    """Name of a set of operations, e.g. `bgc`."""
    initial_p: float = 0.0
    """Probability of each operation at the start; for good without a target."""
    target: float | None = None
    """Share of positive minus negative logits of real images to aim at; None keeps p fixed."""
    kimg: float = 500.0
    """Thousands of images in which p can move from 0 to 1."""
    every: int = 4
    """Batches between changes of p."""


@dataclass(frozen=True)
class GanSettings:
    """Numbers of the training; see `nfs.config.train_stylenerf` for units and meaning."""

    batch_size: int
    """Global batch."""
    micro_batch: int | None = None
    """Most images of one rank in one pass; None: the rank's whole share."""
    total_samples: int = 25_000_000
    generator_lr: float = 0.0025
    discriminator_lr: float = 0.0025
    final_lr_scale: float = 1.0
    betas: tuple[float, float] = (0.0, 0.99)
    r1_gamma: float = 0.5
    r1_interval: int = 16
    pl_weight: float = 2.0
    pl_interval: int = 4
    pl_decay: float = 0.01
    pl_batch_shrink: int = 2
    path_pixels: int = 16
    path_weight: float = 1.0
    path_fade: bool = False
    path_in_all_phases: bool = False
    style_mixing_prob: float = 0.9
    label_smooth: float = 0.0
    camera_weight: float = 1.0
    share_fakes: bool = False
    ema_kimg: float = 20.0
    ema_rampup: float | None = None
    discriminator_ema: bool = False
    warm_start_kimg: float = 0.0
    reconstruction_weight: float = 0.0
    growth_start_kimg: float = 0.0
    growth_end_kimg: float | None = 0.0
    growth_first_alpha: float = 0.0
    image_cameras: bool = False
    """Fakes are seen from the cameras of the batch's images instead of the prior's."""
    grid_size: int = 8
    augment: AugmentSettings | None = None
    speed: SpeedSettings = SpeedSettings()

    def alpha(self, samples_seen: int) -> float:
        """Return the growth stage in [0, 1]."""
        if self.growth_end_kimg is None:
            return self.growth_first_alpha
        start, end = 1000 * self.growth_start_kimg, 1000 * self.growth_end_kimg
        if samples_seen >= end:
            return 1.0
        share = max(0.0, (samples_seen - start) / (end - start)) if end > start else 0.0
        return self.growth_first_alpha + (1 - self.growth_first_alpha) * share

    def lr_scale(self, samples_seen: int) -> float:
        """Return the factor of both learning rates."""
        share = min(1.0, samples_seen / self.total_samples)
        return 1.0 + share * (self.final_lr_scale - 1.0)

    def adversarial(self, samples_seen: int) -> bool:
        """Return whether the warm start is over."""
        return samples_seen >= 1000 * self.warm_start_kimg

    def due(self, samples_seen: int, interval: int) -> bool:
        """Return whether a regulariser that runs every `interval` steps runs in this one."""
        return (samples_seen // self.batch_size) % interval == 0

    def num_coded(self, samples_seen: int, count: int) -> int:
        """Return how many of `count` fakes are made from the codes of real images."""
        if not self.adversarial(samples_seen):
            return count
        return count // 2 if self.reconstruction_weight > 0 else 0

    def ema_half_life_kimg(self, samples_seen: int) -> float:
        """Return the half-life of the averaged networks."""
        if self.ema_rampup is None:
            return self.ema_kimg
        return min(self.ema_kimg, samples_seen * self.ema_rampup / 1000)

    def num_rounds(self, count: int) -> int:
        """Return into how many equal passes a rank divides its `count` images."""
        if self.micro_batch is None or count <= self.micro_batch:
            return 1
        fewest = -(-count // self.micro_batch)
        return next(rounds for rounds in range(fewest, count + 1) if count % rounds == 0)
