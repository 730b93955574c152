"""Original backbones as checkpoint directories, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nfs.arcface.backbones import BackboneOptions, build_backbone
from nfs.arcface.export import export_backbone
from nfs.errors import InputError
from nfs.training.checkpoint import read_model, read_weights


def write_imported(
    directory: Path, network: nn.Module, family: str, facts: Mapping[str, Any]
) -> None:
    """Write an imported backbone as a checkpoint directory.

    Raises:
        InputError: If its layout has no name of its own (MobileFaceNet before July 2021).
    """
    name = family.removeprefix("arcface/")
    state = network.state_dict()
    size = next(len(state[key]) for key in _EMBEDDING_LAYERS if key in state)
    rebuilt = {key: value.shape for key, value in build_backbone(name, size).state_dict().items()}
    if rebuilt != {key: value.shape for key, value in state.items()}:
        raise InputError(f"{family}: an older layout that a checkpoint directory cannot name")
    export_backbone(
        directory,
        network,
        name=name,
        embedding_size=size,
        options=BackboneOptions(),
        card=facts,
    )


def export_checkpoint(
    directory: str | Path, network: str | None
) -> tuple[dict[str, Tensor], str, dict[str, Any]]:
    """Return state dict, family and options of a checkpoint; our names are the original's.

    Raises:
        InputError: If anything but the backbone is asked for.
    """
    if network not in (None, "weights"):
        raise InputError(f"{directory}: an ArcFace checkpoint holds `weights` alone, not {network}")
    return read_weights(directory), f"arcface/{read_model(directory)['name']}", {}


_EMBEDDING_LAYERS = ("fc.weight", "features.layers.2.weight", "feature.2.weight")
