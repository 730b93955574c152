"""Sets of photos: a folder or a zip, with labels in `dataset.json` (StyleGAN's format).

`dataset.json` is `{"labels": [[name, label], ...]}` or `{"labels": null}`; a label is an integer
class or a list of numbers (spec/stylenerf.md 2.10). Only names and labels are held in memory.
"""

from __future__ import annotations

import json
import os
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nfs.artifacts.store import Store
from nfs.artifacts.zip_archive import ZipArchive
from nfs.errors import InputError
from nfs.media.images import is_photo

DATASET_JSON = "dataset.json"
Labels = NDArray[np.int64] | NDArray[np.float32]


class PhotoSet(Protocol):
    """Encoded photos by name."""

    uri: str
    names: list[str]
    """Sorted relative paths."""

    def read(self, name: str) -> bytes:
        """Return the encoded photo.

        Raises:
            InputError: If it cannot be read; the message names it.
        """
        ...

    def label_file(self) -> bytes | None:
        """Return the content of `dataset.json`, if there is one."""
        ...


class FolderPhotos:
    """Photos in a folder and the folders below it.

    Args:
        uri: Local path or pyarrow URI.

    Raises:
        InputError: If there is no photo.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self._store = Store(uri)
        self.names = [name for name in self._store.list("", recursive=True) if is_photo(name)]
        if not self.names:
            raise InputError(f"{uri}: no photo in this folder or below it")

    def read(self, name: str) -> bytes:
        """Return the encoded photo."""
        try:
            return self._store.read_bytes(name)
        except OSError as error:
            raise InputError(f"{self.uri}/{name}: cannot be read: {error}") from None

    def label_file(self) -> bytes | None:
        """Return the content of `dataset.json`, if there is one."""
        exists = self._store.exists(DATASET_JSON)
        return self._store.read_bytes(DATASET_JSON) if exists else None


class ZipPhotos:
    """Photos in a zip.

    Args:
        uri: Local path or pyarrow URI.

    Raises:
        InputError: If it is no readable zip, or there is no photo in it.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._archive = ZipArchive(uri)
        self.names = [n for n in self._archive.names() if is_photo(n) and not _hidden(n)]
        if not self.names:
            raise InputError(f"{uri}: no photo in this zip")

    def read(self, name: str) -> bytes:
        """Return the encoded photo."""
        return self._archive.read(name)

    def checksum(self, name: str) -> str:
        """Return size and CRC-32 of a photo, as the zip's directory has them; reads nothing."""
        return self._archive.checksum(name)

    def label_file(self) -> bytes | None:
        """Return the content of `dataset.json`, if there is one."""
        exists = DATASET_JSON in self._archive
        return self._archive.read(DATASET_JSON) if exists else None


def open_photos(path: str | os.PathLike[str]) -> PhotoSet:
    """Open a `.zip` or a folder of photos."""
    text = os.fspath(path)
    return ZipPhotos(text) if text.lower().endswith(".zip") else FolderPhotos(text)


def read_labels(photos: PhotoSet) -> Labels | None:
    """Return the label of each photo: int64 `[N]` or float32 `[N, L]`; None without labels.

    Raises:
        InputError: If `dataset.json` is damaged, misses photos, or mixes kinds of labels.
    """
    data = photos.label_file()
    if data is None:
        return None
    where = f"{photos.uri}: {DATASET_JSON}"
    try:
        entries = json.loads(data)["labels"]
        if entries is None:
            return None
        known = {str(name).replace("\\", "/"): label for name, label in entries}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f'{where}: expected {{"labels": [[name, label], ...]}}: {error}') from None
    missing = [name for name in photos.names if name not in known]
    if missing:
        raise InputError(
            f"{where}: no label for {len(missing)} of {len(photos.names)} photos, e.g. {missing[0]}"
        )
    return label_array([known[name] for name in photos.names], where)


def label_array(labels: list[Any], where: str) -> Labels:
    """Return classes as int64 `[N]`, vectors as float32 `[N, L]`.

    Raises:
        InputError: If they are neither, or their lengths differ.
    """
    if all(isinstance(label, int) and not isinstance(label, bool) for label in labels):
        classes = np.asarray(labels, np.int64)
        if classes.min(initial=0) < 0:
            raise InputError(f"{where}: class {classes.min()} is negative")
        return classes
    try:
        vectors = np.asarray(labels, np.float32)
    except (ValueError, TypeError):
        vectors = np.empty(0, np.float32)
    if vectors.ndim != 2 or not np.isfinite(vectors).all():
        raise InputError(
            f"{where}: labels must all be integers, or all be lists of equally many finite numbers"
        )
    return vectors


def _hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
