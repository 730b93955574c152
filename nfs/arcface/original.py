"""Import of the original's files: backbones by their own names, head shards of any world size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nfs.arcface.backbones import NAMES, BackboneOptions, build_backbone
from nfs.arcface.mobilefacenet import MobileFaceNet
from nfs.errors import InputError
from nfs.pretrained import readers

_IGNORED = {"fp16", "pretrained", "num_features", "embedding_size", "dropout", "name"}
_LOADER = "load_"


def load_backbone(
    name: str, state: Mapping[str, Tensor], config: Mapping[str, Any] | None = None
) -> nn.Module:
    """Return a backbone with the original's weights, in eval mode.

    Args:
        name: Backbone name.
        state: Tensors under the original names; a `module.` prefix is removed.
        config: The original's keyword arguments; sizes are read off the tensors and checked.

    Raises:
        InputError: If an option is unknown, or any name or shape does not fit.
    """
    options = dict(config or {})
    unknown = sorted(options.keys() - _IGNORED)
    if unknown:
        raise InputError(f"arcface/{name}: unknown options {unknown}; known: {sorted(_IGNORED)}")
    weights = strip_prefix(state)
    size = _embedding_size(name, weights)
    wanted = options.get("num_features", options.get("embedding_size", size))
    if wanted != size:
        raise InputError(f"arcface/{name}: the file has embedding size {size}, asked for {wanted}")
    with torch.device("meta"):
        model = _empty(name, size, weights, float(options.get("dropout", 0.0)))
    _check(name, model, weights)
    model = model.to_empty(device="cpu")
    model.load_state_dict({key: weights[key] for key in model.state_dict()}, strict=True)
    return model.eval()


def __getattr__(name: str) -> Callable[..., nn.Module]:
    """Return `load_<backbone>(state_dict, config)` for the registry of originals."""
    if name.startswith(_LOADER) and name[len(_LOADER) :] in NAMES:
        return partial(load_backbone, name[len(_LOADER) :])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def strip_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state without the `module.` that data-parallel wrappers add."""
    return {key.removeprefix("module."): value for key, value in state.items()}


@dataclass(frozen=True)
class OriginalTraining:
    """A stopped run of the original, independent of its world size.

    Attributes:
        backbone: State dict.
        head: Class centres `[C, D]`.
        head_moments: `momentum`, or `exp_avg` and `exp_avg_sq`, `[C, D]`; empty before a step.
        epoch: Next epoch.
        global_step: Optimiser micro-steps made.
    """

    backbone: dict[str, Tensor]
    head: Tensor
    head_moments: dict[str, Tensor]
    epoch: int
    global_step: int


def read_training(folder: str | Path) -> OriginalTraining:
    """Read `checkpoint_gpu_{0..P-1}.pt` of a folder and join the head's shards in rank order.

    Raises:
        InputError: If a rank's file is missing, or shards do not belong together.
    """
    files = sorted(Path(folder).glob("checkpoint_gpu_*.pt"), key=_rank)
    if not files or [_rank(f) for f in files] != list(range(len(files))):
        found = [f.name for f in files]
        raise InputError(
            f"{folder}: need checkpoint_gpu_0.pt to checkpoint_gpu_P-1.pt, got {found}"
        )
    parts = [read_pickled(f) for f in files]
    heads = [part["state_dict_softmax_fc"]["weight"] for part in parts]
    sizes = [len(h) for h in heads]
    if len({h.shape[1] for h in heads}) > 1 or max(sizes) - min(sizes) > 1:
        raise InputError(f"{folder}: head shards {[tuple(h.shape) for h in heads]} do not fit")
    if len({part["global_step"] for part in parts}) > 1:
        raise InputError(f"{folder}: the ranks' files are of different steps")
    return OriginalTraining(
        backbone=strip_prefix(parts[0]["state_dict_backbone"]),
        head=torch.cat(heads),
        head_moments=_head_moments(parts),
        epoch=int(parts[0]["epoch"]),
        global_step=int(parts[0]["global_step"]),
    )


def read_pickled(path: str | Path) -> dict[str, Any]:
    """Read a `.pt` or `.pth` file of tensors and plain values without executing it.

    Raises:
        InputError: If it is missing or damaged, or holds anything but a dictionary of those.
    """
    content = readers.read_pickled(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, not a state dict")
    return content


def _rank(file: Path) -> int:
    digits = file.stem.rpartition("_")[2]
    return int(digits) if digits.isdigit() else -1


def _head_moments(parts: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Join the moments of parameter group 1, the head's weight."""
    names = {"momentum_buffer": "momentum", "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}
    joined: dict[str, list[Tensor]] = {}
    for part in parts:
        optimizer = part["state_optimizer"]
        index = optimizer["param_groups"][1]["params"][0]
        for key, value in optimizer["state"].get(index, {}).items():
            if key in names and value is not None:
                joined.setdefault(names[key], []).append(value)
    return {name: torch.cat(values) for name, values in joined.items()}


def _embedding_size(name: str, weights: Mapping[str, Tensor]) -> int:
    for key in ("fc.weight", "features.layers.2.weight", "feature.2.weight"):
        if key in weights:
            return int(weights[key].shape[0])
    hint = ""
    if name.startswith("mbf"):
        hint = "; MobileFaceNet files from May and June 2021 use other names and are not supported"
    raise InputError(f"arcface/{name}: no embedding layer among the names{hint}")


def _empty(name: str, size: int, weights: Mapping[str, Tensor], dropout: float) -> nn.Module:
    if name == "mbf" and "layers.0.layers.0.weight" in weights:
        width = weights["layers.0.layers.0.weight"].shape[0] // 64
        if width == 1:  # until July 2021
            return MobileFaceNet(width=1, embedding_size=size)
    options = BackboneOptions(dropout=dropout if name.startswith("r") else 0.0)
    return build_backbone(name, size, options)


def _check(name: str, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    expected = model.state_dict()
    problems = []
    missing = [key for key in expected if key not in weights]
    unknown = [key for key in weights if key not in expected]
    if missing:
        problems.append(f"missing {missing}")
    if unknown:
        problems.append(f"unknown {unknown}")
    for key, tensor in expected.items():
        if key in weights and weights[key].shape != tensor.shape:
            got, need = list(weights[key].shape), list(tensor.shape)
            problems.append(f"{key} is {got}, expected {need}")
    if problems:
        raise InputError(f"arcface/{name}: {'; '.join(problems)}")
