"""Checkpoint directories of trained backbones, head shards, and ONNX."""

from __future__ import annotations

import math
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
from nfs.errors import ArtifactError, InputError
from nfs.training.checkpoint import read_model, read_weights, write_checkpoint

KIND = "arcface"
ONNX_TOLERANCE = 1e-4
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

    Raises:
        InputError: If the packages onnx and onnxscript are missing.
    """
    example = torch.zeros(2, 3, image_size_px, image_size_px)
    try:
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
    except ModuleNotFoundError as error:
        raise InputError(f"ONNX needs the package {error.name}; pip install 'nfs[dev]'") from None


def onnx_error(backbone: nn.Module, path: str | Path, image_size_px: int = 112) -> float:
    """Return the largest difference of an ONNX file to its backbone, relative to the largest value.

    Batches of 1 and 3 random images are run in onnxruntime.

    Raises:
        InputError: If the package onnxruntime is missing.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise InputError("the check needs the package onnxruntime; pip install it") from None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    worst = 0.0
    for count in (1, 3):
        images = torch.rand(count, 3, image_size_px, image_size_px) * 2 - 1
        with torch.no_grad():
            expected = backbone.eval()(images)
        found = torch.from_numpy(session.run(None, {"data": images.numpy()})[0])
        if found.shape != expected.shape:
            return math.inf
        worst = max(worst, float((found - expected).abs().max() / expected.abs().max()))
    return worst


def checkpoint_to_onnx(directory: str | Path, path: str | Path) -> float:
    """Write a checkpoint directory as ONNX, check it in onnxruntime and return the error.

    Raises:
        ArtifactError: If the directory is not a backbone's, or the file computes something else.
        InputError: If a package is missing.
    """
    size_px = int(read_model(directory)["options"]["image_size_px"])
    backbone = load_backbone(directory)
    export_onnx(backbone, path, size_px)
    error = onnx_error(backbone, path, size_px)
    if not error <= ONNX_TOLERANCE:
        raise ArtifactError(f"{path}: differs from {directory} by {error:.1e} in onnxruntime")
    return error
