"""From configuration and artifacts to networks, data and tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from nfs.artifacts import read_manifest
from nfs.audio.audio2exp import NUM_EXPRESSION, Audio2Exp
from nfs.audio.augment import Augmentation
from nfs.audio.baselines import ReferenceMap, fit_reference_map, training_frames
from nfs.audio.clip_index import ClipReader, index_clips
from nfs.audio.dataset import SpeechWindows, Split, split_clips
from nfs.audio.face_basis import FaceBasis, Teacher, direct_teacher, load_face_basis, raw_teacher
from nfs.audio.losses import LossWeights
from nfs.audio.mel import WINDOW_COLUMNS
from nfs.audio.original import load_audio2exp, load_wav2lip_encoder
from nfs.audio.task import Audio2ExpTask, HeldOutData, OptimizerSettings
from nfs.audio.warm_start import start_from_features
from nfs.config.train_audio2exp import AugmentConfig, TrainAudio2expConfig
from nfs.errors import ArtifactError, ConfigError
from nfs.pretrained import read_state_dict
from nfs.runtime.context import WorkerContext
from nfs.runtime.seeding import derive_seed, seed_everything
from nfs.training import LoopSettings, train
from nfs.training.checkpoint import read_model, read_weights

_MAP_FRAMES = 20_000


def train_worker(tree: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    """Train Audio2Exp on one rank and return the final metrics.

    Args:
        tree: `TrainAudio2expConfig` as plain values, with `face_basis` set.
        context: This rank.
    """
    config = TrainAudio2expConfig.from_tree(tree, source="train_audio2exp")
    if config.face_basis is None:
        raise ConfigError("face_basis: not set; jobs.train_audio2exp writes the file")
    data = config.data
    records, left_out = index_clips(
        config.clips, config.fits, min_frames=data.num_frames, max_offset_s=data.max_offset_s
    )
    split = split_clips(records, num_frames=data.num_frames, holdout_fraction=data.holdout_fraction)
    reader = ClipReader(config.clips, config.fits, data.cache_clips)
    facts = describe_data(config, split, left_out)
    if context.rank == 0:
        context.tracker.log_params({f"data/{name}": value for name, value in facts.items()})
    seed_everything("init", config.seed)
    basis = load_face_basis(config.face_basis)
    teacher = build_teacher(config, basis)
    rng = np.random.default_rng(derive_seed("reference_map", config.seed))
    silent = fit_reference_map(split.train, reader, teacher, rng, _MAP_FRAMES)
    model = build_model(config, silent)
    if config.init.kind == "scratch" and config.init.warm_start:
        facts["ridge"] = warm_start(model, split, reader, silent, basis)
    task = Audio2ExpTask(
        model,
        basis=basis,
        teacher=teacher,
        weights=LossWeights(**config.loss.tree()),
        optimizer=_optimizer(config),
        held_out=HeldOutData(split, reader, silent, config.max_eval_frames),
        card=facts,
    )
    dataset = SpeechWindows(
        split.train,
        reader,
        num_frames=data.num_frames,
        reference=data.reference,
        augmentation=build_augmentation(data.augment),
        use_blink=config.loss.eye > 0,
    )
    settings = LoopSettings.from_config(config, config.total_samples)
    return dict(train(task, dataset, settings, context))


def describe_data(
    config: TrainAudio2expConfig, split: Split, left_out: dict[str, int]
) -> dict[str, Any]:
    """Return facts for the tracker and the model card: split kind, amounts, expression space."""
    manifest = read_manifest(config.fits, kind="fits")
    space = {k: v for k, v in manifest.extra.items() if isinstance(v, str)}
    return {
        "split": split.kind,
        "train_frames": sum(len(span) for span in split.train),
        "held_out_frames": sum(len(span) for span in split.held_out),
        "clips": len({span.record.clip_id for span in split.train}),
        "left_out": left_out,
        "teacher": config.data.teacher.kind,
        "fits": manifest.id,
        "expression_space": space,
        "num_expression": NUM_EXPRESSION,
    }


def build_model(config: TrainAudio2expConfig, silent: ReferenceMap) -> Audio2Exp:
    """Return Audio2Exp with the initial weights that the configuration names.

    Args:
        config: Names the weights.
        silent: Start of the output layer where it is not imported.
    """
    init = config.init
    if init.kind == "checkpoint":
        return load_checkpoint(init.path)
    model = Audio2Exp()
    if init.kind == "original":
        return load_audio2exp(read_state_dict(init.path))
    model.start_from(torch.from_numpy(silent.weight), torch.from_numpy(silent.bias))
    if init.kind == "wav2lip":
        load_wav2lip_encoder(model, read_state_dict(init.path))
    return model


def warm_start(
    model: Audio2Exp, split: Split, reader: ClipReader, silent: ReferenceMap, basis: FaceBasis
) -> float:
    """Start the output layer from the training stretches; return the chosen regularisation."""
    flat, offsets = training_frames(split.train, reader, silent, _MAP_FRAMES)
    windows = torch.from_numpy(flat.astype(np.float32)).unflatten(1, (-1, WINDOW_COLUMNS))
    lips = basis.lips.double().numpy().reshape(-1, NUM_EXPRESSION)
    return start_from_features(model, windows, offsets, lips.T @ lips)


def load_checkpoint(directory: str | Path, *, ema: bool = True) -> Audio2Exp:
    """Return a trained Audio2Exp in eval mode from a checkpoint directory.

    Raises:
        ArtifactError: If the directory holds another kind of model.
    """
    kind = read_model(directory).get("kind")
    if kind != "audio2exp":
        raise ArtifactError(f"{directory}: holds a {kind!r} model, need 'audio2exp'")
    return load_audio2exp(read_weights(directory, ema=ema))


def build_teacher(config: TrainAudio2expConfig, basis: FaceBasis) -> Teacher:
    """Return the teacher that makes targets from fits."""
    teacher = config.data.teacher
    if teacher.kind == "raw":
        return raw_teacher(NUM_EXPRESSION)
    return direct_teacher(basis, teacher.upper_weight, teacher.ridge)


def build_augmentation(config: AugmentConfig) -> Augmentation:
    """Return the audio augmentation."""
    return Augmentation(
        gain_db=config.gain_db,
        noise_probability=config.noise_probability,
        snr_db=(config.min_snr_db, config.max_snr_db),
        mask_probability=config.mask_probability,
        max_mask_bands=config.max_mask_bands,
    )


def _optimizer(config: TrainAudio2expConfig) -> OptimizerSettings:
    init = None if config.init.kind == "scratch" else config.init
    warm = config.init.kind == "scratch" and config.init.warm_start
    return OptimizerSettings(
        **config.optimizer.model_dump(),
        total_samples=config.total_samples,
        batch_size=config.batch_size,
        freeze_norm=warm or (init is not None and init.freeze_norm),
        freeze_encoder=init is not None and init.freeze_encoder,
    )
