"""Rotations: BFM Euler angles and the SO(3) exponential and logarithm.

Legend: leading dimensions `...` are free; matrices act on column vectors, `y = R @ x`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def skew(vectors: Tensor) -> Tensor:
    """Return the cross-product matrices `[v]x` with `[v]x @ u = v x u`.

    Args:
        vectors: `[..., 3]`.

    Returns:
        `[..., 3, 3]`.
    """
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    rows = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1)
    return rows.reshape(*vectors.shape, 3)


def euler_to_matrix(angles_rad: Tensor) -> Tensor:
    """Return `R = Rz(c) Ry(b) Rx(a)` for BFM angles (a, b, c) about x, y, z.

    Args:
        angles_rad: `[..., 3]`, radians, in the order (x, y, z).

    Returns:
        `[..., 3, 3]` right-handed rotations for `y = R x` (the transpose of what BFM code
        multiplies points with from the right).
    """
    cos_a, cos_b, cos_c = angles_rad.cos().unbind(-1)
    sin_a, sin_b, sin_c = angles_rad.sin().unbind(-1)
    rows = [
        cos_c * cos_b,
        cos_c * sin_b * sin_a - sin_c * cos_a,
        cos_c * sin_b * cos_a + sin_c * sin_a,
        sin_c * cos_b,
        sin_c * sin_b * sin_a + cos_c * cos_a,
        sin_c * sin_b * cos_a - cos_c * sin_a,
        -sin_b,
        cos_b * sin_a,
        cos_b * cos_a,
    ]
    return torch.stack(rows, dim=-1).reshape(*angles_rad.shape, 3)


def matrix_to_euler(rotation: Tensor) -> Tensor:
    """Return the BFM angles of `R = Rz(c) Ry(b) Rx(a)`; the inverse of `euler_to_matrix`.

    Args:
        rotation: `[..., 3, 3]` proper rotations.

    Returns:
        `[..., 3]` radians (a, b, c) with a and c in (-pi, pi] and b in [-pi/2, pi/2]. At
        b = +-pi/2 only a combination of a and c is defined and the split is arbitrary.
    """
    cos_b = torch.hypot(rotation[..., 0, 0], rotation[..., 1, 0])
    a = torch.atan2(rotation[..., 2, 1], rotation[..., 2, 2])
    b = torch.atan2(-rotation[..., 2, 0], cos_b)
    c = torch.atan2(rotation[..., 1, 0], rotation[..., 0, 0])
    return torch.stack([a, b, c], dim=-1)


def so3_exp(vectors_rad: Tensor) -> Tensor:
    """Return the rotations about `v` by `|v|` (Rodrigues' formula).

    Args:
        vectors_rad: `[..., 3]` axis times angle, radians.

    Returns:
        `[..., 3, 3]`.
    """
    squared = vectors_rad.square().sum(-1)[..., None, None]
    small = squared < 1e-8
    safe = torch.where(small, torch.ones_like(squared), squared)
    angle = safe.sqrt()
    first = torch.where(small, 1 - squared / 6, angle.sin() / angle)
    second = torch.where(small, 0.5 - squared / 24, (1 - angle.cos()) / safe)
    cross = skew(vectors_rad)
    identity = torch.eye(3, dtype=vectors_rad.dtype, device=vectors_rad.device)
    return identity + first * cross + second * (cross @ cross)


def so3_log(rotation: Tensor) -> Tensor:
    """Return the axis-angle vectors of rotations; the inverse of `so3_exp` for angles below pi.

    Goes through the unit quaternion with its largest component as pivot (Shepperd 1978), so it is
    exact for tiny angles and for angles up to pi.

    Args:
        rotation: `[..., 3, 3]` proper rotations.

    Returns:
        `[..., 3]` radians with norm in [0, pi].
    """
    quaternion = matrix_to_quaternion(rotation)
    real, imaginary = quaternion[..., :1], quaternion[..., 1:]
    squared = imaginary.square().sum(-1, keepdim=True)
    small = squared < 1e-12
    norm = torch.where(small, torch.ones_like(squared), squared).sqrt()
    factor = torch.where(small, 2 / real, 2 * torch.atan2(norm, real) / norm)
    return factor * imaginary


def matrix_to_quaternion(rotation: Tensor) -> Tensor:
    """Return unit quaternions (w, x, y, z) with w >= 0.

    Args:
        rotation: `[..., 3, 3]` proper rotations.

    Returns:
        `[..., 4]`.
    """
    m = [[rotation[..., i, j] for j in range(3)] for i in range(3)]
    trace = m[0][0] + m[1][1] + m[2][2]
    # Row k is 4 q_k q: divided by its norm it is q up to sign, and the largest row is well scaled.
    w = [1 + trace, m[2][1] - m[1][2], m[0][2] - m[2][0], m[1][0] - m[0][1]]
    x = [w[1], 1 + 2 * m[0][0] - trace, m[0][1] + m[1][0], m[0][2] + m[2][0]]
    y = [w[2], x[2], 1 + 2 * m[1][1] - trace, m[1][2] + m[2][1]]
    z = [w[3], x[3], y[3], 1 + 2 * m[2][2] - trace]
    rows = torch.stack([torch.stack(row, dim=-1) for row in (w, x, y, z)], dim=-2)
    pivot = rows.diagonal(dim1=-2, dim2=-1).argmax(-1)
    chosen = rows.gather(-2, pivot[..., None, None].expand(*pivot.shape, 1, 4)).squeeze(-2)
    quaternion = chosen / chosen.norm(dim=-1, keepdim=True)
    return torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)
