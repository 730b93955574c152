"""Distances between two sets of features: Frechet (`fd_<backend>`) and kernel (`kd_<backend>`).

Never called FID or KID: those names belong to the Inception network. The Frechet distance is
biased for few samples: use equal counts on both sides, log the count, and read `kd` beside it.

Legend: N and M samples, D feature size; float64 inside.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import linalg


def frechet_distance(first: ArrayLike, second: ArrayLike) -> float:
    """Return the Frechet distance of Gaussians fitted to two feature sets (Dowson, Landau 1982).

    `|mean difference|^2 + tr(A + B - 2 (A B)^(1/2))`; the trace of the root is the sum of square
    roots of the eigenvalues of `A^(1/2) B A^(1/2)`, which is symmetric.

    Args:
        first: `[N, D]`, N >= 2.
        second: `[M, D]`, M >= 2.

    Raises:
        ValueError: If the shapes do not match or a set has fewer than two samples.
    """
    a, b = _checked(first, second)
    difference = a.mean(0) - b.mean(0)
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    cov_a, cov_b = np.atleast_2d(cov_a), np.atleast_2d(cov_b)
    root_a = _symmetric_root(cov_a)
    eigenvalues = linalg.eigvalsh(root_a @ cov_b @ root_a)
    root_trace = np.sqrt(np.clip(eigenvalues, 0, None)).sum()
    value = difference @ difference + np.trace(cov_a) + np.trace(cov_b) - 2 * root_trace
    return float(max(value, 0.0))


def kernel_distance(first: ArrayLike, second: ArrayLike) -> float:
    """Return the unbiased squared MMD with the kernel `(x.y / D + 1)^3` (Binkowski et al. 2018).

    Args:
        first: `[N, D]`, N >= 2.
        second: `[M, D]`, M >= 2.

    Returns:
        A value that is 0 in expectation for equal distributions and can be slightly negative.
    """
    a, b = _checked(first, second)
    num_a, num_b = len(a), len(b)
    within_a = _kernel(a, a)
    within_b = _kernel(b, b)
    term_a = (within_a.sum() - np.trace(within_a)) / (num_a * (num_a - 1))
    term_b = (within_b.sum() - np.trace(within_b)) / (num_b * (num_b - 1))
    return float(term_a + term_b - 2 * _kernel(a, b).mean())


def _kernel(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _symmetric_root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    values, vectors = linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def _checked(
    first: ArrayLike, second: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"feature sets must be [N, D] and [M, D], N, M >= 2: {a.shape}, {b.shape}")
    return a, b
