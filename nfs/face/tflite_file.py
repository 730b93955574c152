"""Reader of .tflite network files (FlatBuffers, read in place; nothing is executed).

Field numbers are those of TensorFlow Lite's published schema (schema.fbs, version 3).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfs.errors import InputError

_DTYPES = {0: np.float32, 1: np.float16, 2: np.int32, 3: np.uint8, 4: np.int64, 9: np.int8}
_OPERATORS = {
    0: "ADD",
    2: "CONCATENATION",
    3: "CONV_2D",
    4: "DEPTHWISE_CONV_2D",
    6: "DEQUANTIZE",
    17: "MAX_POOL_2D",
    19: "RELU",
    22: "RESHAPE",
    23: "RESIZE_BILINEAR",
    34: "PAD",
    54: "PRELU",
}
# Options table of each operator: name -> (field number, struct code, default).
_OPTIONS: dict[str, dict[str, tuple[int, str, int]]] = {
    "CONV_2D": {
        "padding": (0, "b", 0),
        "stride_x": (1, "i", 0),
        "stride_y": (2, "i", 0),
        "activation": (3, "b", 0),
        "dilation_x": (4, "i", 1),
        "dilation_y": (5, "i", 1),
    },
    "DEPTHWISE_CONV_2D": {
        "padding": (0, "b", 0),
        "stride_x": (1, "i", 0),
        "stride_y": (2, "i", 0),
        "multiplier": (3, "i", 0),
        "activation": (4, "b", 0),
        "dilation_x": (5, "i", 1),
        "dilation_y": (6, "i", 1),
    },
    "MAX_POOL_2D": {
        "padding": (0, "b", 0),
        "stride_x": (1, "i", 0),
        "stride_y": (2, "i", 0),
        "size_x": (3, "i", 0),
        "size_y": (4, "i", 0),
        "activation": (5, "b", 0),
    },
    "ADD": {"activation": (0, "b", 0)},
    "CONCATENATION": {"axis": (0, "i", 0), "activation": (1, "b", 0)},
    "RESIZE_BILINEAR": {"align_corners": (2, "?", 0), "half_pixel_centers": (3, "?", 0)},
}


@dataclass(frozen=True)
class Operator:
    """One step of a network: tensor numbers in and out (-1: none), and its options."""

    name: str
    inputs: list[int]
    outputs: list[int]
    options: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class TfliteGraph:
    """A network: steps in order, shapes (NHWC) of all tensors, values of the constant ones."""

    operators: list[Operator]
    inputs: list[int]
    outputs: list[int]
    shapes: list[tuple[int, ...]]
    constants: dict[int, NDArray[Any]]


def read_tflite(data: bytes, where: str) -> TfliteGraph:
    """Return the network in the bytes of a .tflite file.

    Args:
        data: The file.
        where: Its name, for messages.

    Raises:
        InputError: If it is damaged, or uses an operator that is not supported.
    """
    if data[4:8] != b"TFL3":
        raise InputError(f"{where}: is no .tflite file")
    try:
        return _read(data, where)
    except (struct.error, IndexError, ValueError, KeyError) as error:
        raise InputError(f"{where}: damaged .tflite file ({error})") from None


def _read(data: bytes, where: str) -> TfliteGraph:
    model = _Table(data, _Table.root(data))
    codes = [max(c.number(0, "b"), c.number(3, "i")) for c in model.tables(1)]
    unknown = sorted({code for code in codes if code not in _OPERATORS})
    if unknown:
        raise InputError(f"{where}: operators {unknown} are not supported")
    buffers, graph = model.tables(4), model.tables(2)[0]
    shapes: list[tuple[int, ...]] = []
    constants: dict[int, NDArray[Any]] = {}
    for index, tensor in enumerate(graph.tables(0)):
        shape = tuple(int(n) for n in tensor.numbers(0, np.int32))
        shapes.append(shape)
        values = buffers[tensor.number(2, "I")].numbers(0, np.uint8)
        if len(values):
            dtype = _DTYPES[tensor.number(1, "b")]
            constants[index] = np.frombuffer(values.tobytes(), dtype).reshape(shape)
    operators = []
    for entry in graph.tables(3):
        name, table = _OPERATORS[codes[entry.number(0, "I")]], entry.table(4)
        wanted = _OPTIONS.get(name, {}).items()
        options = {
            key: default if table is None else table.number(place, kind, default)
            for key, (place, kind, default) in wanted
        }
        ins, outs = ([int(n) for n in entry.numbers(place, np.int32)] for place in (1, 2))
        operators.append(Operator(name, ins, outs, options))
    inputs, outputs = ([int(n) for n in graph.numbers(place, np.int32)] for place in (1, 2))
    return TfliteGraph(operators, inputs, outputs, shapes, constants)


class _Table:
    """A FlatBuffers table at a position in a file; fields by number."""

    def __init__(self, data: bytes, position: int):
        self.data, self.position = data, position
        vtable = position - self._at("i", position)
        length = self._at("H", vtable)
        count = (length - 4) // 2
        self.offsets = struct.unpack_from(f"<{count}H", data, vtable + 4)

    @staticmethod
    def root(data: bytes) -> int:
        """Return the position of the outermost table."""
        return int(struct.unpack_from("<I", data, 0)[0])

    def number(self, place: int, kind: str, default: int = 0) -> int:
        """Return a number or flag."""
        offset = self._offset(place)
        return default if offset == 0 else int(self._at(kind, self.position + offset))

    def numbers(self, place: int, dtype: type[np.generic]) -> NDArray[Any]:
        """Return a vector of numbers; empty when absent."""
        start, count = self._vector(place)
        return np.frombuffer(self.data, dtype, count=count, offset=start)

    def table(self, place: int) -> _Table | None:
        """Return a table; None when absent."""
        offset = self._offset(place)
        return None if offset == 0 else _Table(self.data, self._target(self.position + offset))

    def tables(self, place: int) -> list[_Table]:
        """Return a vector of tables."""
        start, count = self._vector(place)
        return [_Table(self.data, self._target(start + 4 * n)) for n in range(count)]

    def _vector(self, place: int) -> tuple[int, int]:
        offset = self._offset(place)
        if offset == 0:
            return 0, 0
        start = self._target(self.position + offset)
        return start + 4, int(self._at("I", start))

    def _offset(self, place: int) -> int:
        return int(self.offsets[place]) if place < len(self.offsets) else 0

    def _target(self, position: int) -> int:
        return position + int(self._at("I", position))

    def _at(self, kind: str, position: int) -> int:
        return int(struct.unpack_from(f"<{kind}", self.data, position)[0])
