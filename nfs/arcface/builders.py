"""From configuration and files to network, head, data and the training task."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nfs.arcface.augment import augment
from nfs.arcface.backbones import BackboneOptions, build_backbone
from nfs.arcface.datasets import (
    ClipSource,
    FaceImages,
    FaceSource,
    FolderSource,
    RecordSource,
    SyntheticSource,
    find_validation,
)
from nfs.arcface.export import load_backbone
from nfs.arcface.margins import AdaFace, CombinedMargin, Margin, upstream
from nfs.arcface.original import load_backbone as load_original_backbone
from nfs.arcface.original import read_pickled
from nfs.arcface.pair_files import PairSet, read_pairs
from nfs.arcface.parquet_source import ParquetSource
from nfs.arcface.partial_fc import PartialFC
from nfs.arcface.row_optimizers import RowAdamW, RowOptimizer, RowSGD
from nfs.arcface.schedules import polynomial_factor
from nfs.arcface.task import ArcfaceParts, ArcfaceSettings, ArcfaceTask
from nfs.config.train_arcface import (
    AdafaceMarginConfig,
    ArcfaceBackboneConfig,
    ArcfaceHeadConfig,
    ArcfaceSgd,
    ClipFaces,
    FolderFaces,
    ParquetFaces,
    RecordFaces,
    SyntheticFaces,
    TrainArcfaceConfig,
    UpstreamMarginConfig,
)
from nfs.errors import InputError
from nfs.pretrained.readers import read_state_dict
from nfs.runtime.context import WorkerContext
from nfs.runtime.seeding import seed_everything
from nfs.training.loop import LoopSettings, train

_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def train_worker(tree: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    """Train on one rank and return the final metrics.

    Args:
        tree: `TrainArcfaceConfig` as plain values.
        context: This rank.
    """
    config = TrainArcfaceConfig.from_tree(tree, source="train_arcface")
    source = build_source(config)
    pairs = build_pairs(config)
    total = total_samples(config, len(source))
    seed_everything("init", config.seed)
    card = {
        "trained on": f"{len(source)} images, {source.num_classes} identities ({config.data.kind})",
        "images seen": min(total, config.max_samples or total),
    }
    task = build_task(config, source.num_classes, total, pairs=pairs, card=card)
    if context.rank == 0:
        context.tracker.log_params(
            {"data/images": len(source), "data/identities": source.num_classes}
        )
    dataset = FaceImages(
        source,
        size_px=config.backbone.image_size_px,
        change=partial(augment, settings=config.augment) if _changes(config) else None,
        resize=isinstance(config.data, FolderFaces | ParquetFaces) and config.data.resize,
    )
    settings = LoopSettings.from_config(config, min(total, config.max_samples or total))
    return dict(train(task, dataset, settings, context))


def total_samples(config: TrainArcfaceConfig, num_images: int) -> int:
    """Return the images of all epochs, a multiple of the batch.

    Raises:
        InputError: If they do not fill one batch.
    """
    total = int(config.epochs * num_images) // config.batch_size * config.batch_size
    if not total:
        raise InputError(
            f"{num_images} images x {config.epochs} epochs do not fill batch_size="
            f"{config.batch_size}"
        )
    return total


def build_task(
    config: TrainArcfaceConfig,
    num_classes: int,
    total: int,
    *,
    pairs: tuple[PairSet, ...] = (),
    card: dict[str, Any] | None = None,
) -> ArcfaceTask:
    """Return the training task.

    Args:
        config: Settings.
        num_classes: Classes of the data.
        total: Images that the schedule spans.
        pairs: Verification sets.
        card: Facts for the model card.
    """
    total_steps = total // config.batch_size
    warmup = round(total_steps * config.warmup_epochs / config.epochs)
    factor = partial(
        polynomial_factor,
        total_steps=total_steps,
        warmup_steps=warmup,
        power=config.schedule_power,
        full_first_step=config.full_first_step,
    )
    settings = ArcfaceSettings(
        batch_size=config.batch_size,
        lr=config.optimizer.lr,
        lr_factor=factor,
        gradient_accumulation=config.gradient_accumulation,
        accumulate=config.accumulate,
        precision=config.precision,
        gradient_compression=config.gradient_compression,
        clip_norm=config.clip_norm,
        max_skipped_steps=config.max_skipped_steps,
        freeze=config.backbone.freeze,
        # Attention works on tokens; only convolutions gain.
        channels_last=config.backbone.channels_last and not config.backbone.name.startswith("vit"),
        compile=config.backbone.compile,
        num_folds=config.num_folds,
    )
    parts = ArcfaceParts(
        make_head=partial(build_head, config, num_classes),
        make_optimizer=partial(build_optimizer, config),
        make_row_optimizer=partial(build_row_optimizer, config),
        name=config.backbone.name,
        options=backbone_options(config.backbone),
        pairs=pairs,
        card=dict(card or {}),
    )
    return ArcfaceTask(build_network(config.backbone), parts, settings)


def backbone_options(config: ArcfaceBackboneConfig) -> BackboneOptions:
    """Return the options of a configured backbone."""
    return BackboneOptions(
        image_size_px=config.image_size_px,
        dropout=config.dropout,
        drop_path=config.drop_path,
        mask_ratio=config.mask_ratio,
        recompute=config.recompute,
    )


def build_network(config: ArcfaceBackboneConfig) -> nn.Module:
    """Return the backbone, untrained or with the weights of `init`."""
    network = build_backbone(config.name, config.embedding_size, backbone_options(config))
    if config.init is None:
        return network
    path = Path(config.init)
    if path.is_dir():
        weights = load_backbone(path).state_dict()
    else:
        state: dict[str, Any] = (
            read_pickled(path) if path.suffix in {".pt", ".pth"} else dict(read_state_dict(path))
        )
        state = state.get("state_dict_backbone", state)
        weights = load_original_backbone(config.name, state).state_dict()
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"backbone.init={config.init} does not fit: {error}") from None
    return network


def build_margin(config: ArcfaceHeadConfig) -> Margin:
    """Return the configured margin."""
    margin = config.margin
    if isinstance(margin, UpstreamMarginConfig):
        return upstream(
            margin.margins, scale=margin.scale, interclass_filter=margin.interclass_filter
        )
    if isinstance(margin, AdafaceMarginConfig):
        return AdaFace(**margin.model_dump(exclude={"kind"}))
    return CombinedMargin(**margin.model_dump(exclude={"kind"}))


def build_head(config: TrainArcfaceConfig, num_classes: int) -> PartialFC:
    """Return this rank's shard of the head; torch.distributed is set up if there are ranks."""
    return PartialFC(
        build_margin(config.head),
        config.backbone.embedding_size,
        num_classes,
        class_sample_ratio=config.head.class_sample_ratio,
        seed=config.seed,
        gather_dtype=_DTYPES[config.head.gather],
    )


def build_optimizer(
    config: TrainArcfaceConfig, parameters: Mapping[str, nn.Parameter]
) -> torch.optim.Optimizer:
    """Return the backbone's optimiser; fused updates where the device has them."""
    chosen = config.optimizer
    matrices = [p for p in parameters.values() if p.dim() > 1]
    vectors = [p for p in parameters.values() if p.dim() <= 1]
    decay = chosen.weight_decay
    groups: list[dict[str, Any]] = [{"params": matrices, "weight_decay": decay}]
    groups.append({"params": vectors, "weight_decay": decay if chosen.decay_norms else 0.0})
    groups = [group for group in groups if group["params"]]
    if isinstance(chosen, ArcfaceSgd):
        return torch.optim.SGD(groups, lr=chosen.lr, momentum=chosen.momentum, fused=True)
    return torch.optim.AdamW(groups, lr=chosen.lr, betas=chosen.betas, eps=chosen.eps, fused=True)


def build_row_optimizer(config: TrainArcfaceConfig, weight: Tensor) -> RowOptimizer:
    """Return the optimiser of the class centres."""
    chosen = config.optimizer
    if isinstance(chosen, ArcfaceSgd):
        return RowSGD(
            weight,
            momentum=chosen.momentum,
            weight_decay=chosen.weight_decay,
            update=config.head.update,
        )
    return RowAdamW(
        weight,
        betas=chosen.betas,
        eps=chosen.eps,
        weight_decay=chosen.weight_decay,
        update=config.head.update,
    )


def build_source(config: TrainArcfaceConfig) -> FaceSource:
    """Return the images and identities of the configuration."""
    data = config.data
    if isinstance(data, SyntheticFaces):
        return SyntheticSource(
            data.num_classes, data.num_images, data.noise, config.backbone.image_size_px
        )
    if isinstance(data, RecordFaces):
        return RecordSource(data.path, data.num_classes)
    if isinstance(data, FolderFaces):
        return FolderSource(data.path)
    if isinstance(data, ParquetFaces):
        return ParquetSource(
            data.path,
            image_column=data.image_column,
            label_column=data.label_column,
            num_classes=data.num_classes,
            cache_row_groups=data.cache_row_groups,
        )
    return ClipSource(data.path, split=data.split, max_frames_per_clip=data.max_frames_per_clip)


def build_pairs(config: TrainArcfaceConfig) -> tuple[PairSet, ...]:
    """Read the verification sets of the configuration."""
    data = config.data
    if isinstance(data, SyntheticFaces):
        return ()
    folder = data.path
    if isinstance(data, RecordFaces) and folder.endswith(".rec"):
        folder = str(Path(folder).parent)
    if isinstance(data, ClipFaces | ParquetFaces):
        folder = "."
    return tuple(read_pairs(file) for file in find_validation(folder, data.validation))


def _changes(config: TrainArcfaceConfig) -> bool:
    return any(not math.isclose(value, 0.0) for _, value in config.augment)
