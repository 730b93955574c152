"""The checkpoint format: safetensors weights, the architecture as JSON, a card to read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nfs.errors import ArtifactError

WEIGHTS, EMA, MODEL, CARD = "weights.safetensors", "ema.safetensors", "model.json", "card.md"


def write_checkpoint(
    directory: Path,
    weights: Mapping[str, torch.Tensor],
    *,
    model: Mapping[str, Any],
    ema: Mapping[str, torch.Tensor] | None = None,
    card: str = "",
) -> None:
    """Write a checkpoint directory.

    Args:
        directory: Made if absent.
        weights: State dict of the trained module.
        model: Architecture: plain JSON values from which the module can be built.
        ema: State dict of the averaged module, if there is one.
        card: Markdown: what it is, trained on what, with which command and numbers.
    """
    directory.mkdir(parents=True, exist_ok=True)
    save_file(_plain(weights), directory / WEIGHTS)
    if ema is not None:
        save_file(_plain(ema), directory / EMA)
    (directory / MODEL).write_text(json.dumps(dict(model), indent=1, sort_keys=True))
    (directory / CARD).write_text(card or f"# {model.get('kind', 'model')}\n", encoding="utf-8")


def read_model(directory: str | Path) -> dict[str, Any]:
    """Return the architecture of a checkpoint.

    Raises:
        ArtifactError: If it is not a checkpoint directory.
    """
    file = Path(directory) / MODEL
    if not file.is_file():
        raise ArtifactError(f"{directory}: no {MODEL}, so it is not a checkpoint directory")
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{file}: damaged: {error}") from None


def read_weights(directory: str | Path, *, ema: bool = True) -> dict[str, torch.Tensor]:
    """Return the weights of a checkpoint: the averaged ones when asked for and there.

    Raises:
        ArtifactError: If the file is missing or damaged.
    """
    folder = Path(directory)
    file = folder / EMA if ema and (folder / EMA).is_file() else folder / WEIGHTS
    try:
        return dict(load_file(file))
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{file}: not readable as safetensors: {error}") from None


def _plain(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: t.detach().cpu().contiguous().clone() for name, t in state.items()}
