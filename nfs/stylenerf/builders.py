"""From configuration and artifacts to networks, data and the training task."""

import logging
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nfs.artifacts.manifest import read_manifest
from nfs.config.base import tree_hash
from nfs.config.train_stylenerf import FittedCameras, FixedAugment, TrainStylenerfConfig
from nfs.errors import InputError
from nfs.perceptual.dlib_face import DlibDistance
from nfs.perceptual.extractors import build_extractor
from nfs.runtime.collect import Ranks
from nfs.runtime.context import WorkerContext
from nfs.runtime.seeding import derive_seed, seed_everything
from nfs.stylenerf.clip_frames import ClipFrames
from nfs.stylenerf.dataset import TrainingImages
from nfs.stylenerf.discriminator import Discriminator
from nfs.stylenerf.evaluation import EvaluationSettings, GeneratorEvaluator, RealImages
from nfs.stylenerf.export import export_generator, load_discriminator, load_generator
from nfs.stylenerf.generator import Generator
from nfs.stylenerf.image_builders import open_images
from nfs.stylenerf.initial import start_from
from nfs.stylenerf.poses import FittedAngles, fitted_prior, frame_angles, read_angles
from nfs.stylenerf.settings import AugmentSettings, GanSettings, SpeedSettings
from nfs.stylenerf.spec import CameraPrior, DiscriminatorSpec, GeneratorSpec
from nfs.stylenerf.task import StyleNerfTask
from nfs.stylenerf.warm_start import fit_linear_encoder
from nfs.training.loop import LoopSettings, train

logger = logging.getLogger(__name__)

MAX_LABELS = 1024
"""Labels of evaluated images, evenly spaced over the data."""

__all__ = ["export_generator", "load_discriminator", "load_generator", "train_worker"]


def train_worker(tree: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    """Train on one rank and return the final metrics.

    Args:
        tree: `TrainStylenerfConfig` as plain values.
        context: This rank.
    """
    config = TrainStylenerfConfig.from_tree(tree, source="train_stylenerf")
    angles = read_fitted(config)
    prior = build_prior(config, angles)
    dataset = build_dataset(config, prior, angles)
    if context.rank == 0:
        context.tracker.log_params(
            {
                "data/images": len(dataset),
                "data/images_without_fit": dataset.num_without_fit,
                "data/label_dim": dataset.label_dim,
                "cameras/yaw_rad": prior.yaw_rad,
                "cameras/pitch_rad": prior.pitch_rad,
            }
        )
    seed_everything("init", config.seed)
    generator = build_generator(config, prior, dataset.label_dim)
    discriminator = build_discriminator(config, dataset.label_dim)
    initial_ema = None
    if config.init is not None and context.latest() is None:
        initial_ema = start_from(config.init, generator, discriminator)
    task = StyleNerfTask(
        generator,
        discriminator,
        build_settings(config),
        card={
            "trained on": f"{len(dataset)} images of {config.data.path}",
            "images seen": config.total_samples,
        },
        evaluator=build_evaluator(config, dataset, context),
        initial_ema=initial_ema,
    )
    settings = LoopSettings.from_config(config, config.total_samples)
    return dict(train(task, dataset, settings, context))


def build_generator(
    config: TrainStylenerfConfig, prior: CameraPrior, label_dim: int = 0
) -> Generator:
    """Return an untrained generator."""
    tree = {**config.generator.tree(), "c_dim": label_dim, "cameras": asdict(prior)}
    generator = Generator(GeneratorSpec.from_dict(tree))
    if config.warm_start is not None:
        with torch.no_grad():
            for name, parameter in generator.named_parameters():
                if name.endswith("affine.weight"):
                    parameter.mul_(config.warm_start.style_gain)
    return generator


def build_discriminator(config: TrainStylenerfConfig, label_dim: int = 0) -> Discriminator:
    """Return an untrained discriminator for the generator's images."""
    return Discriminator(
        DiscriminatorSpec(
            img_resolution=config.generator.img_resolution,
            lowres_head=config.generator.resolution_start,
            c_dim=label_dim,
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
        speed=SpeedSettings(**config.speed.model_dump()),
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


def build_evaluator(
    config: TrainStylenerfConfig, dataset: TrainingImages, context: WorkerContext
) -> GeneratorEvaluator:
    """Return what measures the generator during training, comparing it with the data set."""
    settings = config.evaluation
    facts = {"data": config.data.tree(), "size": config.generator.img_resolution}

    def read(index: int) -> torch.Tensor:
        rng = np.random.default_rng(derive_seed("evaluation", index))
        return torch.from_numpy(dataset.get(index, rng)["image"])

    def key() -> str:
        return f"{dataset.fingerprint()} {tree_hash(facts)}"

    labels = None
    if dataset.label_dim:
        chosen = np.linspace(0, len(dataset) - 1, min(len(dataset), MAX_LABELS)).round().astype(int)
        labels = torch.from_numpy(np.stack([dataset.label(int(i)) for i in chosen]))
    return GeneratorEvaluator(
        EvaluationSettings(
            grid_size=config.grid_size,
            num_samples=settings.num_samples,
            batch_size=settings.batch_size,
            orbit_latents=settings.orbit_latents,
            orbit_frames=settings.orbit_frames,
        ),
        directory=context.directory,
        ranks=Ranks(context.rank, context.world_size, context.device),
        features=build_extractor(settings.features) if settings.num_samples else None,
        reals=RealImages(len(dataset), read, key),
        identity=DlibDistance.load().to(context.device),
        labels=labels,
    )


def read_fitted(config: TrainStylenerfConfig) -> FittedAngles | None:
    """Return the cameras of fitted frames, where the configuration asks for fits."""
    cameras = config.cameras
    if not isinstance(cameras, FittedCameras):
        return None
    read_manifest(cameras.path, kind="fits")
    return read_angles(cameras.path)


def build_prior(config: TrainStylenerfConfig, angles: FittedAngles | None = None) -> CameraPrior:
    """Return the camera distribution: configured, or that of fitted head poses."""
    cameras = config.cameras
    if isinstance(cameras, FittedCameras):
        assert angles is not None
        return fitted_prior(
            angles,
            min_spread_rad=cameras.min_spread_rad,
            max_spread_rad=cameras.max_spread_rad,
        )
    return CameraPrior(**cameras.model_dump(exclude={"kind"}))


def build_dataset(
    config: TrainStylenerfConfig, prior: CameraPrior, angles: FittedAngles | None = None
) -> TrainingImages:
    """Return the training images; with a warm start they carry codes, with fits their cameras.

    Raises:
        InputError: If more than half of the images that need a camera have no fit.
    """
    dataset = open_images(config.data, resolution=config.generator.img_resolution, seed=config.seed)
    cameras = config.cameras
    if isinstance(cameras, FittedCameras) and (config.warm_start is not None or cameras.per_image):
        assert angles is not None
        assert isinstance(dataset.source, ClipFrames)  # the configuration demands it
        found = frame_angles(angles, dataset.source.index, prior)[dataset.numbers]
        dataset = _with_cameras(dataset, found, cameras.path)
    if config.warm_start is not None:
        count = min(config.warm_start.num_images, len(dataset))
        chosen = np.linspace(0, len(dataset) - 1, count).round().astype(int)
        images = (dataset.pixels(int(i)) for i in chosen)
        dataset.encoder = fit_linear_encoder(images, config.generator.z_dim)
    return dataset


def _with_cameras(
    dataset: TrainingImages, yaw_pitch: NDArray[np.float32], fits: str
) -> TrainingImages:
    """Return the images that have a camera; `yaw_pitch [M, 2]` is NaN where there is none."""
    fitted = np.flatnonzero(np.isfinite(yaw_pitch).all(axis=1))
    missing = len(dataset) - len(fitted)
    if missing > len(dataset) / 2:
        raise InputError(
            f"cameras.path={fits}: {missing} of {len(dataset)} frames of {dataset.source.uri} have "
            "no fit; run jobs.fit_3dmm on these clips"
        )
    if missing:
        logger.warning("%d of %d frames have no fit: left out", missing, len(dataset))
    kept = dataset.only(fitted)
    kept.angles, kept.num_without_fit = yaw_pitch[fitted], missing
    return kept
