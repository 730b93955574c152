"""`nfs artifact export-fits`: the fits of an artifact as files for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from nfs.errors import InputError
from nfs.morphable.arkit import write_arkit_csv
from nfs.morphable.exchange import ClipCoefficients, file_name, read_fits, write_mat, write_npz
from nfs.morphable.loading import OPEN_HEAD, check_same_model, load_model
from nfs.morphable.mesh_files import write_obj
from nfs.morphable.model import MorphableModel

Format = Literal["mat", "npz", "obj", "arkit"]
FORMATS: tuple[Format, ...] = ("mat", "npz", "obj", "arkit")


def export_fits(
    fits: str,
    folder: Path,
    format_: Format,
    *,
    clip_ids: Sequence[str] | None = None,
    model_spec: str = OPEN_HEAD,
    fps: float = 25.0,
    frames: Sequence[int] = (),
) -> tuple[list[Path], list[str]]:
    """Write one file per clip (an `.obj` has a material and a texture beside it).

    Args:
        fits: The `fits` artifact.
        folder: Where the files go; made if needed.
        format_: `mat`, `npz`, `obj` (neutral face of the clip's identity and albedo) or `arkit`.
        clip_ids: Clips to write; all by default.
        model_spec: The model of the fits, for `obj` and `arkit`; see `load_model`.
        fps: Frames per second of the clips, for `arkit`.
        frames: Frame indices that also get an `.obj` with their expression.

    Returns:
        The files written, and remarks for the user.

    Raises:
        InputError: If the artifact belongs to another model, a clip or frame is missing, or the
            model has no ARKit expressions.
    """
    if format_ not in FORMATS:
        raise InputError(f"format={format_}: choose one of {', '.join(FORMATS)}")
    model = load_model(model_spec) if format_ in ("obj", "arkit") else None
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    remarks: list[str] = []
    for clip in read_fits(fits, clip_ids):
        target = folder / file_name(clip.clip_id)
        if model is not None:
            check_same_model(model, model_id=clip.model, checksum=clip.model_checksum, where=fits)
        if format_ == "npz":
            write_npz(clip, path := Path(f"{target}.npz"))
            written.append(path)
        elif format_ == "mat":
            write_mat(clip, path := Path(f"{target}.mat"))
            written.append(path)
        elif format_ == "obj":
            assert model is not None
            written += _write_meshes(model, clip, target, frames)
        else:
            assert model is not None
            path = Path(f"{target}.csv")
            unseen = write_arkit_csv(
                model, clip.coefficients, clip.frame_index.tolist(), path, fps=fps
            )
            written.append(path)
            remarks = [f"zero, because landmarks do not show them: {', '.join(unseen)}"]
    if not written:
        raise InputError(f"{fits}: no clip with a fit; nothing to write")
    return written, remarks


def _write_meshes(
    model: MorphableModel, clip: ClipCoefficients, target: Path, frames: Sequence[int]
) -> list[Path]:
    rows = {int(frame): row for row, frame in enumerate(clip.frame_index)}
    unknown = [frame for frame in frames if frame not in rows]
    if unknown:
        raise InputError(f"clip {clip.clip_id}: no frame {unknown[0]} in its fits")
    coefficients = clip.coefficients
    albedo = model.albedo(coefficients.texture[:1])[0]
    neutral = torch.zeros(1, coefficients.expression.shape[1])
    shapes = {"": neutral} | {
        f"_{frame:06d}": coefficients.expression[rows[frame]][None] for frame in frames
    }
    written = []
    for suffix, expression in shapes.items():
        vertices = model.vertices(coefficients.identity[:1], expression)[0]
        written += write_obj(Path(f"{target}{suffix}.obj"), vertices, model.faces, albedo)
    return written
