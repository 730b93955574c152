"""Symmetric positive definite block-tridiagonal systems, solved by odd-even reduction.

Each level eliminates every second block at once, so the work is log2(T) batched operations instead
of a loop over T frames (Buneman 1969; block form in Golub and Van Loan, 4.5.4). Legend: T blocks of
size n, M right-hand sides.
"""

from __future__ import annotations

import torch
from torch import Tensor


def solve_block_tridiagonal(diagonal: Tensor, upper: Tensor, right: Tensor) -> Tensor:
    """Solve `H x = right` for a symmetric positive definite block-tridiagonal `H`.

    Args:
        diagonal: `[T, n, n]` blocks `H[i, i]`.
        upper: `[T - 1, n, n]` blocks `H[i, i + 1]`; below the diagonal are their transposes.
        right: `[T, n, M]`.

    Returns:
        `[T, n, M]`.
    """
    count = len(diagonal)
    if count == 0:
        return right
    if count == 1:
        return _solve(diagonal, right)
    size = diagonal.shape[-1]
    num_odd, num_right = count // 2, (count - 1) // 2
    left, beyond = upper[0::2], upper[1::2]
    # One factorisation of the odd blocks serves both neighbours and the right-hand sides.
    padded = torch.zeros_like(left)
    padded[:num_right] = beyond
    joint = torch.cat([left.transpose(1, 2), padded, right[1::2]], dim=-1)
    solved = _solve(diagonal[1::2], joint)
    to_previous, to_next, own = solved.split([size, size, right.shape[-1]], dim=-1)

    before = left @ torch.cat([to_previous, to_next, own], dim=-1)
    after = beyond.transpose(1, 2) @ torch.cat([to_next, own], dim=-1)[:num_right]
    even_diagonal, even_right = diagonal[0::2].clone(), right[0::2].clone()
    even_diagonal[:num_odd] -= before[..., :size]
    even_right[:num_odd] -= before[..., 2 * size :]
    even_diagonal[1 : num_right + 1] -= after[..., :size]
    even_right[1 : num_right + 1] -= after[..., size:]
    even = solve_block_tridiagonal(
        even_diagonal, -before[:num_right, :, size : 2 * size], even_right
    )

    odd = own - to_previous @ even[:num_odd]
    odd[:num_right] -= to_next[:num_right] @ even[1 : num_right + 1]
    solution = torch.empty_like(right)
    solution[0::2], solution[1::2] = even, odd
    return solution


def _solve(matrices: Tensor, right: Tensor) -> Tensor:
    symmetric = (matrices + matrices.transpose(1, 2)) / 2
    return torch.cholesky_solve(right, torch.linalg.cholesky(symmetric))
