"""Original files to checkpoint directories and back: the work of `nfs checkpoint`.

How a family's module becomes a directory, and a directory an original state dict, lives with the
family; the tables below name the functions.
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nfs.artifacts import write_manifest
from nfs.errors import InputError
from nfs.pretrained.readers import OPTIONS_KEY, read_options, read_state_dict
from nfs.pretrained.registry import FAMILIES, load_original, resolve
from nfs.training.checkpoint import read_model, read_weights

if TYPE_CHECKING:
    from torch import Tensor

# First part of the family -> `function(directory, module, family, facts)`.
_WRITERS = {
    "stylenerf": "nfs.stylenerf.snapshot:write_imported",
    "arcface": "nfs.arcface.importing:write_imported",
    "audio2exp": "nfs.audio.original:write_imported",
    "recon": "nfs.morphable.recon.checkpoint:write_imported",
}
# Kind in `model.json` -> `function(directory, network) -> (state_dict, family, options)`.
_EXPORTERS = {
    "stylenerf": "nfs.stylenerf.original_export:export_checkpoint",
    "arcface": "nfs.arcface.importing:export_checkpoint",
    "audio2exp": "nfs.audio.original:export_checkpoint",
    "recon": "nfs.morphable.recon.checkpoint:export_checkpoint",
}
_WHOLE = {"stylenerf": "nfs.stylenerf.snapshot:import_snapshot"}
_DESCRIBE_SNAPSHOT = "nfs.stylenerf.snapshot:describe"
NETWORKS = ("ema", "weights", "discriminator")


def import_checkpoint(
    family: str,
    path: str | Path,
    directory: str | Path,
    *,
    config: str | Path | None = None,
) -> None:
    """Write an original file as a checkpoint directory.

    Args:
        family: `stylenerf` for a snapshot `.pkl` with all its networks, or a family of
            `load_original` for one network.
        path: The original's file.
        directory: New or empty.
        config: JSON file of the original's keyword arguments, where PATH does not carry them.

    Raises:
        InputError: If the directory is in use, the file is refused, or a tensor does not fit.
    """
    folder, source = Path(directory), Path(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{directory}: exists and is not empty; give a new directory")
    root = family.partition("/")[0]
    if family not in _WHOLE and (root not in _WRITERS or family not in FAMILIES):
        known = sorted({*_WHOLE, *(name for name in FAMILIES if name.split("/")[0] in _WRITERS)})
        raise InputError(f"cannot import {family!r}; known: {', '.join(known)}")
    module = None
    if family not in _WHOLE:
        module = load_original(family, path, None if config is None else _read_json(config))
        _check_finite(module.state_dict(), path)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        written = Path(scratch) / "checkpoint"
        if module is None:
            resolve(_WHOLE[family])(source, written)
        else:
            facts = {"imported from": source.name}
            resolve(_WRITERS[root])(written, module, family, facts)
        write_manifest(
            str(written),
            kind="checkpoint",
            config={"family": family, "file": source.name, "sha256": _sha256(source)},
            extra={"model": read_model(written)["kind"]},
        )
        written.replace(folder)


def export_checkpoint(
    directory: str | Path, path: str | Path, *, network: str | None = None
) -> str:
    """Write a network of a checkpoint directory as a state dict under the original's names.

    Args:
        directory: Checkpoint of this project.
        path: `.safetensors`; its header carries the original's keyword arguments, so that
            `load_original` and `import_checkpoint` read it back exactly.
        network: One of `NETWORKS`; None: the averaged weights where there are some.

    Returns:
        The family that reads the file back.

    Raises:
        InputError: If there is no such network or no original counterpart.
    """
    from safetensors.torch import save_file

    file = Path(path)
    if file.suffix != ".safetensors":
        raise InputError(f"{path}: name the file .safetensors")
    if network is not None and network not in NETWORKS:
        raise InputError(f"unknown network {network!r}; known: {', '.join(NETWORKS)}")
    kind = str(read_model(directory).get("kind"))
    if kind not in _EXPORTERS:
        raise InputError(
            f"{directory}: cannot export a {kind!r} model; known: {', '.join(sorted(_EXPORTERS))}"
        )
    state, family, options = resolve(_EXPORTERS[kind])(directory, network)
    metadata = {"format": "pt", "family": family, OPTIONS_KEY: json.dumps(options)}
    save_file({name: t.contiguous() for name, t in state.items()}, file, metadata=metadata)
    return str(family)


def describe(path: str | Path) -> dict[str, Any]:
    """Return what a checkpoint directory or an original's file holds, as plain values.

    Raises:
        InputError: If it is neither, or the file is refused.
    """
    place = Path(path)
    if place.is_dir():
        weights = read_weights(place)
        return {"model": read_model(place), **_size(weights)}
    if place.suffix == ".pkl":
        return dict(resolve(_DESCRIBE_SNAPSHOT)(place))
    weights = read_state_dict(place)
    return {"options": read_options(place), **_size(weights), "names": sorted(weights)}


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_json(path: str | Path) -> dict[str, Any]:
    try:
        tree = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(tree, dict):
        raise InputError(f"{path}: not a JSON object of keyword arguments")
    return tree


def _size(state: "Mapping[str, Tensor]") -> dict[str, int]:
    return {"tensors": len(state), "numbers": sum(t.numel() for t in state.values())}


def _check_finite(state: "Mapping[str, Tensor]", path: str | Path) -> None:
    import torch

    damaged = [
        name for name, t in state.items() if t.is_floating_point() and not torch.isfinite(t).all()
    ]
    if damaged:
        raise InputError(f"{path}: {', '.join(damaged[:5])} hold NaN or infinity")
