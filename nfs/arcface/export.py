"""Checkpoint directories of trained backbones, head shards, and ONNX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nfs.arcface.backbones import BackboneOptions, build_backbone
from nfs.arcface.shards import Shard
from nfs.errors import ArtifactError
from nfs.training.checkpoint import read_model, read_weights, write_checkpoint

KIND = "arcface"
_PART = "head-{start:09d}-{stop:09d}.safetensors"


def export_backbone(
    directory: str | Path,
    backbone: nn.Module,
    *,
    name: str,
    embedding_size: int,
    options: BackboneOptions,
    card: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint directory of a backbone."""
    model = {
        "kind": KIND,
        "name": name,
        "embedding_size": embedding_size,
        "options": asdict(options),
    }
    facts = "".join(f"- {key}: {value}\n" for key, value in (card or {}).items())
    text = (
        f"# ArcFace {name}\n\n- {embedding_size} numbers per face, aligned RGB "
        f"{options.image_size_px} px, values in [-1, 1]; compare by cosine\n{facts}\n"
        "An embedding identifies a person. Ask before you compare people.\n"
    )
    write_checkpoint(Path(directory), backbone.state_dict(), model=model, card=text)


def load_backbone(directory: str | Path) -> nn.Module:
    """Return the backbone of a checkpoint directory, in eval mode on the CPU.

    Raises:
        ArtifactError: If it is not an ArcFace checkpoint or its weights do not fit.
    """
    model = read_model(directory)
    if model.get("kind") != KIND:
        raise ArtifactError(f"{directory}: holds a {model.get('kind')!r} model, need {KIND!r}")
    options = BackboneOptions(**model["options"])
    backbone = build_backbone(model["name"], model["embedding_size"], options)
    try:
        backbone.load_state_dict(read_weights(directory))
    except RuntimeError as error:
        raise ArtifactError(f"{directory}: weights do not fit model.json: {error}") from error
    return backbone.eval()


def save_shard(directory: Path, shard: Shard, tensors: Mapping[str, Tensor]) -> None:
    """Write one rank's rows `[C_r, D]` of the class centres and their moments."""
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    save_file(plain, directory / _PART.format(start=shard.start, stop=shard.stop))


def load_shard(directory: Path, shard: Shard, tensors: Mapping[str, Tensor]) -> None:
    """Copy rows of a shard out of the files of any number of ranks, reading only what overlaps.

    Args:
        directory: State directory.
        shard: Wanted classes.
        tensors: Destinations `[C_r, D]` by name, written in place.

    Raises:
        ArtifactError: If files are missing, damaged or do not cover the classes.
    """
    covered = 0
    for file in sorted(directory.glob("head-*.safetensors")):
        start, stop = (int(part) for part in file.stem.split("-")[1:])
        first, last = max(start, shard.start), min(stop, shard.stop)
        if first >= last:
            continue
        covered += last - first
        try:
            with safe_open(file, framework="pt") as stored, torch.no_grad():
                for name, target in tensors.items():
                    rows = stored.get_slice(name)[first - start : last - start]
                    target[first - shard.start : last - shard.start].copy_(rows)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise ArtifactError(f"{file}: not readable as a head shard: {error}") from None
    if covered != len(shard):
        raise ArtifactError(
            f"{directory}: head shards cover {covered} of the classes "
            f"{shard.start}..{shard.stop - 1}; was the number of classes changed?"
        )


def join_shards(directory: str | Path, name: str = "weight") -> Tensor:
    """Return the whole matrix `[C, D]` of a state, in class order (for small heads)."""
    files = sorted(Path(directory).glob("head-*.safetensors"))
    if not files:
        raise ArtifactError(f"{directory}: no head shards")
    return torch.cat([load_file(file)[name] for file in files])


def export_onnx(backbone: nn.Module, path: str | Path, image_size_px: int = 112) -> None:
    """Write an ONNX model `data` `[N, 3, S, S]` -> `embedding` `[N, D]` with a dynamic N.

    Needs the packages onnx and onnxscript.
    """
    example = torch.zeros(2, 3, image_size_px, image_size_px)
    torch.onnx.export(
        backbone.eval(),
        (example,),
        str(path),
        input_names=["data"],
        output_names=["embedding"],
        dynamic_shapes=({0: torch.export.Dim("N", min=1)},),
        dynamo=True,
        verbose=False,
    )
