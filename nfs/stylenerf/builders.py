"""From configuration and artifacts to networks, data and the training task."""

from typing import Any

import numpy as np
import torch

from nfs.artifacts.manifest import read_manifest
from nfs.config.train_stylenerf import FittedCameras, FixedAugment, TrainStylenerfConfig
from nfs.runtime.context import WorkerContext
from nfs.runtime.seeding import seed_everything
from nfs.stylenerf.dataset import FrameImages, FrameIndex, index_frames
from nfs.stylenerf.discriminator import Discriminator
from nfs.stylenerf.export import export_generator, load_discriminator, load_generator
from nfs.stylenerf.generator import Generator
from nfs.stylenerf.poses import fitted_prior, frame_angles, read_angles
from nfs.stylenerf.settings import AugmentSettings, GanSettings
from nfs.stylenerf.spec import CameraPrior, DiscriminatorSpec, EllipsoidPrior, GeneratorSpec
from nfs.stylenerf.task import StyleNerfTask
from nfs.stylenerf.warm_start import fit_linear_encoder
from nfs.training.loop import LoopSettings, train

__all__ = ["export_generator", "load_discriminator", "load_generator", "train_worker"]


def train_worker(tree: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    """Train on one rank and return the final metrics.

    Args:
        tree: `TrainStylenerfConfig` as plain values.
        context: This rank.
    """
    config = TrainStylenerfConfig.from_tree(tree, source="train_stylenerf")
    read_manifest(config.clips, kind="clips")
    index = index_frames(
        config.clips,
        split=config.data.split,
        max_frames_per_clip=config.data.max_frames_per_clip,
    )
    prior = build_prior(config)
    if context.rank == 0:
        context.tracker.log_params(
            {
                "data/frames": len(index),
                "cameras/yaw_rad": prior.yaw_rad,
                "cameras/pitch_rad": prior.pitch_rad,
            }
        )
    seed_everything("init", config.seed)
    task = StyleNerfTask(
        build_generator(config, prior),
        build_discriminator(config),
        build_settings(config),
        card={
            "trained on": f"{len(index)} frames of {config.clips}",
            "images seen": config.total_samples,
        },
    )
    dataset = build_dataset(config, index, prior)
    settings = LoopSettings(
        total_samples=config.total_samples,
        batch_size=config.batch_size,
        log_every=config.log_every,
        checkpoint_every=config.checkpoint_every,
        evaluate_every=config.evaluate_every,
        seed=config.seed,
        loader=config.loader,
    )
    return dict(train(task, dataset, settings, context))


def build_generator(config: TrainStylenerfConfig, prior: CameraPrior) -> Generator:
    """Return an untrained generator."""
    tree = config.generator.model_dump()
    shape = tree.pop("density_prior")
    density_prior = None if shape is None else EllipsoidPrior(**shape)
    generator = Generator(GeneratorSpec(**tree, density_prior=density_prior, cameras=prior))
    if config.warm_start is not None:
        with torch.no_grad():
            for name, parameter in generator.named_parameters():
                if name.endswith("affine.weight"):
                    parameter.mul_(config.warm_start.style_gain)
    return generator


def build_discriminator(config: TrainStylenerfConfig) -> Discriminator:
    """Return an untrained discriminator for the generator's images."""
    return Discriminator(
        DiscriminatorSpec(
            img_resolution=config.generator.img_resolution,
            lowres_head=config.generator.resolution_start,
            **config.discriminator.model_dump(),
        )
    )


def build_settings(config: TrainStylenerfConfig) -> GanSettings:
    """Return the numbers of the training."""
    warm, cameras = config.warm_start, config.cameras
    return GanSettings(
        warm_start_kimg=0.0 if warm is None else warm.kimg,
        reconstruction_weight=0.0 if warm is None else warm.weight,
        batch_size=config.batch_size,
        micro_batch=config.micro_batch,
        total_samples=config.total_samples,
        growth_start_kimg=config.growth.start_kimg,
        growth_end_kimg=config.growth.end_kimg,
        growth_first_alpha=config.growth.first_alpha,
        image_cameras=isinstance(cameras, FittedCameras) and cameras.per_image,
        grid_size=config.grid_size,
        augment=build_augment(config),
        **config.optimizer.model_dump(),
        **config.loss.model_dump(),
    )


def build_augment(config: TrainStylenerfConfig) -> AugmentSettings | None:
    """Return how the discriminator's images are distorted."""
    augment = config.augment
    if augment is None:
        return None
    if isinstance(augment, FixedAugment):
        return AugmentSettings(augment.operations, initial_p=augment.p)
    return AugmentSettings(**augment.model_dump(exclude={"kind"}))


def build_prior(config: TrainStylenerfConfig) -> CameraPrior:
    """Return the camera distribution: configured, or that of fitted head poses."""
    cameras = config.cameras
    if isinstance(cameras, FittedCameras):
        read_manifest(cameras.path, kind="fits")
        return fitted_prior(
            read_angles(cameras.path),
            min_spread_rad=cameras.min_spread_rad,
            max_spread_rad=cameras.max_spread_rad,
        )
    return CameraPrior(
        yaw_rad=cameras.yaw_rad, pitch_rad=cameras.pitch_rad, gaussian=cameras.gaussian
    )


def build_dataset(
    config: TrainStylenerfConfig, index: FrameIndex, prior: CameraPrior
) -> FrameImages:
    """Return the training images; with a warm start they carry codes, with fits their cameras."""
    dataset = FrameImages(
        config.clips,
        index,
        resolution=config.generator.img_resolution,
        mirror=config.data.mirror,
        cache_row_groups=config.data.cache_row_groups,
    )
    if config.warm_start is not None:
        count = min(config.warm_start.num_images, len(dataset))
        chosen = np.linspace(0, len(dataset) - 1, count).round().astype(int)
        images = (dataset.pixels(int(i)) for i in chosen)
        dataset.encoder = fit_linear_encoder(images, config.generator.z_dim)
    if isinstance(config.cameras, FittedCameras) and (
        config.warm_start is not None or config.cameras.per_image
    ):
        angles = read_angles(config.cameras.path)
        dataset.angles = frame_angles(angles, index.keys, prior)
    return dataset
