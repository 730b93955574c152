"""Precision and recall of a generator by k nearest neighbours (Kynkaanniemi et al. 2019).

Legend: N real and M generated samples, D feature size; float64 inside.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

NUM_NEIGHBOURS = 3
_BLOCK_ROWS = 2048


def precision_recall(
    real: ArrayLike, generated: ArrayLike, *, k: int = NUM_NEIGHBOURS
) -> tuple[float, float]:
    """Return (precision, recall), both in [0, 1].

    Precision is the share of generated samples within the k-nearest-neighbour radius of some real
    sample; recall swaps the sets. Memory grows with the block size, not with N * M.

    Args:
        real: `[N, D]`, N > k.
        generated: `[M, D]`, M > k.
        k: Neighbour that gives a sample its radius.

    Raises:
        ValueError: If the shapes do not match or a set has no k neighbours.
    """
    a, b = np.asarray(real, np.float64), np.asarray(generated, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) <= k:
        raise ValueError(
            f"feature sets must be [N, D] and [M, D], N, M > {k}: {a.shape}, {b.shape}"
        )
    centre = a.mean(0)  # differences of large squares lose digits
    a, b = a - centre, b - centre
    return _share_inside(b, a, _radii(a, k)), _share_inside(a, b, _radii(b, k))


def _radii(features: Array, k: int) -> Array:
    """Return the squared distance of each row to its k-th nearest other row."""
    return np.concatenate(
        [np.partition(block, k, axis=1)[:, k] for block in _distances(features, features)]
    )


def _share_inside(probes: Array, centres: Array, radii: Array) -> float:
    inside = [(block <= radii).any(axis=1) for block in _distances(probes, centres)]
    return float(np.concatenate(inside).mean())


def _distances(rows: Array, columns: Array) -> Iterator[Array]:
    """Yield squared distances `[block, columns]`; one matrix product per block."""
    squares = np.einsum("ij,ij->i", columns, columns)
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = rows[start : start + _BLOCK_ROWS]
        own = np.einsum("ij,ij->i", block, block)[:, None]
        yield np.maximum(own + squares - 2 * (block @ columns.T), 0.0)
