"""Precision and recall of a generator by k nearest neighbours (Kynkaanniemi et al. 2019).

Legend: N real and M generated samples, D feature size; float64 inside.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nfs.perceptual.frechet import Features, as_features

NUM_NEIGHBOURS = 3
_BLOCK_ROWS = 2048


def precision_recall(
    real: Features, generated: Features, *, k: int = NUM_NEIGHBOURS
) -> tuple[float, float]:
    """Return (precision, recall), both in [0, 1].

    Precision is the share of generated samples within the k-nearest-neighbour radius of some real
    sample; recall swaps the sets. Memory grows with N + M, not with N * M.

    Args:
        real: `[N, D]`, N > k.
        generated: `[M, D]`, M > k.
        k: Neighbour that gives a sample its radius.

    Raises:
        ValueError: If the shapes do not match or a set has no k neighbours.
    """
    a, b = as_features(real).double(), as_features(generated).double()
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) <= k:
        raise ValueError(
            f"feature sets must be [N, D] and [M, D], N, M > {k}: {list(a.shape)}, {list(b.shape)}"
        )
    centre = a.mean(0)  # differences of large squares lose digits
    a, b = a - centre, b - centre
    return _share_inside(b, a, _radii(a, k)), _share_inside(a, b, _radii(b, k))


def _radii(features: Tensor, k: int) -> Tensor:
    """Return the squared distance of each row to its k-th nearest other row."""
    nearest = [
        block.topk(k + 1, dim=1, largest=False).values[:, k]
        for block in _distances(features, features)
    ]
    return torch.cat(nearest)


def _share_inside(probes: Tensor, centres: Tensor, radii: Tensor) -> float:
    inside = [(block <= radii).any(dim=1) for block in _distances(probes, centres)]
    return float(torch.cat(inside).double().mean())


def _distances(rows: Tensor, columns: Tensor) -> Iterator[Tensor]:
    """Yield squared distances `[block, columns]`; one matrix product per block."""
    squares = columns.square().sum(1)
    for block in rows.split(_BLOCK_ROWS):
        own = block.square().sum(1, keepdim=True)
        yield torch.addmm(own + squares, block, columns.T, alpha=-2).clamp_min_(0)
