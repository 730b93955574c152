"""Pickles of the original's format without its classes, and hostile ones, for tests."""

from __future__ import annotations

import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_REBUILD = "_reconstruct_persistent_obj"


class Foreign:
    """Pickles like an object of the original's persistence decorator."""

    def __init__(self, class_name: str, state: dict[str, Any], source: str = "") -> None:
        self.class_name, self.state, self.source = class_name, state, source

    def __reduce__(self) -> tuple[Any, tuple[dict[str, Any]]]:
        rebuild = getattr(sys.modules["torch_utils.persistence"], _REBUILD)
        meta = {"type": "class", "version": 6, "module_src": self.source}
        return rebuild, (meta | {"class_name": self.class_name, "state": self.state},)


@contextmanager
def _original_names() -> Iterator[None]:
    """Let pickle find the function's name while writing; afterwards nobody can import it."""

    def rebuild(meta: dict[str, Any]) -> None:
        raise AssertionError(f"executed: {meta['class_name']}")

    rebuild.__module__, rebuild.__qualname__ = "torch_utils.persistence", _REBUILD
    package, module = types.ModuleType("torch_utils"), types.ModuleType("torch_utils.persistence")
    setattr(module, _REBUILD, rebuild)
    sys.modules |= {"torch_utils": package, "torch_utils.persistence": module}
    try:
        yield
    finally:
        del sys.modules["torch_utils"], sys.modules["torch_utils.persistence"]


def foreign_module(
    class_name: str, tensors: dict[str, Tensor], source: str = "", **attributes: Any
) -> Foreign:
    """Return a module tree that holds tensors under dotted names."""
    own = {name: value for name, value in tensors.items() if "." not in name}
    children = sorted({name.partition(".")[0] for name in tensors if "." in name})
    modules: dict[str, Any] = {}
    for child in children:
        prefix = f"{child}."
        inner = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        modules[child] = foreign_module(child.title(), inner, source)
    state = {
        "training": False,
        "_parameters": OrderedDict(
            (k, torch.nn.Parameter(v)) for k, v in own.items() if k in ("weight", "bias")
        ),
        "_buffers": OrderedDict((k, v) for k, v in own.items() if k not in ("weight", "bias")),
        "_non_persistent_buffers_set": set(),
        "_modules": OrderedDict(modules),
        **attributes,
    }
    return Foreign(class_name, state, source)


def write_pickle(path: Path, content: object) -> Path:
    """Write `content` with the original's names."""
    with _original_names(), path.open("wb") as stream:
        pickle.dump(content, stream, protocol=4)
    return path


class Call:
    """Pickles as a call of any importable function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments
