"""Readers of checkpoint files that never execute a pickle.

What a pickled state dict may be wrapped in, and how it is unwrapped (outermost first, repeatedly):
an entry `state_dict`, `model_state_dict`, `net_recon` (Deep3D), `state_dict_backbone` (arcface),
`model` or `generator` that holds tensors by name; then the prefix `module.` if every name has it
(data-parallel wrappers). Other entries beside the unwrapped one (optimiser, epoch) are left behind.
"""

import json
import logging
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nfs.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

PICKLED = (".pt", ".pth", ".tar", ".ckpt")
OPTIONS_KEY = "nfs_original_options"
"""Entry of a safetensors header that holds the original's keyword arguments as JSON."""
_WRAPPERS = (
    *("state_dict", "model_state_dict", "net_recon", "state_dict_backbone"),
    *("model", "generator"),
)
_PARALLEL = "module."
_REFUSED = re.compile(r"GLOBAL (\S+)")
_log = logging.getLogger(__name__)


def read_state_dict(path: str | Path) -> "dict[str, Tensor]":
    """Return the tensors of a checkpoint file by name.

    Args:
        path: `.safetensors`, or `.pt`, `.pth`, `.tar`, `.ckpt` written by `torch.save` (zip or
            legacy format), which are read with `weights_only=True` and unwrapped as above.

    Raises:
        InputError: If the file is missing, damaged, holds anything but tensors and plain values
            (a foreign name is quoted), or is of another format.
    """
    file = _existing(path)
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    if file.suffix in PICKLED:
        return _unwrapped(read_pickled(file), file)
    if file.suffix == ".pkl":
        raise InputError(
            f"{path}: a whole pickled network, not a state dict; snapshots of StyleNeRF are read "
            "by `nfs checkpoint import stylenerf SNAPSHOT.pkl DIR`"
        )
    raise InputError(
        f"{path}: cannot read {file.suffix or 'a file without suffix'} checkpoints; "
        f"known: .safetensors {' '.join(PICKLED)}"
    )


def read_options(path: str | Path) -> dict[str, Any] | None:
    """Return the original's keyword arguments that `nfs checkpoint export` put into a header."""
    from safetensors import SafetensorError, safe_open

    file = _existing(path)
    if file.suffix != ".safetensors":
        return None
    try:
        with safe_open(file, framework="pt") as stored:
            text = (stored.metadata() or {}).get(OPTIONS_KEY)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file: {error}") from error
    if text is None:
        return None
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: {OPTIONS_KEY} in its header is not JSON: {error}") from None


def read_pickled(path: str | Path) -> object:
    """Return what a file of `torch.save` holds: tensors, containers and plain values.

    Raises:
        InputError: If it is missing or damaged, or names anything beyond those.
    """
    import torch

    file = _existing(path)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            warnings.filterwarnings("ignore", message="'torch.load' received a zip file")
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = _REFUSED.search(str(error))
        what = f"names {refused[1]}" if refused else f"is not a plain state dict ({_first(error)})"
        raise InputError(
            f"{path}: {what}; only tensors and plain values are read and nothing was executed; "
            "save the state dict alone, best as .safetensors"
        ) from None
    except (EOFError, ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        raise InputError(
            f"{path}: not a readable file of torch.save: {type(error).__name__}: {_first(error)}"
        ) from None


def _existing(path: str | Path) -> Path:
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{path}: no such checkpoint file")
    return file


def _read_safetensors(file: Path) -> "dict[str, Tensor]":
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(file))
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: not a readable safetensors file: {error}") from error


def _unwrapped(content: object, file: Path) -> "dict[str, Tensor]":
    from torch import Tensor

    while isinstance(content, Mapping):
        inner = next((n for n in _WRAPPERS if isinstance(content.get(n), Mapping)), None)
        if inner is None:
            break
        left = sorted(str(name) for name in content if name != inner)
        _log.info("%s: read entry %s; left %s", file, inner, ", ".join(left) or "nothing")
        content = content[inner]
    if not isinstance(content, Mapping) or not content:
        held = type(content).__name__
        raise InputError(f"{file}: holds no state dict but {'nothing' if not content else held}")
    foreign = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if foreign:
        raise InputError(
            f"{file}: not a state dict: {foreign[:5]} ({len(foreign)} of {len(content)} entries) "
            f"are no tensors; known wrappers: {', '.join(_WRAPPERS)}"
        )
    state = {str(name): value for name, value in content.items()}
    if all(name.startswith(_PARALLEL) for name in state):
        state = {name.removeprefix(_PARALLEL): value for name, value in state.items()}
    return state


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]
