"""Turning face sources into records and verification sets, and checking them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nfs.arcface.datasets import ALIGNED_PX, FaceSource, open_source
from nfs.arcface.pair_files import draw_pairs, write_pairs
from nfs.arcface.records import check_records, write_face_records
from nfs.errors import InputError
from nfs.media.images import encode_jpeg


def check_source(path: str, num_classes: int | None = None) -> dict[str, object]:
    """Read every image of a source and report counts and problems, as `check_records` does."""
    source = open_source(path)
    records = getattr(source, "records", None)
    if records is not None:
        return check_records(records.file.path, num_classes=num_classes)
    problems = []
    for number in range(len(source)):
        try:
            pixels, _ = source.read(number)
        except InputError as error:
            problems.append(str(error))
            continue
        if pixels.shape != (ALIGNED_PX, ALIGNED_PX, 3):
            problems.append(f"image {number} is {pixels.shape[1]} x {pixels.shape[0]} px")
    counts = np.bincount(source.classes(), minlength=num_classes or source.num_classes)
    return {
        "images": len(source),
        "classes": len(counts),
        "empty_classes": int((counts == 0).sum()),
        "smallest_class": int(counts[counts > 0].min()),
        "largest_class": int(counts.max()),
        "problems": problems,
    }


def convert_to_records(path: str, stem: str | Path, *, skip_bad: bool = False) -> tuple[int, int]:
    """Write a source as `<stem>.rec` and `.idx`, sorted by class, empty classes closed up.

    Args:
        path: Anything `open_source` opens.
        stem: Target without suffix.
        skip_bad: Leave out images that cannot be read instead of stopping.

    Returns:
        Images written and images left out.

    Raises:
        InputError: If an image cannot be read or is not 112 px, without `skip_bad`.
    """
    source = open_source(path)
    skipped = 0

    def images() -> Iterator[tuple[int, bytes]]:
        nonlocal skipped
        last, target = -1, -1
        for number, label in _sorted(source):
            try:
                data = _aligned_jpeg(source, number)
            except InputError:
                if not skip_bad:
                    raise
                skipped += 1
                continue
            target, last = target + (label != last), label
            yield target, data

    count = write_face_records(stem, images())
    return count, skipped


def make_pairs(path: str, target: str | Path, *, num_pairs: int = 6000, seed: int = 0) -> int:
    """Write a verification set of random pairs of a source, half of one person.

    Images of one person come from different clips where there are several (see `draw_pairs`).

    Raises:
        InputError: If there are not two identities, one of them with two images.
    """
    source = open_source(path)
    by_class: dict[int, list[int]] = {}
    for number, label in _sorted(source):
        by_class.setdefault(label, []).append(number)
    # Other sources hold photos: every image is a recording of its own.
    recordings = getattr(source, "recordings", np.arange(len(source)))
    identities = list(by_class.values())
    rng = np.random.default_rng(seed)
    try:
        chosen, same = draw_pairs([recordings[n].tolist() for n in identities], num_pairs, rng)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    images = [_aligned_jpeg(source, identities[identity][image]) for identity, image in chosen]
    write_pairs(target, images, same)
    return len(same)


def _sorted(source: FaceSource) -> Iterator[tuple[int, int]]:
    """Yield (image, class), by class."""
    classes: NDArray[np.int64] = source.classes()
    for number in np.argsort(classes, kind="stable").tolist():
        yield number, int(classes[number])


def _aligned_jpeg(source: FaceSource, number: int) -> bytes:
    pixels, _ = source.read(number)
    if pixels.shape != (ALIGNED_PX, ALIGNED_PX, 3):
        raise InputError(
            f"image {number} is {pixels.shape[1]} x {pixels.shape[0]} px; align it with "
            "jobs.preprocess first"
        )
    raw = getattr(source, "encoded", None)
    data: bytes = encode_jpeg(pixels) if raw is None else raw(number)
    return data
