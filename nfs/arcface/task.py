"""Identity embedding with a Partial-FC head as a `TrainTask`.

Legend: B images of this rank, D embedding size, P ranks. Formulas: spec/arcface.md 2.
"""

from __future__ import annotations

import contextlib
import fnmatch
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

from nfs.arcface.backbones import BackboneOptions
from nfs.arcface.export import export_backbone, load_shard, save_shard
from nfs.arcface.loss_scale import LossScale
from nfs.arcface.pair_files import PairSet
from nfs.arcface.partial_fc import PartialFC
from nfs.arcface.reports import report_pairs
from nfs.arcface.row_optimizers import RowGradient, RowOptimizer
from nfs.arcface.verification import Floats, embed_pairs
from nfs.errors import NonFiniteError
from nfs.runtime.context import WorkerContext, unwrap
from nfs.training.task import Evaluation

logger = logging.getLogger(__name__)

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_HOOKS = {"bf16": default_hooks.bf16_compress_hook, "fp16": default_hooks.fp16_compress_hook}


@dataclass(frozen=True)
class ArcfaceSettings:
    """Numbers of the training; see `nfs.config.train_arcface` for meaning."""

    batch_size: int
    """Global batch."""
    lr: float = 0.1
    lr_factor: Callable[[int], float] = lambda _step: 1.0
    """Factor of the rate by optimiser step."""
    gradient_accumulation: int = 1
    accumulate: str = "mean"
    precision: str = "fp32"
    gradient_compression: str = "none"
    clip_norm: float = 5.0
    max_skipped_steps: int = 0
    freeze: tuple[str, ...] = ()
    channels_last: bool = True
    compile: bool = False
    num_folds: int = 10


@dataclass(frozen=True)
class ArcfaceParts:
    """How the task makes what depends on the rank and device.

    Attributes:
        make_head: Called after the process group exists.
        make_optimizer: From named trainable parameters.
        make_row_optimizer: From the head's weight.
        name: Backbone name.
        options: Backbone options.
        pairs: Verification sets.
        card: Facts for the model card.
    """

    make_head: Callable[[], PartialFC]
    make_optimizer: Callable[[Mapping[str, nn.Parameter]], torch.optim.Optimizer]
    make_row_optimizer: Callable[[Tensor], RowOptimizer]
    name: str
    options: BackboneOptions = field(default_factory=BackboneOptions)
    pairs: tuple[PairSet, ...] = ()
    card: dict[str, Any] = field(default_factory=dict)


class ArcfaceTask:
    """Backbone (data-parallel) and class centres (sharded); a `DistributedTask`.

    Args:
        backbone: The network, on any device.
        parts: Makers of the rest.
        settings: Numbers.
    """

    def __init__(self, backbone: nn.Module, parts: ArcfaceParts, settings: ArcfaceSettings) -> None:
        self.backbone, self.parts, self.settings = backbone, parts, settings
        self._embedded: list[tuple[Floats, Floats]] | None = None

    def setup(self, context: WorkerContext) -> None:
        """Move, freeze and wrap the backbone, make this rank's shard and the optimisers."""
        settings = self.settings
        self.device = context.device
        self.backbone.to(self.device).train()
        if settings.channels_last:
            self.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's stubs lack it
        self._freeze()
        if settings.compile:
            self.backbone.compile()
        self._wrapped = context.wrap(self.backbone)
        self.backbone = unwrap(self._wrapped)
        hook = _HOOKS.get(settings.gradient_compression)
        if hook is not None and isinstance(self._wrapped, nn.parallel.DistributedDataParallel):
            self._wrapped.register_comm_hook(None, hook)
        self.head = self.parts.make_head().to(self.device)
        self._ranks = self.head.ranks
        trained = {n: p for n, p in self.backbone.named_parameters() if p.requires_grad}
        self._parameters = list(trained.values())
        self.optimizer = self.parts.make_optimizer(trained)
        self.row_optimizer = self.parts.make_row_optimizer(self.head.weight)
        self.scale = LossScale(enabled=settings.precision == "fp16")
        self.skipped = 0

    def train_step(self, batch: dict[str, Tensor], samples_seen: int) -> dict[str, Tensor]:
        """Make one optimisation step.

        Args:
            batch: `image` uint8 `[B, 3, S, S]`, `label` int64 `[B]`.
            samples_seen: The clock.
        """
        settings = self.settings
        lr = settings.lr * settings.lr_factor(samples_seen // settings.batch_size)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._accumulate(batch)
        gradient = self.head.take_gradient()
        self.scale.unscale(self._parameters, gradient.values)
        norm = nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        terms = {
            "loss/arcface": loss,
            "grad/backbone_norm": norm,
            "grad/head_norm": gradient.norm(),
        }
        if self._finite(terms, samples_seen):
            self._apply(gradient, norm, lr)
        if settings.precision == "fp16":
            terms["amp/scale"] = torch.tensor(self.scale.value)
        return {
            **terms,
            "schedule/lr": torch.tensor(lr),
            "train/skipped": torch.tensor(self.skipped),
        }

    def prepare_evaluation(self, samples_seen: int) -> None:
        """Embed the verification sets, each rank its share, with rank 0's running statistics."""
        del samples_seen
        self.backbone.eval()
        with self._first_rank_buffers():
            self._embedded = [self._embed(pairs) for pairs in self.parts.pairs]
        self.backbone.train()

    def evaluate(self, samples_seen: int) -> Evaluation:
        """Measure ten-fold accuracy and TAR at FAR of every set, and draw ROC curves."""
        if self._embedded is None:
            self.prepare_evaluation(samples_seen)
        metrics: dict[str, float] = {}
        images: dict[str, np.ndarray] = {}
        for pairs, (plain, mirrored) in zip(self.parts.pairs, self._embedded or [], strict=True):
            report = report_pairs(
                pairs,
                plain,
                mirrored,
                num_folds=self.settings.num_folds,
                title=f"{samples_seen} images",
            )
            metrics |= report.metrics
            images |= report.images
        self._embedded = None
        return Evaluation(metrics, images)

    def state_dict(self) -> dict[str, Any]:
        """Return what is the same on all ranks; class centres are in the parts."""
        return {
            "backbone": self.backbone.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "margin": self._margin_state(),
            "head": {
                "num_classes": self.head.num_classes,
                "row_steps": self.row_optimizer.steps,
            },
            "scale": self.scale.state_dict(),
            "skipped": self.skipped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.backbone.load_state_dict(state["backbone"])
        self.optimizer.load_state_dict(state["optimizer"])
        if isinstance(self.head.margin, nn.Module):
            self.head.margin.load_state_dict(state["margin"])
        self.row_optimizer.steps = state["head"]["row_steps"]
        self.scale.load_state_dict(state["scale"])
        self.skipped = state["skipped"]

    def save_part(self, directory: Path) -> None:
        """Write this rank's class centres and their moments."""
        save_shard(directory, self.head.shard, self._rows())

    def load_parts(self, directory: Path) -> None:
        """Read this rank's class centres from the shards of any number of ranks."""
        load_shard(directory, self.head.shard, self._rows())

    def export(self, directory: Path) -> None:
        """Write the backbone as a checkpoint directory."""
        export_backbone(
            directory,
            self.backbone,
            name=self.parts.name,
            embedding_size=self.head.embedding_size,
            options=self.parts.options,
            card=self.parts.card,
        )

    def _rows(self) -> dict[str, Tensor]:
        return {"weight": self.head.weight.detach(), **self.row_optimizer.moments}

    def _margin_state(self) -> dict[str, Any]:
        margin = self.head.margin
        return margin.state_dict() if isinstance(margin, nn.Module) else {}

    def _accumulate(self, batch: dict[str, Tensor]) -> Tensor:
        """Run the micro-batches forward and backward; return the mean loss."""
        settings = self.settings
        count = settings.gradient_accumulation
        divisor = count if settings.accumulate == "mean" else 1
        total = torch.zeros((), device=self.device)
        images, labels = batch["image"].chunk(count), batch["label"].chunk(count)
        for number, (part, target) in enumerate(zip(images, labels, strict=True), start=1):
            with self._synchronised(number == count):
                loss = self.head(self._embeddings(part), target)
                torch.autograd.backward(loss * (self.scale.value / divisor))
            total += loss.detach() / count
        return total

    def _embeddings(self, images: Tensor) -> Tensor:
        pixels = ((images.float() / 255) - 0.5) / 0.5
        if self.settings.channels_last:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        dtype = _DTYPES.get(self.settings.precision)
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            embeddings: Tensor = self._wrapped(pixels)
        return embeddings

    def _synchronised(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Exchange gradients only in the last micro-batch."""
        if last or not isinstance(self._wrapped, nn.parallel.DistributedDataParallel):
            return contextlib.nullcontext()
        return self._wrapped.no_sync()

    def _finite(self, terms: Mapping[str, Tensor], samples_seen: int) -> bool:
        """Return whether all ranks may step; one exchange and one wait for the device."""
        values = torch.stack([v.detach().float().reshape(()) for v in terms.values()])
        bad = self._ranks.sum_((~torch.isfinite(values)).float()).tolist()
        finite = not any(bad)
        self.scale.update(finite)
        if finite:
            self.skipped = 0
            return True
        self.head.forget_gradient()
        self.skipped += 1
        number = next(i for i, count in enumerate(bad) if count)
        name, value = list(terms)[number], float(values[number])
        limit = self.settings.max_skipped_steps
        if self.scale.enabled:  # a loss scale that is too large is found out this way
            limit = max(limit, self.scale.patience)
        if self.skipped > limit:
            raise NonFiniteError(name, value, f"samples_seen={samples_seen}")
        logger.warning("samples_seen=%d: %s is %s; step skipped", samples_seen, name, value)
        return False

    def _apply(self, gradient: RowGradient, norm: Tensor, lr: float) -> None:
        grads = [p.grad for p in self._parameters if p.grad is not None]
        factor = (self.settings.clip_norm / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(grads, factor)
        self.optimizer.step()
        self.row_optimizer.step(gradient, lr)

    def _freeze(self) -> None:
        """Stop gradients of frozen names, and of the mask token where nothing is masked."""
        if getattr(self.backbone, "mask_ratio", None) == 0:
            self.backbone.get_parameter("mask_token").requires_grad_(False)
        for pattern in self.settings.freeze:
            names = [n for n, _ in self.backbone.named_parameters() if fnmatch.fnmatch(n, pattern)]
            for name in names:
                self.backbone.get_parameter(name).requires_grad_(False)
            if not names:
                logger.warning("backbone.freeze: %r matches no parameter", pattern)

    @contextlib.contextmanager
    def _first_rank_buffers(self) -> Iterator[None]:
        """Use rank 0's running statistics on all ranks, then give each its own back."""
        buffers = [b for b in self.backbone.buffers() if b.is_floating_point()]
        if self._ranks.size == 1 or not buffers:
            yield
            return
        own = torch.cat([b.flatten() for b in buffers])
        first = self._ranks.sum_(own.clone() if self._ranks.rank == 0 else torch.zeros_like(own))
        _fill(buffers, first)
        try:
            yield
        finally:
            _fill(buffers, own)

    def _embed(self, pairs: PairSet) -> tuple[Floats, Floats]:
        """Return plain and mirrored embeddings of a set, complete on every rank."""
        size, rank = self._ranks.size, self._ranks.rank
        device, pixels = self.device, self.parts.options.image_size_px
        parts = embed_pairs(
            self.backbone, pairs, part=(rank, size), device=device, image_size_px=pixels
        )
        whole = [self._interleave(part, len(pairs.images)) for part in parts]
        return whole[0], whole[1]

    def _interleave(self, part: Floats, count: int) -> Floats:
        size = self._ranks.size
        if size == 1:
            return part
        rows = torch.zeros(-(-count // size), self.head.embedding_size, dtype=torch.float64)
        rows[: len(part)] = torch.from_numpy(part.reshape(len(part), self.head.embedding_size))
        everyone = self._ranks.gather(rows.to(self.device)).cpu()
        ordered = everyone.view(size, -1, rows.shape[1]).transpose(0, 1)
        return ordered.reshape(-1, rows.shape[1])[:count].numpy()


def _fill(buffers: list[Tensor], values: Tensor) -> None:
    for buffer, part in zip(buffers, values.split([b.numel() for b in buffers]), strict=True):
        buffer.copy_(part.view_as(buffer))
