"""From what the user names to units of work: files, identities, splits, parts of long videos."""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from nfs.artifacts.photo_sets import FolderPhotos, ZipPhotos, read_labels
from nfs.config.base import tree_hash
from nfs.config.preprocess import PreprocessConfig
from nfs.errors import ClipError, InputError
from nfs.media.images import PHOTO_SUFFIXES, is_photo
from nfs.media.video import VIDEO_SUFFIXES, probe

MEDIA_SUFFIXES = VIDEO_SUFFIXES | PHOTO_SUFFIXES
_HASH_THREADS = 4
_GLOB = re.compile(r"[*?\[]")
_WHOLE: tuple[float, float | None] = (0.0, None)


@dataclass(frozen=True)
class Source:
    """One distinct file or photo in a zip: where it is, and the checksum of its content."""

    path: Path
    sha256: str
    member: str | None = None
    """Name inside the zip `path`; None: `path` is the file itself."""
    label: int | None = None
    """Class in the `dataset.json` of its zip or folder."""

    @property
    def uri(self) -> str:
        """Path of the file, `ZIP!/NAME` in a zip."""
        return str(self.path) if self.member is None else f"{self.path}!/{self.member}"


def list_files(inputs: Sequence[str]) -> list[Path]:
    """Return the absolute, sorted, distinct files that the inputs name.

    Inside folders (searched recursively) only pictures and videos by suffix count; a file that is
    named explicitly or by a glob is taken whatever its suffix. A zip stands for its photos.

    Raises:
        InputError: If an input does not exist, or names no file.
    """
    found: set[Path] = set()
    for text in inputs:
        path = Path(text).expanduser()
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
    files: Sequence[Path], labels: Mapping[str, int] | None = None
) -> tuple[list[Source], list[dict[str, str]]]:
    """Return what has distinct content, and `{item, same_as}` for each left-out copy.

    Args:
        files: Files; zips are opened.
        labels: Classes by `Source.uri`.

    Raises:
        InputError: If a zip cannot be read.
    """
    plain = [path for path in files if not _is_zip(path)]
    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        found = [Source(path, s) for path, s in zip(plain, pool.map(_sha256, plain), strict=True)]
        for path in files:
            if _is_zip(path):
                photos = ZipPhotos(str(path))
                digests = pool.map(partial(_member_sha256, photos), photos.names)
                names = zip(photos.names, digests, strict=True)
                found += [Source(path, digest, name) for name, digest in names]
    first: dict[str, Source] = {}
    copies = []
    for source in found:
        if source.sha256 in first:
            copies.append({"item": source.uri, "same_as": first[source.sha256].uri})
        else:
            first[source.sha256] = source
    known = labels or {}
    return [replace(source, label=known.get(source.uri)) for source in first.values()], copies


def class_labels(inputs: Sequence[str]) -> dict[str, int]:
    """Return the classes in the `dataset.json` of zips and folders among the inputs, by uri.

    Raises:
        InputError: If an input has none, or vectors instead of classes.
    """
    found: dict[str, int] = {}
    for text in inputs:
        path = Path(text).expanduser().absolute()
        photos = ZipPhotos(str(path)) if _is_zip(path) else FolderPhotos(str(path))
        labels = read_labels(photos)
        if labels is None or labels.ndim != 1:
            raise InputError(f"identity_from=label: {text} has no dataset.json with classes")
        separator = "!/" if _is_zip(path) else "/"
        uris = [f"{path}{separator}{name}" for name in photos.names]
        found.update(zip(uris, labels.tolist(), strict=True))
    return found


def make_items(sources: Iterable[Source], config: PreprocessConfig) -> list[dict[str, Any]]:
    """Return the units of work; a long video becomes several clips of one identity.

    The key depends on the content of the file, the part of it and the clip settings, so that a run
    over the same files continues and another setting never meets old results.
    """
    settings = tree_hash(config.clip.tree())
    items = []
    for source in sources:
        name = source.path if source.member is None else Path(source.member)
        identity = _identity(source, config.identity_from)
        parts = _parts(source.path, config) if source.member is None else [_WHOLE]
        for index, (start_s, end_s) in enumerate(parts):
            suffix = f"-{index:03d}" if len(parts) > 1 else ""
            text = f"{source.sha256}|{settings}|{start_s}|{end_s}"
            items.append(
                {
                    "key": hashlib.sha256(text.encode()).hexdigest()[:16],
                    "path": str(source.path),
                    "member": source.member,
                    "clip_id": f"{_slug(name.stem)}-{source.sha256[:8]}{suffix}",
                    "source_uri": source.uri,
                    "source_sha256": source.sha256,
                    "identity_id": identity,
                    "split": split_of(identity, config.val_fraction),
                    "start_s": start_s,
                    "end_s": end_s,
                }
            )
    return items


def split_of(identity: str, val_fraction: float) -> str:
    """Return `train` or `val` for an identity; the same for ever, whatever else is in the set."""
    digest = hashlib.sha256(f"split|{identity}".encode()).digest()
    return "val" if int.from_bytes(digest[:8], "big") / 2**64 < val_fraction else "train"


def _parts(path: Path, config: PreprocessConfig) -> list[tuple[float, float | None]]:
    """Return (start, end) in seconds of equal parts; the whole file is [(0, None)]."""
    whole = [_WHOLE]
    if is_photo(path):
        return whole
    try:
        duration_s = probe(path, max_pixels=config.clip.max_frame_pixels).duration_s
    except ClipError:
        return whole  # the unit reports what is wrong with the file
    count = round(duration_s / config.max_clip_s)
    if duration_s <= config.max_clip_s or count < 2:
        return whole
    # whole milliseconds, so that the key is readable and stable
    cuts = [round(duration_s * index / count, 3) for index in range(count)]
    return [(start, end) for start, end in zip(cuts, [*cuts[1:], None], strict=True)]


def _identity(source: Source, origin: str) -> str:
    if origin == "label":
        if source.label is None:
            raise InputError(f"identity_from=label: {source.uri} has no class in a dataset.json")
        return f"class-{source.label:05d}"
    path = source.path if source.member is None else Path(source.member)
    if origin == "folder":
        # A photo at the top of a zip is in the "folder" of the zip's name.
        return _slug(path.parent.name or source.path.stem)
    return _slug(path.stem)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "clip"


def _is_zip(path: Path) -> bool:
    return path.suffix.lower() == ".zip" and path.is_file()


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


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:  # one unreadable file is a bad clip; the unit says what is wrong with it
        return hashlib.sha256(f"unreadable|{path}".encode()).hexdigest()
