"""Distances between two sets of features: Frechet and kernel.

Both are biased or noisy for few samples: compare equal counts, log the count, read one beside the
other. What they are called is the business of the feature extractor (`nfs.perceptual.extractors`):
only Inception's are FID and KID.

Legend: N and M samples, D feature size. Sets are tensors (the work is done on their device) or
anything that numpy reads; float64 inside.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

Features = ArrayLike | Tensor

NUM_SUBSETS = 100
SUBSET_SIZE = 1000
_CHUNK_ROWS = 1024


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of a feature set, to be combined with those of other parts of it."""

    count: int
    """N."""
    mean: Tensor
    """`[D]` float64."""
    scatter: Tensor
    """`[D, D]` float64, sum of outer products of the deviations from the mean."""

    @classmethod
    def of(cls, features: Features) -> Moments:
        """Measure `[N, D]`, N >= 1, a chunk at a time, so that float32 rows are never copied whole.

        Raises:
            ValueError: If the shape is wrong or a value is not finite.
        """
        rows = as_features(features)
        if rows.ndim != 2 or not len(rows):
            raise ValueError(f"a feature set must be [N, D], N >= 1, got {list(rows.shape)}")
        parts = iter(rows.split(_CHUNK_ROWS))
        total = cls._of_chunk(next(parts).double())
        for part in parts:
            total = total + cls._of_chunk(part.double())
        return total

    @classmethod
    def _of_chunk(cls, rows: Tensor) -> Moments:
        if not bool(rows.isfinite().all()):
            raise ValueError("a feature is not finite; the images or the network are broken")
        mean = rows.mean(0)
        centred = rows - mean
        return cls(len(rows), mean, centred.T @ centred)

    def __add__(self, other: Moments) -> Moments:
        """Return the moments of both sets together (Chan, Golub, LeVeque 1983)."""
        count = self.count + other.count
        shift = other.mean - self.mean
        between = torch.outer(shift, shift) * (self.count * other.count / count)
        return Moments(
            count, self.mean + shift * (other.count / count), self.scatter + other.scatter + between
        )

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance `[D, D]`; needs N >= 2."""
        return self.scatter / (self.count - 1)


def frechet_distance(first: Moments | Features, second: Moments | Features) -> float:
    """Return the Frechet distance of Gaussians fitted to two feature sets (Dowson, Landau 1982).

    `|mean difference|^2 + tr(A + B - 2 (A B)^(1/2))`; the trace of the root is the sum of square
    roots of the eigenvalues of `A^(1/2) B A^(1/2)`, which is symmetric, so that covariances of
    fewer samples than dimensions do no harm.

    Args:
        first: `[N, D]` or its moments, N >= 2.
        second: `[M, D]` or its moments, M >= 2.

    Raises:
        ValueError: If the shapes do not match or a set has fewer than two samples.
    """
    a = first if isinstance(first, Moments) else Moments.of(first)
    b = second if isinstance(second, Moments) else Moments.of(second)
    if a.mean.shape != b.mean.shape or min(a.count, b.count) < 2:
        raise ValueError(
            "feature sets must be [N, D] and [M, D], N, M >= 2: "
            f"{[a.count, *a.mean.shape]}, {[b.count, *b.mean.shape]}"
        )
    difference = a.mean - b.mean
    cov_a, cov_b = a.covariance, b.covariance
    values, vectors = torch.linalg.eigh(cov_a)
    root_a = (vectors * _without_noise(values).sqrt()) @ vectors.T
    eigenvalues = _without_noise(torch.linalg.eigvalsh(root_a @ cov_b @ root_a))
    value = difference @ difference + cov_a.trace() + cov_b.trace() - 2 * eigenvalues.sqrt().sum()
    return max(float(value), 0.0)


def kernel_distance(first: Features, second: Features) -> float:
    """Return the unbiased squared MMD with the kernel `(x.y / D + 1)^3` (Binkowski et al. 2018).

    Args:
        first: `[N, D]`, N >= 2.
        second: `[M, D]`, M >= 2.

    Returns:
        A value that is 0 in expectation for equal distributions and can be slightly negative.
    """
    a, b = _pair(first, second)
    a, b = a.double(), b.double()
    return float(_within(a) + _within(b) - 2 * _kernel(a, b).mean())


def kernel_distance_of_subsets(
    first: Features,
    second: Features,
    *,
    num_subsets: int = NUM_SUBSETS,
    subset_size: int = SUBSET_SIZE,
    seed: int = 0,
) -> float:
    """Return the mean `kernel_distance` of random subsets (kid50k_full, spec/stylenerf.md 2.10).

    Args:
        first: `[N, D]`.
        second: `[M, D]`.
        num_subsets: Draws without replacement from each set.
        subset_size: Rows per draw, at most N and M.
        seed: Seed of the draws.
    """
    a, b = _pair(first, second)
    size = min(len(a), len(b), subset_size)
    if size == len(a) == len(b):  # every subset would be the whole
        return kernel_distance(a, b)
    pairs = _subsets(len(a), len(b), size, num_subsets, seed)
    return float(np.mean([kernel_distance(a[i], b[j]) for i, j in pairs]))


def as_features(features: Features) -> Tensor:
    """Return a feature set as a tensor."""
    return features if isinstance(features, Tensor) else torch.from_numpy(np.asarray(features))


def _subsets(
    num_a: int, num_b: int, size: int, count: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        chosen = (rng.choice(number, size, replace=False) for number in (num_a, num_b))
        first, second = map(torch.from_numpy, chosen)
        yield first, second


def _within(rows: Tensor) -> Tensor:
    """Return the mean kernel of pairs of different rows."""
    kernel = _kernel(rows, rows)
    return (kernel.sum() - kernel.trace()) / (len(rows) * (len(rows) - 1))


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    base = a @ b.T / a.shape[1] + 1
    return base * base * base


def _without_noise(eigenvalues: Tensor) -> Tensor:
    """Set to zero what rounding makes of the zero eigenvalues of a singular matrix."""
    floor = torch.finfo(torch.float64).eps * len(eigenvalues) * eigenvalues.max().clamp_min(0)
    return torch.where(eigenvalues > floor, eigenvalues, torch.zeros_like(eigenvalues))


def _pair(first: Features, second: Features) -> tuple[Tensor, Tensor]:
    a, b = as_features(first), as_features(second)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(
            f"feature sets must be [N, D] and [M, D], N, M >= 2: {list(a.shape)}, {list(b.shape)}"
        )
    return a, b
