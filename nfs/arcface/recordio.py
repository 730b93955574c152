"""RecordIO files (`.rec`, `.idx`), read and written without mxnet (spec/arcface.md 2.10).

A record is one part or several: magic, `kind << 29 | length`, data, zero pad to 4 bytes. A payload
is cut wherever the magic lies at a multiple of 4 from its start; the cut 4 bytes are not stored.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyarrow import fs

from nfs.errors import InputError

MAGIC = 0xCED7230A
MAGIC_BYTES = struct.pack("<I", MAGIC)
_HEADER = struct.Struct("<II")
_LENGTH_BITS = 29
_MAX_LENGTH = (1 << _LENGTH_BITS) - 1
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)
_READ_BYTES = 1 << 16


class RecordError(InputError):
    """A record that cannot be read.

    Attributes:
        offset: Byte offset of the record.
        resume_at: Where the search for the next record starts.
    """

    def __init__(self, path: str, offset: int, reason: str, resume_at: int):
        super().__init__(f"{path}: record at byte {offset}: {reason}")
        self.path, self.offset = path, offset
        self.resume_at, self.reason = resume_at, reason

    def __reduce__(self) -> tuple[type[RecordError], tuple[str, int, str, int]]:
        """Travel between processes with all arguments."""
        return RecordError, (self.path, self.offset, self.reason, self.resume_at)


class RecordFile:
    """Random access to the records of a `.rec` file, from any thread.

    It is opened on first use in each process.

    Args:
        path: Local path or pyarrow URI.
    """

    def __init__(self, path: str | Path):
        self.path = str(path)
        self._stream: Any = None
        self._size = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_stream": None, "_size": 0}

    @property
    def size_bytes(self) -> int:
        """Size of the file."""
        self._open()
        return self._size

    def read(self, offset: int) -> tuple[bytes, int]:
        """Return the payload of the record at `offset` and the offset behind it.

        Raises:
            RecordError: If there is no whole record.
        """
        parts: list[bytes] = []
        stream, position = self._open(), offset
        while True:
            kind, length = self._part_header(offset, position, first=not parts)
            data = stream.read_at(length, position + _HEADER.size)
            if len(data) < length:
                raise RecordError(
                    self.path, offset, f"cut off after {len(data)} of {length} bytes", self._size
                )
            parts.append(data)
            position += _HEADER.size + length + (-length) % 4
            if kind in (_WHOLE, _LAST):
                return MAGIC_BYTES.join(parts), min(position, self._size)

    def scan(self) -> Iterator[tuple[int, bytes | RecordError]]:
        """Yield (offset, payload), or the error in its place, going on at the next magic."""
        offset = 0
        while offset < self.size_bytes:
            try:
                payload, following = self.read(offset)
            except RecordError as error:
                yield offset, error
                following = self._next_magic(error.resume_at)
            else:
                yield offset, payload
            offset = following

    def _part_header(self, offset: int, position: int, *, first: bool) -> tuple[int, int]:
        stream = self._open()
        raw = stream.read_at(_HEADER.size, position)
        resume_at = max(position, offset + 4)
        if len(raw) < _HEADER.size:
            raise RecordError(self.path, offset, "cut off in a part header", self._size)
        magic, word = _HEADER.unpack(raw)
        if magic != MAGIC:
            raise RecordError(self.path, offset, f"no magic at byte {position}", resume_at)
        kind, length = word >> _LENGTH_BITS, word & _MAX_LENGTH
        expected = (_WHOLE, _FIRST) if first else (_MIDDLE, _LAST)
        if kind not in expected:
            raise RecordError(
                self.path, offset, f"part kind {kind} at byte {position}", max(position, offset + 4)
            )
        if position + _HEADER.size + length > self._size:
            raise RecordError(
                self.path, offset, f"length {length} passes the end of the file", offset + 4
            )
        return kind, length

    def _next_magic(self, position: int) -> int:
        """Return the next aligned magic that begins a record, or the end of the file."""
        stream = self._open()
        position += -position % 4
        while position < self._size:
            block = stream.read_at(_READ_BYTES, position)
            found = -1
            while True:
                found = block.find(MAGIC_BYTES, found + 1)
                if found < 0:
                    break
                word = block[found + 4 : found + 8]
                begins = len(word) == 4 and struct.unpack("<I", word)[0] >> _LENGTH_BITS <= _FIRST
                if found % 4 == 0 and begins:
                    return position + found
            position += max(4, len(block) - 4 - len(block) % 4) if len(block) > 8 else 8
        return self._size

    def _open(self) -> Any:
        if self._stream is None:
            system, path = _filesystem(self.path)
            try:
                stream = system.open_input_file(path)
            except OSError as error:
                raise InputError(f"{self.path}: cannot be read: {error}") from None
            self._size = int(stream.size())
            self._stream = stream
        return self._stream


class RecordWriter:
    """Writes `<stem>.rec` and `<stem>.idx`; a context manager. Files appear when it ends well.

    Args:
        stem: Path without suffix, local.
    """

    def __init__(self, stem: str | Path):
        self._stem = Path(stem)
        self._stem.parent.mkdir(parents=True, exist_ok=True)
        self._targets = [self._stem.with_name(self._stem.name + s) for s in (".rec", ".idx")]
        self._temporary = [t.with_name(f".{t.name}.tmp") for t in self._targets]
        self._rec = self._temporary[0].open("wb")
        self._idx = self._temporary[1].open("w", encoding="ascii", newline="\n")
        self._offset = 0

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._rec.close()
        self._idx.close()
        for temporary, target in zip(self._temporary, self._targets, strict=True):
            if kind is None:
                temporary.replace(target)
            else:
                temporary.unlink(missing_ok=True)

    def write(self, key: int, payload: bytes) -> int:
        """Append a record; return its offset."""
        offset, data = self._offset, encode_record(payload)
        self._rec.write(data)
        self._idx.write(f"{key}\t{offset}\n")
        self._offset += len(data)
        return offset

    def replace_first(self, payload: bytes) -> None:
        """Overwrite the first record; the new payload must have the old one's size."""
        self._rec.seek(0)
        self._rec.write(encode_record(payload))
        self._rec.seek(0, 2)


def encode_record(payload: bytes) -> bytes:
    """Return a payload as the bytes of a record.

    Raises:
        ValueError: If it is 512 MB or more.
    """
    if len(payload) > _MAX_LENGTH:
        raise ValueError(f"a payload of {len(payload)} bytes does not fit a record")
    cuts, whole = [], len(payload) // 4 * 4
    found = payload.find(MAGIC_BYTES)
    while found >= 0 and found + 4 <= whole:
        if found % 4 == 0:
            cuts.append(found)
        found = payload.find(MAGIC_BYTES, found + 4 if found % 4 == 0 else found + 1)
    starts, stops = [0, *(c + 4 for c in cuts)], [*cuts, len(payload)]
    out = bytearray()
    for number, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        kind = _WHOLE if not cuts else _FIRST if number == 0 else _MIDDLE
        kind = _LAST if cuts and number == len(cuts) else kind
        out += _HEADER.pack(MAGIC, kind << _LENGTH_BITS | (stop - start))
        out += payload[start:stop] + bytes(-(stop - start) % 4)
    return bytes(out)


def read_index(path: str | Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (keys, offsets) of an `.idx` file.

    Raises:
        InputError: If it is missing or not two integers a line.
    """
    system, name = _filesystem(str(path))
    try:
        with system.open_input_file(name) as stream:
            text = stream.read()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    try:
        numbers = np.fromstring(text.decode("ascii"), dtype=np.int64, sep=" ")
    except (ValueError, UnicodeDecodeError, DeprecationWarning) as error:
        raise InputError(f"{path}: not an index of key<TAB>offset lines: {error}") from None
    if len(numbers) % 2 or len(numbers) != 2 * text.count(b"\n"):
        raise InputError(f"{path}: not an index of key<TAB>offset lines")
    return numbers[0::2].copy(), numbers[1::2].copy()


def rebuild_index(path: str | Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (keys 0, 1, ..; offsets) of the readable records of a `.rec` file, by scanning it."""
    offsets = [o for o, item in RecordFile(path).scan() if isinstance(item, bytes)]
    return np.arange(len(offsets)), np.asarray(offsets, np.int64)


def _filesystem(path: str) -> tuple[fs.FileSystem, str]:
    if "://" in path:
        system, name = fs.FileSystem.from_uri(path)
        return system, name
    return fs.LocalFileSystem(), str(Path(path).absolute())
