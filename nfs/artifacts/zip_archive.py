"""Random access to the files of a zip on any pyarrow filesystem, from any thread and process.

Only the directory of the archive is held in memory. Reads carry their position with them, so
threads share one open file; each process opens its own.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from pyarrow import fs

from nfs.errors import InputError

_LOCAL_HEADER = struct.Struct("<4sHHHHHLLLHH")
_ENCRYPTED = 0x1


class _Member(NamedTuple):
    offset: int
    stored_bytes: int
    num_bytes: int
    checksum: int
    deflated: bool


class ZipArchive:
    """Stored and deflated members of a zip.

    Args:
        uri: Local path or pyarrow URI.

    Raises:
        InputError: If it is missing, no zip, or has members that cannot be read.
    """

    def __init__(self, uri: str | os.PathLike[str]) -> None:
        self.uri = os.fspath(uri)
        self._stream: Any = None
        self._process = -1
        try:
            with zipfile.ZipFile(self._open()) as archive:
                found = [info for info in archive.infolist() if not info.is_dir()]
        except (zipfile.BadZipFile, struct.error, ValueError) as error:
            raise InputError(f"{self.uri}: not a whole zip: {error}") from None
        self._members = {info.filename: self._member(info) for info in found}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stream": None, "_process": -1}

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def names(self) -> list[str]:
        """Return the sorted names of all files."""
        return sorted(self._members)

    def checksum(self, name: str) -> str:
        """Return size and CRC-32 of a file by the directory, without reading it."""
        member = self._members[name]
        return f"{member.num_bytes}-{member.checksum:08x}"

    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Raises:
            InputError: If it is not there or damaged.
        """
        member = self._members.get(name)
        if member is None:
            raise InputError(f"{self.uri}: has no {name}")
        stream = self._open()
        head = stream.read_at(_LOCAL_HEADER.size, member.offset)
        if len(head) < _LOCAL_HEADER.size or head[:4] != b"PK\x03\x04":
            raise InputError(f"{self.uri}: {name}: no header at byte {member.offset}")
        name_size, extra_size = _LOCAL_HEADER.unpack(head)[-2:]
        start = member.offset + _LOCAL_HEADER.size + name_size + extra_size
        data: bytes = stream.read_at(member.stored_bytes, start)
        if member.deflated:
            try:  # never more than the directory says
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, member.num_bytes or 1)
            except zlib.error as error:
                raise InputError(f"{self.uri}: {name}: damaged: {error}") from None
        if len(data) != member.num_bytes or zlib.crc32(data) != member.checksum:
            raise InputError(f"{self.uri}: {name}: damaged: its checksum is wrong")
        return data

    def _member(self, info: zipfile.ZipInfo) -> _Member:
        where = f"{self.uri}: {info.filename}"
        if info.flag_bits & _ENCRYPTED:
            raise InputError(f"{where} is encrypted; make the zip without a password")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(
                f"{where} has compression method {info.compress_type}; make the zip with "
                "`zip -0` (stored) or deflate"
            )
        return _Member(
            info.header_offset,
            info.compress_size,
            info.file_size,
            info.CRC,
            info.compress_type == zipfile.ZIP_DEFLATED,
        )

    def _open(self) -> Any:
        if self._process != os.getpid():
            if "://" in self.uri:
                system, path = fs.FileSystem.from_uri(self.uri)
            else:
                system, path = fs.LocalFileSystem(), str(Path(self.uri).absolute())
            try:
                self._stream = system.open_input_file(path)
            except OSError as error:
                raise InputError(f"{self.uri}: cannot be read: {error}") from None
            self._process = os.getpid()
        return self._stream
