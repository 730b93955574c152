"""Reading a foreign pickle as data: a fixed table stands for every name it may contain.

A pickle is a program that can call anything importable. Here a name is looked up in the caller's
table and nowhere else, so what can run is what the table holds: constructors of inert records.
Source text inside the file is never touched. Format: spec/stylenerf.md 2.11.
"""

from __future__ import annotations

import io
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nfs.errors import InputError

_PERSISTENCE_VERSION = 6
_NUMBER = re.compile(r"[<>=|]?[biufc]\d{1,2}")
_REFUSED_BY_TORCH = re.compile(r"GLOBAL (\S+)")
# What reading arbitrary bytes as a pickle can raise besides UnpicklingError.
_DAMAGED = (
    *(EOFError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError),
    *(RuntimeError, MemoryError, UnicodeError, AssertionError),
)


class RefusedNameError(pickle.UnpicklingError):
    """The pickle names something that is not in the table."""


class Record:
    """An instance of a foreign class, reduced to its class's name and its state."""

    __slots__ = ("state",)
    class_name = ""

    def __init__(self, *_: object) -> None:
        self.state: Any = {}

    def __setstate__(self, state: object) -> None:
        """Keep what the class itself would have restored from."""
        self.state = state


@dataclass(frozen=True)
class PersistentObject:
    """An object of the original's persistence decorator, without its source text."""

    class_name: str
    state: dict[str, Any]


class _Mapping(dict):  # type: ignore[type-arg]
    """Stands for dict subclasses; additional attributes are dropped."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """Ignore attributes."""


class _DefaultMapping(_Mapping):
    __slots__ = ()

    def __init__(self, _factory: object = None, *items: Any) -> None:
        super().__init__(*items)


class _Number:
    """A numpy dtype of plain numbers."""

    __slots__ = ("code", "order")

    def __init__(self, code: object, *_: object) -> None:
        if not isinstance(code, str) or not _NUMBER.fullmatch(code):
            raise pickle.UnpicklingError(f"numpy dtype {code!r} is not a number")
        self.code, self.order = code.lstrip("<>=|"), "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Take the byte order; everything else follows from the code."""
        self.order = state[1] if state[1] in ("<", ">") else "="

    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.code)


class _Array:
    """A numpy array of plain numbers."""

    __slots__ = ("value",)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Decode (version, shape, dtype, column order, bytes)."""
        _, shape, number, columns, data = state
        flat = np.frombuffer(data, _number(number).dtype())
        self.value = flat.reshape(shape, order="F" if columns else "C").copy()


class _Function:
    """A callable of the table that the pickle cannot change."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., object]) -> None:
        self._call = call

    def __call__(self, *arguments: object) -> object:
        return self._call(*arguments)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("state given to a function")


def record_class(name: str) -> type[Record]:
    """Return an inert stand-in for the class `name`."""
    return type("Record", (Record,), {"__slots__": (), "class_name": name})


def _number(value: object) -> _Number:
    if not isinstance(value, _Number):
        raise pickle.UnpicklingError(f"{value!r} stands where a numpy dtype is needed")
    return value


def _scalar(dtype: object, data: object = b"") -> object:
    if not isinstance(data, bytes):
        raise pickle.UnpicklingError("a numpy scalar that is not bytes")
    (value,) = np.frombuffer(data, _number(dtype).dtype())
    return value.item()


def _storage(data: object) -> torch.storage.TypedStorage | torch.storage.UntypedStorage:
    """Decode a nested torch file that holds one storage."""
    if not isinstance(data, bytes):
        raise pickle.UnpicklingError("a tensor storage that is not bytes")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
        warnings.filterwarnings("ignore", message="Detected pickle protocol")
        try:
            storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            refused = _REFUSED_BY_TORCH.search(str(error))
            if refused is None:
                raise
            raise RefusedNameError(f"{refused[1]} in a tensor storage") from None
    if not isinstance(storage, torch.storage.TypedStorage | torch.storage.UntypedStorage):
        raise pickle.UnpicklingError(f"a {type(storage).__name__} in place of a tensor storage")
    return storage


def _tensor(
    storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object
) -> Tensor:
    if not isinstance(storage, torch.storage.TypedStorage):
        raise pickle.UnpicklingError("a tensor without typed storage")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    numbers = min((*size, *stride, offset), default=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
        available = storage.size()
        if numbers < 0 or (0 not in size and last >= available):
            raise pickle.UnpicklingError(f"a tensor {size} beyond its {available} numbers")
        flat = torch.tensor([], dtype=storage.dtype).set_(storage)
    return torch.as_strided(flat, size, stride, offset).clone(memory_format=torch.contiguous_format)


def _parameter(data: object, *_: object) -> Tensor:
    if not isinstance(data, Tensor):
        raise pickle.UnpicklingError("a parameter that is not a tensor")
    return data


def _persistent(meta: object) -> PersistentObject:
    """Keep class name and state of a persistent object; its source text is dropped unread."""
    if not isinstance(meta, dict):
        raise pickle.UnpicklingError("a persistent object without description")
    kind, version, state = meta.get("type"), meta.get("version"), meta.get("state")
    if kind != "class" or version != _PERSISTENCE_VERSION:
        raise pickle.UnpicklingError(
            f"persistent object of type {kind!r} and version {version!r}; "
            f"known: 'class', {_PERSISTENCE_VERSION}"
        )
    if not isinstance(state, dict):
        raise pickle.UnpicklingError("a persistent object without state")
    return PersistentObject(str(meta.get("class_name")), state)


_BUILTINS = {t.__name__: t for t in (bool, dict, float, int, list, set, str, tuple)}
_NAMES: dict[tuple[str, str], object] = {
    **{("builtins", name): t for name, t in _BUILTINS.items()},
    **{("__builtin__", name): t for name, t in _BUILTINS.items()},
    ("collections", "OrderedDict"): _Mapping,
    ("collections", "defaultdict"): _DefaultMapping,
    ("typing", "Any"): "typing.Any",
    ("numpy", "dtype"): _Number,
    ("numpy", "ndarray"): _Array,
    ("torch.storage", "_load_from_bytes"): _Function(_storage),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Function(_parameter),
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _Function(_persistent),
    ("dnnlib.util", "EasyDict"): _Mapping,
    ("torch", "Size"): tuple,
    ("torch", "device"): _Function(lambda *parts: ":".join(map(str, parts))),
    **{("torch", name): f"torch.{name}" for name in ("float16", "float32", "float64", "int64")},
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _NAMES[_module, "scalar"] = _Function(_scalar)
    _NAMES[_module, "_reconstruct"] = _Function(lambda *_: _Array())
for _module, _classes in {
    "torch.nn.modules.container": ("ModuleList", "ModuleDict", "Sequential"),
    "torch.nn.modules.activation": ("LeakyReLU", "ReLU", "Sigmoid", "Softplus"),
    "torch.nn.modules.conv": ("Conv2d",),
    "torch.nn.modules.linear": ("Identity", "Linear"),
    "omegaconf.base": ("Metadata", "ContainerMetadata"),
    "omegaconf.dictconfig": ("DictConfig",),
    "omegaconf.listconfig": ("ListConfig",),
    "omegaconf.nodes": [
        f"{kind}Node"
        for kind in ("Any", "Boolean", "Float", "Integer", "InterpolationResult", "String")
    ],
}.items():
    _NAMES |= {(_module, name): record_class(name) for name in _classes}
SAFE_NAMES: Mapping[tuple[str, str], object] = MappingProxyType(_NAMES)
"""(module, name) -> inert stand-in, for every global that an original snapshot may hold."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Look a global up in the table; nothing is imported."""
        if (module, name) not in SAFE_NAMES:
            raise RefusedNameError(f"{module}.{name}")
        return SAFE_NAMES[module, name]

    def persistent_load(self, identifier: object) -> object:
        """Refuse references to data outside the file."""
        raise pickle.UnpicklingError(f"a reference to outside data {str(identifier)[:80]}")


def read_pickle(path: str | Path) -> object:
    """Return the content of a pickle as containers, tensors, numbers and inert records.

    Args:
        path: A snapshot of the original StyleNeRF (or StyleGAN2-ADA) code.

    Raises:
        InputError: If the file is missing, damaged, or names anything outside `SAFE_NAMES`.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{path}: no such checkpoint file")
    try:
        with file.open("rb") as stream:
            return _Unpickler(stream).load()
    except RefusedNameError as error:
        raise InputError(
            f"{path}: names {error}, which no original snapshot needs; the file was refused and "
            "nothing in it was executed"
        ) from None
    except (pickle.UnpicklingError, *_DAMAGED) as error:
        raise InputError(
            f"{path}: not a snapshot, or truncated: {type(error).__name__}: {str(error)[:200]}"
        ) from None
