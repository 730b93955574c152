"""From what the user names to units of work: files, identities, splits, parts of long videos."""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nfs.config.base import tree_hash
from nfs.config.preprocess import PreprocessConfig
from nfs.errors import ClipError, InputError
from nfs.media.images import PHOTO_SUFFIXES, is_photo
from nfs.media.video import VIDEO_SUFFIXES, probe

MEDIA_SUFFIXES = VIDEO_SUFFIXES | PHOTO_SUFFIXES
_HASH_THREADS = 4
_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Source:
    """One distinct file: its absolute path and the checksum of its content."""

    path: Path
    sha256: str


def list_files(inputs: Sequence[str]) -> list[Path]:
    """Return the absolute, sorted, distinct files that the inputs name.

    Inside folders (searched recursively) only pictures and videos by suffix count; a file that is
    named explicitly or by a glob is taken whatever its suffix.

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
            found |= _non_empty(text, (p for p in matches if p.is_file()))
        else:
            raise InputError(f"inputs: {text}: no such file or folder{_nearest_folder(path)}")
    return sorted(found)


def distinct(files: Sequence[Path]) -> tuple[list[Source], list[dict[str, str]]]:
    """Return the files with distinct content, and `{item, same_as}` for each left-out copy.

    Raises:
        InputError: If a file cannot be read.
    """
    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        digests = list(pool.map(_sha256, files))
    first: dict[str, Path] = {}
    copies = []
    for path, digest in zip(files, digests, strict=True):
        if digest in first:
            copies.append({"item": str(path), "same_as": str(first[digest])})
        else:
            first[digest] = path
    return [Source(path, digest) for digest, path in first.items()], copies


def make_items(sources: Iterable[Source], config: PreprocessConfig) -> list[dict[str, Any]]:
    """Return the units of work; a long video becomes several clips of one identity.

    The key depends on the content of the file, the part of it and the clip settings, so that a run
    over the same files continues and another setting never meets old results.
    """
    settings = tree_hash(config.clip.tree())
    items = []
    for source in sources:
        identity = _identity(source.path, config.identity_from)
        parts = _parts(source.path, config.max_clip_s)
        for index, (start_s, end_s) in enumerate(parts):
            suffix = f"-{index:03d}" if len(parts) > 1 else ""
            text = f"{source.sha256}|{settings}|{start_s}|{end_s}"
            items.append(
                {
                    "key": hashlib.sha256(text.encode()).hexdigest()[:16],
                    "path": str(source.path),
                    "clip_id": f"{_slug(source.path.stem)}-{source.sha256[:8]}{suffix}",
                    "source_uri": str(source.path),
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


def _parts(path: Path, max_clip_s: float) -> list[tuple[float, float | None]]:
    """Return (start, end) in seconds of equal parts; the whole file is [(0, None)]."""
    whole: list[tuple[float, float | None]] = [(0.0, None)]
    if is_photo(path):
        return whole
    try:
        duration_s = probe(path).duration_s
    except ClipError:
        return whole  # the unit reports what is wrong with the file
    count = round(duration_s / max_clip_s)
    if duration_s <= max_clip_s or count < 2:
        return whole
    # whole milliseconds, so that the key is readable and stable
    cuts = [round(duration_s * index / count, 3) for index in range(count)]
    return [(start, end) for start, end in zip(cuts, [*cuts[1:], None], strict=True)]


def _identity(path: Path, origin: str) -> str:
    return _slug(path.parent.name if origin == "folder" else path.stem)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "clip"


def _is_media(path: Path) -> bool:
    return path.suffix.lower() in MEDIA_SUFFIXES and path.is_file() and path.name[0] != "."


def _non_empty(text: str, paths: Iterable[Path]) -> set[Path]:
    found = {path.absolute() for path in paths}
    if not found:
        known = " ".join(sorted(MEDIA_SUFFIXES))
        raise InputError(f"inputs: {text}: no picture or video found (suffixes {known})")
    return found


def _nearest_folder(path: Path) -> str:
    parent = next((p for p in path.absolute().parents if p.is_dir()), None)
    return f"; {parent} exists, it has no {path.name}" if parent == path.absolute().parent else ""


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"inputs: {path}: cannot be read: {error.strerror}") from None
