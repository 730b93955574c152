"""Readers of checkpoint files that never execute a pickle."""

from pathlib import Path
from typing import TYPE_CHECKING

from nfs.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


def read_state_dict(path: str | Path) -> "dict[str, Tensor]":
    """Return the tensors of a `.safetensors` file by name.

    Raises:
        InputError: If the file is missing, damaged, or of a format that cannot be read yet.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = Path(path)
    if not file.is_file():
        raise InputError(f"{path}: no such checkpoint file")
    if file.suffix != ".safetensors":
        raise InputError(
            f"{path}: cannot read {file.suffix or 'a file without suffix'} checkpoints; pickled "
            "formats (.pkl, .pt, .pth) run code when loaded and have no safe reader here yet; "
            "convert the state dict to .safetensors"
        )
    try:
        return dict(load_file(file))
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file: {error}") from error
