"""Cosine logits and softmax cross-entropy whose classes are spread over ranks (spec 2.6).

B images of all ranks, D embedding size, C columns of this rank.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nfs.arcface.collectives import Ranks

_MIN_NORM = 1e-12
# The published loss takes the logarithm of max(p, 1e-30).
_MAX_LOSS = -math.log(1e-30)
# Rows of W normalised at once.
_CPU_ROWS, _GPU_ROWS = 4096, 1 << 18


class _CosineMatrix(torch.autograd.Function):
    """`E normalize(W)^T` that keeps no normalised copy of W for the backward pass.

    Rows are normalised before the product, piece by piece: the logits then round as the published
    ones do, which matters because a change of 1e-7 in a cosine is 6e-6 in a logit.
    """

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, weight: Tensor) -> Tensor:
        length = weight.norm(dim=1, keepdim=True).clamp_min_(_MIN_NORM)
        cosines = embeddings.new_empty((len(embeddings), len(weight)))
        size = _CPU_ROWS if weight.device.type == "cpu" else _GPU_ROWS
        for start in range(0, len(weight), size):
            piece = slice(start, start + size)
            unit = weight[piece] / length[piece]
            torch.mm(embeddings, unit.T, out=cosines[:, piece])
        inverse = length[:, 0].reciprocal_()
        ctx.save_for_backward(embeddings, weight, inverse, cosines)
        return cosines

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        embeddings, weight, inverse, cosines = ctx.saved_tensors
        grad_embeddings = grad_weight = None
        scaled = grads[0] * inverse
        if ctx.needs_input_grad[0]:
            grad_embeddings = scaled @ weight
        if ctx.needs_input_grad[1]:
            grad_weight = scaled.T @ embeddings
            along = (scaled * cosines).sum(0).mul_(inverse)
            # A row shorter than the floor is divided by a constant.
            along.masked_fill_(inverse >= 1 / _MIN_NORM, 0.0)
            grad_weight.addcmul_(weight, along[:, None], value=-1)
        return grad_embeddings, grad_weight


def cosine_matrix(embeddings: Tensor, weight: Tensor) -> Tensor:
    """Return the cosines `[B, C]` of embeddings `[B, D]` with class centres `[C, D]`, clamped.

    Lengths are bounded from below by 1e-12.
    """
    unit = F.normalize(embeddings, dim=1, eps=_MIN_NORM)
    cosines: Tensor = _CosineMatrix.apply(unit, weight)  # type: ignore[no-untyped-call] # torch
    return cosines.clamp(-1, 1)


class _DistributedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy over the columns of all ranks; the same value on every rank."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, ranks: Ranks) -> Tensor:
        rows = torch.nonzero(labels >= 0)[:, 0]
        columns = labels[rows]
        nothing = logits.new_full((len(logits),), -math.inf)
        highest = ranks.max_(logits.amax(1) if logits.shape[1] else nothing)
        shifted = logits - highest[:, None]
        sums = logits.new_zeros((3, len(logits)))
        sums[1, rows] = shifted[rows, columns]
        sums[2, rows] = 1
        probabilities = shifted.exp_()
        sums[0] = probabilities.sum(1)
        ranks.sum_(sums)
        probabilities.div_(sums[0][:, None])
        ctx.probabilities, ctx.rows, ctx.columns = probabilities, rows, columns
        losses = (sums[0].log() - sums[1]).clamp_max(_MAX_LOSS)
        # A label that no rank owns has no target: NaN here stops the step without a device sync.
        return torch.where(sums[2] == 1, losses, math.nan).mean()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        gradient = ctx.probabilities
        gradient[ctx.rows, ctx.columns] -= 1
        ctx.probabilities = None
        return gradient.mul_(grads[0] / len(gradient)), None, None


def distributed_cross_entropy(logits: Tensor, labels: Tensor, ranks: Ranks) -> Tensor:
    """Return the mean cross-entropy of the global batch.

    Args:
        logits: `[B, C]`, this rank's columns for all images.
        labels: `[B]` column of the target, or -1 where another rank owns it.
        ranks: Peers; every rank gives the same images.

    Returns:
        Scalar, the same on all ranks; NaN if no rank, or more than one, owns a label.
    """
    return _DistributedCrossEntropy.apply(logits, labels, ranks)  # type: ignore[no-untyped-call] # torch
