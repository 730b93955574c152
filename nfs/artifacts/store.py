"""Files below one root on any pyarrow filesystem, written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from nfs.errors import ArtifactError, InputError

_PART_BYTES = 4 << 20


class Store:
    """A directory on local disk, NFS or an object store.

    Relative paths use `/`. A write is complete when it returns: local files are written under a
    temporary name, synced and renamed; an object of an object store appears when its upload ends,
    so nothing is renamed there.

    Args:
        uri: Local path or a URI that pyarrow understands (`s3://bucket/folder`).

    Raises:
        InputError: If the URI is of another kind; by any method, if the store cannot be reached.
    """

    def __init__(self, uri: str | os.PathLike[str]):
        text = os.fspath(uri)
        self.uri = text
        if "://" in text:
            try:
                self._fs, self._root = fs.FileSystem.from_uri(text)
            except pa.ArrowInvalid as error:
                raise InputError(f"{text}: no storage that pyarrow knows: {error}") from None
        else:
            self._fs, self._root = fs.LocalFileSystem(), str(Path(text).absolute())
        self._local = isinstance(self._fs, fs.LocalFileSystem)

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"

    def exists(self, path: str) -> bool:
        """Return whether a file (not a directory) exists."""
        return bool(self._info(path).type == fs.FileType.File)

    def size_bytes(self, path: str) -> int:
        """Return the size of a file; 0 when absent."""
        return int(self._info(path).size or 0)

    def read_bytes(self, path: str) -> bytes:
        """Return a file's content.

        Raises:
            ArtifactError: If the file is missing.
        """
        try:
            with self._fs.open_input_file(self._path(path)) as stream:
                return cast(bytes, stream.read())
        except FileNotFoundError:
            raise ArtifactError(f"{self.uri}: {path} is missing") from None

    def write_bytes(self, path: str, data: bytes) -> None:
        """Write a file atomically.

        Raises:
            InputError: If the place cannot be written (permissions, full disk).
        """
        target = self._path(path)
        try:
            if self._local:
                with _renamed(Path(target)) as stream:
                    stream.write(data)
            else:
                with self._fs.open_output_stream(target) as stream:
                    stream.write(data)
        except OSError as error:
            raise _cannot_write(target, error) from error

    def sha256(self, path: str) -> str:
        """Return the checksum of a file's content, a few megabytes in memory at a time.

        Raises:
            ArtifactError: If the file is missing.
        """
        digest = hashlib.sha256()
        with self.open_input(path) as stream:
            while part := stream.read(_PART_BYTES):
                digest.update(part)
        return digest.hexdigest()

    @contextmanager
    def open_output(self, path: str) -> Iterator[Any]:
        """Open a file for writing in parts; it appears when the block ends without an error.

        On an object store a failed block may leave a torn object: name nothing in a manifest before
        its block has ended.

        Raises:
            InputError: If the place cannot be written (permissions, full disk).
        """
        target = self._path(path)
        try:
            if self._local:
                with _renamed(Path(target)) as stream:
                    yield stream
            else:
                with self._fs.open_output_stream(target) as stream:
                    yield stream
        except OSError as error:
            raise _cannot_write(target, error) from error

    @contextmanager
    def open_input(self, path: str) -> Iterator[Any]:
        """Open a file for reading in parts.

        Raises:
            ArtifactError: If the file is missing.
        """
        try:
            stream = self._fs.open_input_stream(self._path(path))
        except FileNotFoundError:
            raise ArtifactError(f"{self.uri}: {path} is missing") from None
        with stream:
            yield stream

    def write_table(self, path: str, table: pa.Table, row_group_size: int = 32) -> None:
        """Write one parquet file atomically."""
        buffer = pa.BufferOutputStream()
        pq.write_table(table, buffer, row_group_size=row_group_size, compression="zstd")
        self.write_bytes(path, buffer.getvalue().to_pybytes())

    @contextmanager
    def open_parquet(self, path: str) -> Iterator[pq.ParquetFile]:
        """Open a parquet file for reading by row group."""
        if not self.exists(path):
            raise ArtifactError(f"{self.uri}: {path} is missing")
        with (
            self._fs.open_input_file(self._path(path)) as stream,
            pq.ParquetFile(stream) as parquet,
        ):
            yield parquet

    def list(self, folder: str = "", *, recursive: bool = False) -> list[str]:
        """Return sorted relative paths of the files in a folder; empty when it is absent."""
        selector = fs.FileSelector(self._path(folder), allow_not_found=True, recursive=recursive)
        skip = len(self._root.rstrip("/")) + 1
        infos = self._info_of(selector)
        names = [i.path[skip:] for i in infos if i.type == fs.FileType.File]
        return sorted(n for n in names if not n.rsplit("/", 1)[-1].startswith("."))

    def delete(self, path: str) -> None:
        """Delete a file inside this store; absent is fine."""
        if self.exists(path):
            self._fs.delete_file(self._path(path))

    def list_folders(self) -> tuple[str, ...]:
        """Return the sorted names of the folders at the top; empty when there is nothing."""
        selector = fs.FileSelector(self._path(""), allow_not_found=True)
        infos = self._info_of(selector)
        return tuple(sorted(i.base_name for i in infos if i.type == fs.FileType.Directory))

    def delete_folder(self, path: str) -> None:
        """Delete a folder inside this store with all that is in it; absent is fine."""
        if not path:
            raise ValueError(f"{self.uri}: the store itself is never deleted")
        with suppress(FileNotFoundError):
            self._fs.delete_dir(self._path(path))

    def delete_partial(self, min_age_s: float = 3600.0) -> None:
        """Delete temporary files that killed writers left; younger ones may still be written.

        On an object store there are none; let a lifecycle rule end unfinished uploads there.
        """
        if not self._local:
            return
        for file in Path(self._root).rglob(".*.tmp"):
            with suppress(FileNotFoundError):
                if time.time() - file.stat().st_mtime > min_age_s:
                    file.unlink()

    def local_path(self, path: str = "") -> Path:
        """Return the path on local disk.

        Raises:
            InputError: If the store is remote.
        """
        if not self._local:
            raise InputError(f"{self.uri}: this step needs a local or mounted path")
        return Path(self._path(path))

    def _info(self, path: str) -> fs.FileInfo:
        return self._info_of(self._path(path))

    def _info_of(self, what: Any) -> Any:
        try:
            return self._fs.get_file_info(what)
        except OSError as error:
            raise InputError(f"{self.uri}: cannot be reached: {error}") from None

    def _path(self, path: str) -> str:
        if path.startswith("/") or ".." in path.split("/"):
            raise ValueError(f"path {path!r} leaves the store {self.uri!r}")
        return f"{self._root}/{path}" if path else self._root


@contextmanager
def _renamed(target: Path) -> Iterator[BinaryIO]:
    target.parent.mkdir(parents=True, exist_ok=True)
    # A unique name: a late twin of a killed worker cannot corrupt the file.
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _cannot_write(target: str, error: OSError) -> InputError:
    return InputError(
        f"{target}: cannot be written ({error.strerror or error}); "
        "choose another `storage` or make room"
    )
