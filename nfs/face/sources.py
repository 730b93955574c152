"""From what the user names to units of work: files, identities, splits, parts of long videos."""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from pyarrow import fs

from nfs.artifacts.photo_sets import FolderPhotos, ZipPhotos, read_labels
from nfs.config.base import tree_hash
from nfs.config.preprocess import PreprocessConfig
from nfs.errors import ClipError, InputError
from nfs.face.remote import MEDIA_SUFFIXES, RemoteFile, is_remote, open_object, shown
from nfs.media.images import is_photo
from nfs.media.video import probe

Label = int | tuple[float, ...]
_READ_THREADS = 4
_GLOB = re.compile(r"[*?\[]")
_WHOLE: tuple[float, float | None] = (0.0, None)


@dataclass(frozen=True)
class Source:
    """One distinct file or photo in a zip: where it is, and what identifies its content."""

    path: str
    """Absolute path, or the URI of an object in a store."""
    sha256: str
    """Of the content; of an object, which only workers read, of name, size and time."""
    member: str | None = None
    """Name inside the zip `path`; None: `path` is the file itself."""
    label: Label | None = None
    """Class or vector in the `dataset.json` of its zip or folder."""

    @property
    def uri(self) -> str:
        """Path of the file or name of the object, `ZIP!/NAME` in a zip."""
        place = shown(self.path)
        return place if self.member is None else f"{place}!/{self.member}"


def list_files(inputs: Sequence[str]) -> list[Path]:
    """Return the absolute, sorted, distinct files that the inputs name; see also `list_objects`.

    Inside folders (searched recursively) only pictures and videos by suffix count; a file that is
    named explicitly or by a glob is taken whatever its suffix. A zip stands for its photos.

    Raises:
        InputError: If an input does not exist, or names no file.
    """
    found: set[Path] = set()
    for text in inputs:
        if is_remote(text):
            continue
        path = _local(text)
        if path.is_file():
            found.add(path.absolute())
        elif path.is_dir():
            found |= _non_empty(text, (p for p in path.rglob("*") if _is_media(p)))
        elif _GLOB.search(text):
            matches = (Path(p) for p in glob.glob(str(path), recursive=True))
            found |= _non_empty(text, (p for p in matches if p.is_file() or p.is_symlink()))
        else:
            raise InputError(f"inputs: {text}: no such file or folder{_nearest_folder(path)}")
    return sorted(found)


def distinct(
    files: Sequence[Path],
    labels: Mapping[str, Label] | None = None,
    objects: Sequence[RemoteFile] = (),
) -> tuple[list[Source], list[dict[str, str]]]:
    """Return what has distinct content, and `{item, same_as}` for each left-out copy.

    Args:
        files: Files; zips are opened.
        labels: Classes or vectors by `Source.uri`.
        objects: Objects of stores, none of which counts as a copy; zips are opened.

    Raises:
        InputError: If a zip cannot be read.
    """
    names = [str(path) for path in files]
    plain = [path for path in names if not _is_zip(path)]
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        digests = pool.map(_sha256, plain)
        found = [Source(path, digest) for path, digest in zip(plain, digests, strict=True)]
        for path in names:
            if _is_zip(path):
                photos = ZipPhotos(path)
                digests = pool.map(partial(_member_sha256, photos), photos.names)
                members = zip(photos.names, digests, strict=True)
                found += [Source(path, digest, name) for name, digest in members]
    for obj in objects:
        found += _remote_sources(obj)
    first: dict[str, Source] = {}
    copies = []
    for source in found:
        if source.sha256 in first:
            copies.append({"item": source.uri, "same_as": first[source.sha256].uri})
        else:
            first[source.sha256] = source
    known = labels or {}
    return [replace(source, label=known.get(source.uri)) for source in first.values()], copies


def vector_labels(paths: Iterable[str]) -> dict[str, Label]:
    """Return the vectors in the `dataset.json` of the zips among files, by uri; none for classes.

    Raises:
        InputError: If a zip or its `dataset.json` cannot be read.
    """
    found: dict[str, Label] = {}
    for path in paths:
        if not _is_zip(path):
            continue
        photos = ZipPhotos(path)
        labels = read_labels(photos)
        if labels is not None and labels.ndim == 2:
            uris = [f"{shown(path)}!/{name}" for name in photos.names]
            found.update(zip(uris, map(tuple, labels.tolist()), strict=True))
    return found


def class_labels(inputs: Sequence[str]) -> dict[str, Label]:
    """Return the classes in the `dataset.json` of zips and folders among the inputs, by uri.

    Raises:
        InputError: If an input has none, or vectors instead of classes.
    """
    found: dict[str, Label] = {}
    for text in inputs:
        path = text if is_remote(text) else str(_local(text).absolute())
        is_zip = _is_zip(path)
        photos = ZipPhotos(path) if is_zip else FolderPhotos(path)
        labels = read_labels(photos)
        if labels is None or labels.ndim != 1:
            raise InputError(f"identity_from=label: {text} has no dataset.json with classes")
        place = shown(path).rstrip("/") + ("!/" if is_zip else "/")
        uris = [f"{place}{name}" for name in photos.names]
        found.update(zip(uris, labels.tolist(), strict=True))
    return found


def make_items(sources: Iterable[Source], config: PreprocessConfig) -> list[dict[str, Any]]:
    """Return the units of work; a long video becomes several clips of one identity.

    The key depends on the content of the file, the part of it, its label vector and the clip
    settings, so that a run over the same files continues and another setting never meets old
    results.
    """
    settings = tree_hash(config.clip.tree())
    known, items = list(sources), []
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        parts_of = list(pool.map(partial(_parts, config=config), known))
    for source, parts in zip(known, parts_of, strict=True):
        identity = _identity(source, config.identity_from)
        vector = list(source.label) if isinstance(source.label, tuple) else None
        for index, (start_s, end_s) in enumerate(parts):
            suffix = f"-{index:03d}" if len(parts) > 1 else ""
            text = f"{source.sha256}|{settings}|{start_s}|{end_s}"
            if vector is not None:
                text += f"|{vector}"
            items.append(
                {
                    "key": hashlib.sha256(text.encode()).hexdigest()[:16],
                    "path": source.path,
                    "member": source.member,
                    "clip_id": f"{_slug(_name(source).stem)}-{source.sha256[:8]}{suffix}",
                    "source_uri": source.uri,
                    # the worker that copies an object knows its content
                    "source_sha256": None if is_remote(source.path) else source.sha256,
                    "identity_id": identity,
                    "split": split_of(identity, config.val_fraction),
                    "start_s": start_s,
                    "end_s": end_s,
                    "label": vector,
                }
            )
    return items


def split_of(identity: str, val_fraction: float) -> str:
    """Return `train` or `val` for an identity; the same for ever, whatever else is in the set."""
    digest = hashlib.sha256(f"split|{identity}".encode()).digest()
    return "val" if int.from_bytes(digest[:8], "big") / 2**64 < val_fraction else "train"


def _parts(source: Source, config: PreprocessConfig) -> list[tuple[float, float | None]]:
    """Return (start, end) in seconds of equal parts; the whole file is [(0, None)]."""
    whole = [_WHOLE]
    if source.member is not None or is_photo(source.uri):
        return whole
    limit = config.clip.max_frame_pixels
    try:
        if is_remote(source.path):
            with open_object(source.path) as file:
                duration_s = probe(source.uri, file=file, max_pixels=limit).duration_s
        else:
            duration_s = probe(source.path, max_pixels=limit).duration_s
    except (ClipError, OSError):
        return whole  # the unit reports what is wrong with the file
    count = round(duration_s / config.max_clip_s)
    if duration_s <= config.max_clip_s or count < 2:
        return whole
    # whole milliseconds, so that the key is readable and stable
    cuts = [round(duration_s * index / count, 3) for index in range(count)]
    return [(start, end) for start, end in zip(cuts, [*cuts[1:], None], strict=True)]


def _identity(source: Source, origin: str) -> str:
    if origin == "label":
        if not isinstance(source.label, int):
            raise InputError(f"identity_from=label: {source.uri} has no class in a dataset.json")
        return f"class-{source.label:05d}"
    name = _name(source)
    if origin == "folder":
        # A photo at the top of a zip is in the "folder" of the zip's name.
        return _slug(name.parent.name or PurePosixPath(shown(source.path)).stem)
    return _slug(name.stem)


def _name(source: Source) -> PurePosixPath:
    """Return the path of a file, or its name in the zip."""
    return PurePosixPath(shown(source.path) if source.member is None else source.member)


def _remote_sources(obj: RemoteFile) -> list[Source]:
    """Return an object, or the photos of a zip told apart by the checksums of its directory."""
    if not _is_zip(obj.uri):
        return [Source(obj.uri, obj.fingerprint)]
    photos = ZipPhotos(obj.uri)
    texts = [f"{shown(obj.uri)}!/{name}|{photos.checksum(name)}" for name in photos.names]
    digests = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
    return [Source(obj.uri, d, name) for name, d in zip(photos.names, digests, strict=True)]


def _local(text: str) -> Path:
    """Return the path of a mounted file or folder, given as a path or as `file://`."""
    if text.startswith("file://"):
        return Path(fs.FileSystem.from_uri(text)[1])
    return Path(text).expanduser()


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "clip"


def _is_zip(path: str) -> bool:
    return shown(path).lower().endswith(".zip") and (is_remote(path) or Path(path).is_file())


def _is_media(path: Path) -> bool:
    """Return whether a name is that of media; a link counts even if it leads nowhere."""
    wanted = path.suffix.lower() in MEDIA_SUFFIXES and path.name[0] != "."
    return wanted and (path.is_file() or path.is_symlink())


def _non_empty(text: str, paths: Iterable[Path]) -> set[Path]:
    found = {path.absolute() for path in paths}
    if not found:
        known = " ".join(sorted(MEDIA_SUFFIXES))
        raise InputError(f"inputs: {text}: no picture or video found (suffixes {known})")
    return found


def _nearest_folder(path: Path) -> str:
    parent = next((p for p in path.absolute().parents if p.is_dir()), None)
    return f"; {parent} exists, it has no {path.name}" if parent == path.absolute().parent else ""


def _member_sha256(photos: ZipPhotos, name: str) -> str:
    return hashlib.sha256(photos.read(name)).hexdigest()


def _sha256(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:  # one unreadable file is a bad clip; the unit says what is wrong with it
        return hashlib.sha256(f"unreadable|{path}".encode()).hexdigest()
