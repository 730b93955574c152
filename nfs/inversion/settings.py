"""Settings of projection and tuning: plain frozen data, whose defaults are the published values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Trainable = Literal["all", "upsampler", "field"]


@dataclass(frozen=True)
class ProjectSettings:
    """How to search ws and the background code (spec/inversion_and_talker.md 2.1, 4.1).

    Attributes:
        num_steps: Optimiser steps.
        space: `w`: one style for all layers; `w_plus`: one per layer.
        learning_rate: Peak rate of Adam on ws.
        background_rate: Peak rate of Adam on the background code.
        noise_scale: Largest noise on w, in standard deviations of w.
        noise_fraction: Part of the run after which the noise is zero.
        ramp_up_fraction: Part of the run with a rising learning rate.
        ramp_down_fraction: Part of the run with a falling learning rate.
        num_w_samples: Latents for the statistics of w.
        perceptual_weight: Weight of the perceptual distance.
        l2_weight: Weight of the mean squared pixel difference; 0 in the original.
        delta_weight: W+ only: weight of mean |ws - mean over layers|^2; 0 in the original.
        noise_weight: Weight of the regulariser of noise buffers, where the generator has any.
        frames_per_step: Frames rendered per step; None = all.
        seed: Seed of every draw.
        time_limit_s: Wall-clock limit in seconds; None = none.
        save_every: Steps between saved states.
    """

    num_steps: int = 450
    space: Literal["w", "w_plus"] = "w"
    learning_rate: float = 0.01
    background_rate: float = 0.01
    noise_scale: float = 0.05
    noise_fraction: float = 0.75
    ramp_up_fraction: float = 0.05
    ramp_down_fraction: float = 0.25
    num_w_samples: int = 600
    perceptual_weight: float = 1.0
    l2_weight: float = 0.0
    delta_weight: float = 0.0
    noise_weight: float = 1e5
    frames_per_step: int | None = None
    seed: int = 0
    time_limit_s: float | None = None
    save_every: int = 50


@dataclass(frozen=True)
class TuneSettings:
    """How to tune the generator around a fixed pivot (spec/inversion_and_talker.md 2.2, 4.1).

    Attributes:
        num_steps: Most optimiser steps.
        learning_rate: Peak rate of Adam.
        betas: Adam's moment decays.
        ramp_up_fraction: Part of the run with a rising rate; 0 in the original.
        ramp_down_fraction: Part of the run with a falling rate; 0 in the original.
        trainable: Which parameters move.
        l2_weight: Weight of the mean squared pixel difference.
        perceptual_weight: Weight of the perceptual distance.
        identity_weight: Weight of 1 - identity similarity; needs a backend that embeds.
        locality_weight: Weight of the locality term; 0 = off.
        locality_interval: Steps between locality terms; their weight is scaled by it.
        stop_threshold: Stop once the perceptual distance of all frames is at or below; None = no.
        frames_per_step: Frames rendered per step; None = all.
        seed: Seed of every draw.
        time_limit_s: Wall-clock limit in seconds; None = none.
        save_every: Steps between saved states.
    """

    num_steps: int = 350
    learning_rate: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.999)
    ramp_up_fraction: float = 0.0
    ramp_down_fraction: float = 0.0
    trainable: Trainable = "all"
    l2_weight: float = 1.0
    perceptual_weight: float = 1.0
    identity_weight: float = 0.0
    locality_weight: float = 0.0
    locality_interval: int = 4
    stop_threshold: float | None = None
    frames_per_step: int | None = None
    seed: int = 0
    time_limit_s: float | None = None
    save_every: int = 50
