"""Face points as linear functions of the expression, in mm: what audio needs of a 3DMM.

Families do not import each other, so the job writes these arrays from its morphable model to one
`.npz` file. Canonical pose, identity at its mean; x right, y up, z to the viewer.
Legend: P points, B batch, K frames.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nfs.errors import InputError

_INNER_LIP_TOP, _INNER_LIP_BOTTOM = 62, 66
# (upper lid, lower lid) and (outer, inner corner) of both eyes, 0-based 68-point numbers.
_LIDS = ((37, 41), (38, 40), (43, 47), (44, 46))
_CORNERS = ((36, 39), (42, 45))


@dataclass(frozen=True)
class FaceBasis:
    """Expression bases [P, 3, 64] in mm per unit, and the neutral landmarks.

    Args:
        lips: Lip vertices.
        upper: Vertices of the upper face (above the nose base).
        landmarks: The 68 landmarks.
        landmarks_neutral: Their neutral positions [68, 3] in mm.
    """

    lips: Tensor
    upper: Tensor
    landmarks: Tensor
    landmarks_neutral: Tensor

    def to(self, device: torch.device) -> FaceBasis:
        """Return a copy on a device."""
        return FaceBasis(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def save_face_basis(path: Path, basis: FaceBasis) -> None:
    """Write the arrays as float32 `.npz`."""
    arrays = {f.name: getattr(basis, f.name).float().cpu().numpy() for f in fields(basis)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        np.savez(stream, **arrays)


def load_face_basis(path: str | Path) -> FaceBasis:
    """Read a file of `save_face_basis`.

    Raises:
        InputError: If the file is missing or lacks an array.
    """
    names = [f.name for f in fields(FaceBasis)]
    try:
        with np.load(path, allow_pickle=False) as data:
            return FaceBasis(**{name: torch.from_numpy(data[name]).float() for name in names})
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{path}: not a face basis with {', '.join(names)}: {error}") from error


def displace(basis: Tensor, expression: Tensor) -> Tensor:
    """Return displacements [..., P, 3] in mm of expressions (or differences) [..., 64]."""
    flat = expression @ basis.reshape(-1, basis.shape[-1]).T
    return flat.reshape(*expression.shape[:-1], *basis.shape[:2])


def lip_gap_mm(basis: FaceBasis, expression: Tensor) -> Tensor:
    """Return the inner-lip opening [...] in mm."""
    points = _landmarks(basis, expression)
    return (points[..., _INNER_LIP_TOP, :] - points[..., _INNER_LIP_BOTTOM, :]).norm(dim=-1)


def eye_aspect(basis: FaceBasis, expression: Tensor) -> Tensor:
    """Return the eye aspect [...]: lid distances over twice the eye widths (spec/audio.md 4.3)."""
    points = _landmarks(basis, expression)[..., :2]
    height = sum(((points[..., a, :] - points[..., b, :]).norm(dim=-1) for a, b in _LIDS), 0.0)
    width = sum(((points[..., a, :] - points[..., b, :]).norm(dim=-1) for a, b in _CORNERS), 0.0)
    return torch.as_tensor(height) / (2.0 * width)


def _landmarks(basis: FaceBasis, expression: Tensor) -> Tensor:
    return basis.landmarks_neutral + displace(basis.landmarks, expression)


@dataclass(frozen=True)
class Teacher:
    """Target expression `e* = A e + B e_ref` (spec/audio.md 4.2).

    Args:
        from_fit: A [64, 64].
        from_reference: B [64, 64].
    """

    from_fit: Tensor
    from_reference: Tensor

    def __call__(self, expression: Tensor, reference: Tensor) -> Tensor:
        """Return targets [B, K, 64] of fits [B, K, 64] and references [B, 64]."""
        return expression @ self.from_fit.T + (reference @ self.from_reference.T)[:, None]


def direct_teacher(basis: FaceBasis, upper_weight: float, ridge: float) -> Teacher:
    """Return the closed form that keeps the fit's lips and the reference's upper face.

    Minimises `|E_l (e* - e)|^2 / L + upper_weight |E_u (e* - e_ref)|^2 / U + mu |e* - e_ref|^2`.
    The damping pulls toward the reference (spec: zero), so a fit equal to its reference is kept
    exactly and directions that neither region sees do not bring fitting noise into the target.

    Args:
        basis: Lip and upper-face bases.
        upper_weight: Weight of the upper face, >= 0.
        ridge: mu relative to the mean diagonal.
    """
    lips, upper = _gram(basis.lips), upper_weight * _gram(basis.upper)
    damping = ridge * (lips + upper).diagonal().mean() * torch.eye(lips.shape[0], dtype=lips.dtype)
    normal = lips + upper + damping
    from_fit = torch.linalg.solve(normal, lips)
    from_reference = torch.linalg.solve(normal, upper + damping)
    return Teacher(from_fit.float(), from_reference.float())


def raw_teacher(size: int) -> Teacher:
    """Return the teacher whose target is the fit itself."""
    return Teacher(torch.eye(size), torch.zeros(size, size))


def _gram(basis: Tensor) -> Tensor:
    flat = basis.double().reshape(-1, basis.shape[-1])
    return flat.T @ flat / basis.shape[0]
