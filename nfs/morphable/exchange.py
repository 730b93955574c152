"""Coefficients of fits as files for other programs, and back: `.npz` and `.mat`.

`.npz` holds every column of `fits` and the model's name; `.mat` has the names of Deep3D's results
(`id`, `exp`, `tex`, `angle`, `gamma`, `trans`), the packed 257 and the same extra columns. Both
come back bit by bit. Legend: T frames.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from scipy.io import loadmat, savemat
from scipy.io.matlab import MatReadError

from nfs.artifacts.manifest import read_manifest, write_manifest
from nfs.artifacts.schemas import FITS
from nfs.artifacts.store import Store
from nfs.artifacts.tables import iter_clips
from nfs.errors import InputError
from nfs.morphable.coefficients import NUM_COEFFICIENTS, PACKED_SIZES, Coefficients
from nfs.morphable.model import MorphableModel

COLUMNS = {
    "identity": "identity",
    "expression": "expression",
    "texture": "texture",
    "rotation": "rotation_rad",
    "lighting": "lighting",
    "translation": "translation",
}
"""Field of `Coefficients` -> column of `fits`."""
MAT_NAMES = {
    "identity": "id",
    "expression": "exp",
    "texture": "tex",
    "rotation": "angle",
    "lighting": "gamma",
    "translation": "trans",
}
"""Field of `Coefficients` -> variable of Deep3D's `.mat` files."""
NOT_A_FRAME = -1


@dataclass(frozen=True)
class ClipCoefficients:
    """Coefficients of one clip with what `fits` knows about each frame.

    Attributes:
        clip_id: Name of the clip.
        coefficients: T rows.
        frame_index: `[T]`.
        nme_percent: `[T]`, NaN where unknown.
        photometric_l1: `[T]`, NaN where unknown.
        status: T words.
        model: Name of the model, empty if the file has none.
        model_checksum: Its checksum, empty if the file has none.
    """

    clip_id: str
    coefficients: Coefficients
    frame_index: NDArray[np.int32]
    nme_percent: NDArray[np.float32]
    photometric_l1: NDArray[np.float32]
    status: tuple[str, ...]
    model: str
    model_checksum: str


def read_fits(fits: str, clip_ids: Sequence[str] | None = None) -> Iterator[ClipCoefficients]:
    """Yield the clips of a `fits` artifact that have a fit.

    Args:
        fits: Artifact directory.
        clip_ids: Clips to read; all by default.

    Raises:
        InputError: If a wanted clip is not in the artifact.
    """
    extra = read_manifest(fits, kind="fits").extra
    missing = set(clip_ids or ())
    for clip_id, table in iter_clips(fits, "fits"):
        if clip_ids is not None and clip_id not in clip_ids:
            continue
        missing.discard(clip_id)
        if table["frame_index"][0].as_py() == NOT_A_FRAME:
            continue
        parts = {field: _matrix(table, column) for field, column in COLUMNS.items()}
        yield ClipCoefficients(
            clip_id,
            Coefficients(**{field: torch.from_numpy(value) for field, value in parts.items()}),
            table["frame_index"].to_numpy().astype(np.int32),
            table["nme_percent"].to_numpy().astype(np.float32),
            table["photometric_l1"].to_numpy().astype(np.float32),
            tuple(table["status"].to_pylist()),
            str(extra.get("model", "")),
            str(extra.get("model_checksum", "")),
        )
    if missing:
        raise InputError(f"{fits}: no clip {sorted(missing)[0]!r} in this artifact")


def write_npz(clip: ClipCoefficients, path: Path) -> None:
    """Write every column of a clip as `.npz`; nothing in it needs pickle."""
    np.savez_compressed(
        path,
        coefficients=clip.coefficients.pack().numpy(),
        frame_index=clip.frame_index,
        nme_percent=clip.nme_percent,
        photometric_l1=clip.photometric_l1,
        status=np.array(clip.status, np.str_),
        clip_id=np.array(clip.clip_id, np.str_),
        model=np.array(clip.model, np.str_),
        model_checksum=np.array(clip.model_checksum, np.str_),
    )


def write_mat(clip: ClipCoefficients, path: Path) -> None:
    """Write a clip as `.mat` under Deep3D's names, with the packed 257 beside them."""
    named = {name: getattr(clip.coefficients, field).numpy() for field, name in MAT_NAMES.items()}
    content: dict[str, Any] = {
        **named,
        "coeff": clip.coefficients.pack().numpy(),
        "frame_index": clip.frame_index,
        "nme_percent": clip.nme_percent,
        "photometric_l1": clip.photometric_l1,
        "status": np.array(clip.status, dtype=object),
        "clip_id": clip.clip_id,
        "model": clip.model,
        "model_checksum": clip.model_checksum,
    }
    savemat(str(path), content, do_compression=True, oned_as="column")


def read_clip(path: Path) -> ClipCoefficients:
    """Read a file of `write_npz` or `write_mat`, or coefficients of the original programs.

    Originals: Deep3D's `.mat` (`id`, `exp`, ...), 3DMM-Fitting's `.npy` of 257 numbers,
    NeRFFaceSpeech's `fitted_coeffs.pt`. Those name no model, and no frames: frames are counted.

    Raises:
        InputError: If the file is missing, unreadable or has other contents.
    """
    readers = {".npz": _read_npz, ".mat": _read_mat, ".npy": _read_npy, ".pt": _read_pt}
    if path.suffix not in readers:
        raise InputError(f"{path}: coefficient files end with {', '.join(readers)}")
    try:
        raw = readers[path.suffix](path)
        packed = np.ascontiguousarray(raw["coeff"], np.float32).reshape(-1, NUM_COEFFICIENTS)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (MatReadError, KeyError, ValueError, OSError, RuntimeError) as error:
        raise InputError(f"{path}: no coefficients of 257 numbers in it ({error})") from error
    count = len(packed)
    unknown = np.full(count, np.nan, np.float32)
    return ClipCoefficients(
        _text(raw.get("clip_id", path.stem)),
        Coefficients.unpack(torch.from_numpy(packed)),
        np.asarray(raw.get("frame_index", np.arange(count))).ravel().astype(np.int32),
        np.asarray(raw.get("nme_percent", unknown)).ravel().astype(np.float32),
        np.asarray(raw.get("photometric_l1", unknown)).ravel().astype(np.float32),
        tuple(_text(word) for word in np.asarray(raw.get("status", ["ok"] * count)).ravel()),
        _text(raw.get("model", "")),
        _text(raw.get("model_checksum", "")),
    )


def import_fits(paths: Sequence[Path], output: str, model: MorphableModel) -> int:
    """Write coefficient files as a `fits` artifact; returns the number of clips.

    Files without a model name come from BFM programs and are taken for BFM only.

    Args:
        paths: Files that `read_clip` reads, one clip each.
        output: Artifact directory to make.
        model: The model of all files.

    Raises:
        InputError: If a file belongs to another model, or two files have the same clip.
    """
    store = Store(output)
    seen: dict[str, Path] = {}
    for path in paths:
        clip = read_clip(path)
        named = (clip.model, clip.model_checksum)
        if named != (model.model_id, model.checksum) and (
            named != ("", "") or model.model_id != "bfm"
        ):
            raise InputError(
                f"{path}: coefficients of model {clip.model or 'BFM (unnamed)'} "
                f"{clip.model_checksum[:12]}, not of {model.model_id} {model.checksum[:12]}"
            )
        if clip.clip_id in seen:
            raise InputError(f"{path} and {seen[clip.clip_id]} both hold clip {clip.clip_id!r}")
        seen[clip.clip_id] = path
        store.write_table(f"fits/{file_name(clip.clip_id)}.parquet", _fits_table(clip))
    if not seen:
        raise InputError("no coefficient file was given; nothing to import")
    write_manifest(
        output,
        kind="fits",
        config={"imported": [str(path) for path in paths]},
        counts={"clips": len(seen)},
        extra={"model": model.model_id, "model_checksum": model.checksum},
    )
    return len(seen)


def file_name(clip_id: str) -> str:
    """Return a clip's id as a file name."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in clip_id).lstrip(".") or "clip"


def _fits_table(clip: ClipCoefficients) -> pa.Table:
    count = len(clip.coefficients)
    columns: dict[str, Any] = {
        "clip_id": [clip.clip_id] * count,
        "frame_index": pa.array(clip.frame_index),
        "nme_percent": pa.array(clip.nme_percent),
        "photometric_l1": pa.array(clip.photometric_l1),
        "status": list(clip.status),
    }
    for field, column in COLUMNS.items():
        values = getattr(clip.coefficients, field).contiguous().numpy()
        flat = pa.array(values.ravel())
        columns[column] = pa.FixedSizeListArray.from_arrays(flat, PACKED_SIZES[field])
    return pa.table([columns[name] for name in FITS.names], schema=FITS)


def _matrix(table: pa.Table, column: str) -> NDArray[np.float32]:
    flat = table[column].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.array(flat, np.float32).reshape(len(table), -1)


def _read_npz(path: Path) -> Mapping[str, Any]:
    with np.load(path, allow_pickle=False) as data:
        raw = {name: data[name] for name in data.files}
    return {**raw, "coeff": raw["coefficients"]}


def _read_mat(path: Path) -> Mapping[str, Any]:
    raw = loadmat(str(path))
    if "coeff" in raw:
        return dict(raw)
    parts = [raw[MAT_NAMES[field]].reshape(-1, width) for field, width in PACKED_SIZES.items()]
    return {"coeff": np.concatenate(parts, axis=1)}


def _read_npy(path: Path) -> Mapping[str, Any]:
    return {"coeff": np.load(path, allow_pickle=False)}


def _read_pt(path: Path) -> Mapping[str, Any]:
    tensor = torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
    return {"coeff": tensor.numpy()}


def _text(value: Any) -> str:
    """Return the text inside the arrays that `.mat` and `.npz` wrap it in."""
    while isinstance(value, np.ndarray):
        if value.size == 0:
            return ""
        value = value.ravel()[0]
    return str(value)
