"""Media on object stores: listed and probed by the driver, copied one at a time by the workers."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import pyarrow as pa
from pyarrow import fs

from nfs.errors import ClipError, InputError
from nfs.media.images import PHOTO_SUFFIXES
from nfs.media.video import VIDEO_SUFFIXES

MEDIA_SUFFIXES = VIDEO_SUFFIXES | PHOTO_SUFFIXES
_PART_BYTES = 4 << 20


@dataclass(frozen=True)
class RemoteFile:
    """An object of a store: the URI that opens it, and what tells its versions apart."""

    uri: str
    fingerprint: str
    """sha256 of its name, size and time of modification."""


def is_remote(path: str) -> bool:
    """Return whether a path is the URI of a store that is not a mounted file system."""
    return "://" in path and not path.startswith("file://")


def shown(uri: str) -> str:
    """Return a URI as people read it: without query and quoting; paths stay."""
    if not is_remote(uri):
        return uri
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc}{unquote(parts.path)}"


def list_objects(inputs: Sequence[str]) -> list[RemoteFile]:
    """Return the sorted, distinct objects that the URIs among the inputs name.

    Below a folder (searched to any depth) only pictures and videos by suffix count; an object that
    is named itself is taken whatever its suffix.

    Raises:
        InputError: If a store cannot be reached, or an input is not there or names no object.
    """
    found = {obj.uri: obj for text in inputs if is_remote(text) for obj in _objects(text)}
    return [found[uri] for uri in sorted(found)]


def copy_object(uri: str, target: Path) -> str:
    """Copy an object to a local file and return the sha256 of its content.

    Raises:
        ClipError: `decode_error` if there is no such object.
        OSError: If it cannot be read, for lack of rights or by a fault that may pass.
        InputError: If the disk of `target` is full.
    """
    digest = hashlib.sha256()
    try:
        with open_object(uri) as stream, target.open("wb") as file:
            while part := stream.read(_PART_BYTES):
                digest.update(part)
                file.write(part)
    except FileNotFoundError:
        raise ClipError("decode_error", f"{shown(uri)}: cannot be read: no such object") from None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise InputError(
                f"{target.parent}: no room for a copy of {shown(uri)}; let TMPDIR of the workers "
                "name a larger disk"
            ) from None
        raise OSError(f"{shown(uri)}: cannot be read: {error}") from None
    return digest.hexdigest()


@contextmanager
def open_object(uri: str) -> Iterator[Any]:
    """Open an object for reading at any place.

    Raises:
        OSError: If it cannot be opened.
    """
    system, path = _system(uri)
    with system.open_input_file(path) as stream:
        yield stream


def _objects(text: str) -> list[RemoteFile]:
    try:
        system, root = _system(text)
        info = system.get_file_info(root)
        if info.type == fs.FileType.File:
            return [_described(text, info)]
        if info.type == fs.FileType.NotFound:
            raise InputError(
                f"inputs: {text}: no such bucket, folder or object (globs are for local paths; "
                "write special characters of names as %XX)"
            )
        infos = system.get_file_info(fs.FileSelector(root, recursive=True))
    except OSError as error:
        raise InputError(f"inputs: {text}: cannot be reached: {error}") from None
    media = [info for info in infos if info.type == fs.FileType.File and _is_media(info.path)]
    if not media:
        known = " ".join(sorted(MEDIA_SUFFIXES))
        raise InputError(f"inputs: {text}: no picture or video found (suffixes {known})")
    skip = len(root.rstrip("/")) + 1
    return [_described(_below(text, info.path[skip:]), info) for info in media]


def _system(uri: str) -> tuple[fs.FileSystem, str]:
    try:
        system, path = fs.FileSystem.from_uri(uri)
    except pa.ArrowInvalid as error:
        raise InputError(f"inputs: {uri}: no storage that pyarrow knows: {error}") from None
    return system, path


def _described(uri: str, info: fs.FileInfo) -> RemoteFile:
    text = f"{shown(uri)}|{info.size}|{info.mtime_ns}"
    return RemoteFile(uri, hashlib.sha256(text.encode()).hexdigest())


def _below(folder: str, name: str) -> str:
    parts = urlsplit(folder)
    path = f"{parts.path.rstrip('/')}/{quote(name)}"
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def _is_media(path: str) -> bool:
    name = PurePosixPath(path)
    return name.suffix.lower() in MEDIA_SUFFIXES and name.name[0] != "."
