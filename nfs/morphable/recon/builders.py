"""From configuration and artifacts to network, data and the training task."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nfs.artifacts import read_manifest
from nfs.config.train_recon import ReconOptimizer, ReconSupervision, TrainReconConfig
from nfs.morphable.loading import check_same_model, load_model
from nfs.morphable.model import MorphableModel
from nfs.morphable.recon.augment import Augmentation
from nfs.morphable.recon.checkpoint import load_network
from nfs.morphable.recon.frames import (
    FitReader,
    FrameReader,
    ReconFrames,
    Split,
    describe,
    index_frames,
    split_frames,
)
from nfs.morphable.recon.identity import FaceIdentity
from nfs.morphable.recon.losses import ReconObjective, ReconWeights
from nfs.morphable.recon.network import ReconNet, ReconSpec, check_network_model, spec_for
from nfs.morphable.recon.original import load_imagenet_trunk, load_recon, with_spec
from nfs.morphable.recon.task import ReconData, ReconSettings, ReconTask
from nfs.pretrained import read_state_dict
from nfs.runtime.context import WorkerContext
from nfs.runtime.seeding import seed_everything
from nfs.training import LoopSettings, train
from nfs.training.schedules import cosine, warmup


def train_regressor(
    config: TrainReconConfig, identity: FaceIdentity | None, context: WorkerContext
) -> dict[str, Any]:
    """Train on one rank and return the final metrics.

    Args:
        config: Settings; paths absolute.
        identity: The network that `config.identity` names.
        context: This rank.
    """
    model = load_model(config.model)
    split = split_frames(config.clips, index_frames(config.clips), config.data.holdout_fraction)
    fits = build_fits(config.supervision, model)
    facts = {
        **describe(split),
        "clips": read_manifest(config.clips, kind="clips").id,
        "supervised": config.supervision is not None,
        "identity_network": identity.name if identity else "none",
    }
    if context.rank == 0:
        context.tracker.log_params({f"data/{name}": value for name, value in facts.items()})
    seed_everything("init", config.seed)
    network = build_network(config, model)
    data, dataset = build_data(config, split, fits)
    task = ReconTask(
        network,
        objective=ReconObjective(
            model,
            image_size_px=config.network.image_size_px,
            weights=build_weights(config),
            mask=config.loss.mask,
            identity=identity,
        ),
        settings=build_settings(config),
        data=data,
        facts=facts,
    )
    settings = LoopSettings.from_config(config, config.total_samples)
    return dict(train(task, dataset, settings, context))


def build_network(config: TrainReconConfig, model: MorphableModel) -> ReconNet:
    """Return the network with the initial weights that the configuration names."""
    spec, init = build_spec(config, model), config.init
    if init.kind == "scratch":
        return ReconNet(spec)
    if init.kind == "checkpoint":
        loaded = load_network(init.path)
        check_network_model(loaded.spec, model, init.path)
        return _with_weights(loaded, spec)
    state = read_state_dict(init.path)
    if init.kind == "original":
        loaded = load_recon(spec.backbone, state)
        check_network_model(loaded.spec, model, init.path)
        return _with_weights(loaded, spec)
    network = ReconNet(spec)
    load_imagenet_trunk(network, state, init.path)
    return network


def _with_weights(loaded: ReconNet, spec: ReconSpec) -> ReconNet:
    """Return the loaded weights under a new spec; zero output stays where they learned it."""
    return with_spec(loaded, replace(spec, base_translation=loaded.spec.base_translation))


def build_spec(config: TrainReconConfig, model: MorphableModel) -> ReconSpec:
    """Return the spec of the configured network."""
    network = config.network
    return spec_for(
        model,
        backbone=network.backbone,
        output=network.output,
        image_size_px=network.image_size_px,
        aligned=network.base_translation == "aligned",
    )


def build_fits(config: ReconSupervision | None, model: MorphableModel) -> FitReader | None:
    """Return the source of fits after checking that they are of the same morphable model."""
    if config is None:
        return None
    manifest = read_manifest(config.fits, kind="fits")
    check_same_model(
        model,
        model_id=str(manifest.extra.get("model")),
        checksum=str(manifest.extra.get("model_checksum")),
        where=config.fits,
    )
    return FitReader(config.fits)


def build_data(
    config: TrainReconConfig, split: Split, fits: FitReader | None
) -> tuple[ReconData, ReconFrames]:
    """Return the plain frames for evaluation and the augmented training set."""
    reader = FrameReader(config.clips, split.train.files, config.data.cache_row_groups)
    size, align = config.network.image_size_px, config.data.align
    held_out = split.held_out.spread(config.max_eval_frames)
    plain = [
        ReconFrames(reader, index, size_px=size, align=align, fits=fits)
        for index in (split.train, held_out)
    ]
    dataset = ReconFrames(
        reader,
        split.train,
        size_px=size,
        align=align,
        fits=fits,
        augmentation=Augmentation(**config.data.augment.tree()),
    )
    return ReconData(*plain), dataset


def build_weights(config: TrainReconConfig) -> ReconWeights:
    """Return the factors of the loss terms."""
    own = config.loss.tree()
    own.pop("mask")
    pulls = {} if config.supervision is None else config.supervision.tree()
    pulls.pop("fits", None)
    return ReconWeights(**own, **{f"fit_{name}": value for name, value in pulls.items()})


def build_settings(config: TrainReconConfig) -> ReconSettings:
    """Return the optimiser's settings."""
    optimizer = config.optimizer
    return ReconSettings(
        lr=optimizer.lr,
        factor=lambda seen: rate_factor(optimizer, seen, config.total_samples),
        betas=optimizer.betas,
        ema_kimg=optimizer.ema_kimg,
        batch_size=config.batch_size,
        channels_last=config.network.channels_last,
        sheet_frames=config.sheet_frames,
    )


def rate_factor(config: ReconOptimizer, samples_seen: int, total_samples: int) -> float:
    """Return the factor of the learning rate at a moment of the training."""
    schedule = config.schedule
    rise = warmup(samples_seen, config.warmup_samples)
    if schedule.kind == "step":
        return rise * schedule.factor ** (samples_seen // schedule.every_samples)
    if schedule.kind == "cosine":
        return rise * cosine(samples_seen, total_samples, start=1.0)
    done = samples_seen / total_samples
    return rise * min(1.0, (1 - done) / (1 - schedule.start_fraction))
