"""Partial-FC: a classification head whose classes are spread over ranks and sampled (spec 2.6).

P ranks, B images per rank, D embedding size, C_r classes of rank r. The gradients are those of the
mean cross-entropy of the global batch over the union of the ranks' sampled columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nfs.arcface.collectives import Ranks, default_ranks, gather_embeddings
from nfs.arcface.row_optimizers import RowGradient, merge_gradients
from nfs.arcface.shards import initial_centres, shard_of
from nfs.arcface.softmax import cosine_matrix, distributed_cross_entropy
from nfs.errors import ConfigError, InputError


@dataclass(frozen=True)
class _Use:
    """The rows that one forward pass used, and the leaf that collects their gradient."""

    rows: Tensor | None
    centres: Tensor


class PartialFC(nn.Module):
    """Sampled, sharded margin-softmax head.

    Each rank holds a contiguous shard of the class centres. The backbone's gradient comes out times
    P, because data-parallel averaging divides by P; the centres' gradient is complete. Call
    `take_gradient` after the backward pass and hand it to a row optimiser.

    Args:
        margin: From `nfs.arcface.margins`: cosines, labels, norms -> logits.
        embedding_size: D.
        num_classes: Classes of all ranks.
        class_sample_ratio: Share of each shard used per step: 1 all, 0 only the batch's classes.
        seed: First centres are a function of (seed, class), so they do not depend on P.
        ranks: Peers; default torch.distributed's group, or one process.
        gather_dtype: Precision in which embeddings travel; None is float32.
        uneven: Ranks may bring different numbers of images (costs one more exchange).
    """

    def __init__(
        self,
        margin: Callable[..., Tensor],
        embedding_size: int,
        num_classes: int,
        *,
        class_sample_ratio: float = 1.0,
        seed: int = 0,
        ranks: Ranks | None = None,
        gather_dtype: torch.dtype | None = None,
        uneven: bool = False,
    ) -> None:
        super().__init__()
        self.ranks = ranks or default_ranks()
        if not 0 <= class_sample_ratio <= 1:
            raise ConfigError(f"class_sample_ratio={class_sample_ratio} is not in [0, 1]")
        if num_classes < self.ranks.size:
            raise ConfigError(f"num_classes={num_classes} is below the number of ranks")
        self.margin = margin
        self.num_classes, self.embedding_size = num_classes, embedding_size
        self.class_sample_ratio = class_sample_ratio
        self.gather_dtype, self.uneven = gather_dtype, uneven
        self.shard = shard_of(num_classes, self.ranks.rank, self.ranks.size)
        self.num_sample = int(class_sample_ratio * len(self.shard))
        self.weight = nn.Parameter(initial_centres(self.shard, embedding_size, seed))
        self._uses: list[_Use] = []

    def forward(self, embeddings: Tensor, labels: Tensor, draw: Tensor | None = None) -> Tensor:
        """Return the mean loss of the global batch, the same on all ranks.

        Args:
            embeddings: `[B, D]`, this rank's.
            labels: `[B]` global class numbers.
            draw: `[C_r]` in [0, 1): picks the negatives (largest win); default from torch's global
                generator.

        Raises:
            InputError: If a label is outside 0..num_classes-1 (checked on the CPU; on a GPU the
                loss is NaN, since a check would wait for the device).
        """
        labels = labels.reshape(-1)
        self._check(labels)
        embeddings = embeddings.float()
        with torch.autocast(embeddings.device.type, enabled=False):
            if self.uneven and self.ranks.size > 1:
                everyone, targets = self._gather_uneven(embeddings, labels)
            else:
                everyone = gather_embeddings(embeddings, self.ranks, self.gather_dtype)
                targets = self.ranks.gather(labels)
            targets = self.shard.local(targets)
            use, targets = self._select(targets, draw)
            if torch.is_grad_enabled():
                self._uses.append(use)
            cosines = cosine_matrix(everyone, use.centres)
            norms = everyone.detach().norm(dim=1)
            logits = self.margin(cosines, targets, norms)
            return distributed_cross_entropy(logits, targets, self.ranks)

    def take_gradient(self) -> RowGradient:
        """Return the gradient of all backward passes since the last call, over the union of rows.

        Raises:
            RuntimeError: If there was none.
        """
        uses, self._uses = self._uses, []
        parts = [RowGradient(u.rows, u.centres.grad) for u in uses if u.centres.grad is not None]
        if not parts:
            raise RuntimeError("take_gradient: no backward pass since the last call")
        self.weight.grad = None
        # Without sampling the passes share one leaf, whose gradient is already the sum.
        return parts[0] if parts[0].rows is None else merge_gradients(parts)

    def forget_gradient(self) -> None:
        """Drop gradients, e.g. of a step that is skipped."""
        self._uses, self.weight.grad = [], None

    def sample_rows(self, targets: Tensor, draw: Tensor | None = None) -> Tensor:
        """Return the sorted shard rows of a step: the batch's classes, filled up at random.

        Args:
            targets: `[B]` shard rows or -1.
            draw: `[C_r]` in [0, 1).
        """
        positive = torch.unique(targets[targets >= 0])
        if len(positive) >= self.num_sample:
            return positive
        if draw is None:
            draw = torch.rand(len(self.shard), device=targets.device)
        scores = draw.to(targets.device, copy=True)
        scores[positive] = 2.0
        return scores.topk(self.num_sample, sorted=False).indices.sort().values

    def extra_repr(self) -> str:
        """Describe the head."""
        return (
            f"{self.num_classes} classes, {self.shard.start}..{self.shard.stop - 1} here, "
            f"ratio {self.class_sample_ratio}"
        )

    def _select(self, targets: Tensor, draw: Tensor | None) -> tuple[_Use, Tensor]:
        if self.class_sample_ratio >= 1:
            return _Use(None, self.weight), targets
        rows = self.sample_rows(targets, draw)
        centres = self.weight.detach().index_select(0, rows).requires_grad_()
        if len(rows):
            column = torch.searchsorted(rows, targets.clamp_min(0))
            targets = torch.where(targets >= 0, column, -1)
        return _Use(rows, centres), targets

    def _gather_uneven(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Gather different numbers of rows: padded for the exchange, cut again afterwards."""
        counts = self.ranks.gather(torch.tensor([len(labels)], device=labels.device)).tolist()
        most = max(counts)
        padding = most - len(labels)
        padded = nn.functional.pad(embeddings, (0, 0, 0, padding))
        everyone = gather_embeddings(padded, self.ranks, self.gather_dtype)
        targets = self.ranks.gather(nn.functional.pad(labels, (0, padding)))
        places = [torch.arange(n) + rank * most for rank, n in enumerate(counts)]
        keep = torch.cat(places).to(labels.device)
        return everyone[keep], targets[keep]

    def _check(self, labels: Tensor) -> None:
        if labels.device.type != "cpu" or not len(labels):
            return
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.num_classes:
            wrong = low if low < 0 else high
            raise InputError(f"label {wrong} is outside 0..{self.num_classes - 1} (num_classes)")
