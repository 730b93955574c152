"""Verification of a finished backbone on all ranks: the worker of `jobs.verify_arcface`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nfs.arcface.backbones import BackboneOptions, build_backbone
from nfs.arcface.export import load_backbone
from nfs.arcface.pair_files import PairSet, decode_pair_image, read_pairs
from nfs.arcface.plots import draw_roc
from nfs.arcface.reports import report_pairs
from nfs.arcface.templates import (
    TemplateSet,
    embed_templates,
    read_templates,
    score_templates,
    tpr_at_fprs,
)
from nfs.arcface.verification import to_model_input
from nfs.config.verify_arcface import VerifyArcfaceConfig
from nfs.runtime.collect import Ranks, collect
from nfs.runtime.context import WorkerContext
from nfs.runtime.seeding import seed_everything
from nfs.training.checkpoint import read_model
from nfs.training.task import Evaluation

_TEMPLATES_AT_ONCE = 16


@dataclass(frozen=True)
class Embedder:
    """A network and where and how it runs.

    Attributes:
        network: In eval mode.
        image_size_px: Side of its input.
        batch_size: Images per forward pass.
        ranks: Who shares the work.
    """

    network: Callable[[Tensor], Tensor]
    image_size_px: int
    batch_size: int
    ranks: Ranks


def verify_worker(tree: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    """Verify on this rank's share and return the metrics.

    Args:
        tree: `VerifyArcfaceConfig` as plain values.
        context: This rank.
    """
    config = VerifyArcfaceConfig.from_tree(tree, source="verify_arcface")
    sets = [read_pairs(path) for path in config.sets]
    model = read_model(config.checkpoint)
    options = BackboneOptions(**model["options"])

    def embedder(network: nn.Module) -> Embedder:
        network = network.eval().requires_grad_(False).to(context.device)
        ranks = Ranks(context.rank, context.world_size, context.device)
        return Embedder(network, options.image_size_px, config.batch_size, ranks)

    trained = embedder(load_backbone(config.checkpoint))
    found = [verify_pairs(trained, pairs, config.num_folds) for pairs in sets]
    if config.untrained:
        seed_everything("init", config.seed)
        fresh = embedder(build_backbone(model["name"], model["embedding_size"], options))
        found += [_renamed(verify_pairs(fresh, pairs, config.num_folds)) for pairs in sets]
    if config.templates is not None:
        templates = read_templates(config.templates.root, config.templates.name)
        found.append(verify_templates(trained, templates, config.templates.name))
    metrics: dict[str, float] = {}
    for evaluation in found:
        metrics |= evaluation.metrics
        for name, image in evaluation.images.items():
            context.tracker.log_image(name, image)
    context.tracker.log_metrics(metrics, step=0)
    return metrics


@torch.no_grad()
def verify_pairs(embedder: Embedder, pairs: PairSet, num_folds: int = 10) -> Evaluation:
    """Measure a set of pairs; empty except on rank 0. Collective."""

    def compute(chosen: range) -> dict[str, Tensor]:
        pixels = [decode_pair_image(pairs.images[i], f"{pairs.name}: image {i}") for i in chosen]
        batch = torch.from_numpy(np.stack(pixels)).to(embedder.ranks.device)
        images = to_model_input(batch, embedder.image_size_px)
        plain, mirrored = embedder.network(images), embedder.network(images.flip(3))
        return {"plain": plain.float(), "mirrored": mirrored.float()}

    rows = collect(compute, len(pairs.images), batch_size=embedder.batch_size, ranks=embedder.ranks)
    if rows is None:
        return Evaluation()
    plain, mirrored = (rows[name].double().numpy() for name in ("plain", "mirrored"))
    return report_pairs(pairs, plain, mirrored, num_folds=num_folds, title=f"{len(pairs)} pairs")


def verify_templates(embedder: Embedder, templates: TemplateSet, name: str) -> Evaluation:
    """Measure a template protocol; empty except on rank 0. Collective."""

    def compute(chosen: range) -> dict[str, Tensor]:
        rows = embed_templates(
            embedder.network,
            templates,
            chosen,
            device=embedder.ranks.device,
            image_size_px=embedder.image_size_px,
            batch_size=embedder.batch_size,
        )
        return {"rows": torch.from_numpy(rows).float().to(embedder.ranks.device)}

    found = collect(
        compute, len(templates.ids), batch_size=_TEMPLATES_AT_ONCE, ranks=embedder.ranks
    )
    if found is None:
        return Evaluation()
    scores = score_templates(found["rows"].double().numpy(), templates.pairs)
    rates = tpr_at_fprs(scores, templates.same)
    metrics = {f"val/{name}_tpr_at_fpr_{target:.0e}": rate for target, rate in rates.items()}
    title = f"{name}, {len(templates.pairs)} pairs of templates"
    return Evaluation(metrics, {f"roc_{name}": draw_roc(-scores, templates.same, title)})


def _renamed(evaluation: Evaluation) -> Evaluation:
    metrics = {k.replace("val/", "untrained/"): v for k, v in evaluation.metrics.items()}
    return Evaluation(metrics, {f"{k}_untrained": v for k, v in evaluation.images.items()})
