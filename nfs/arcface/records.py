"""Face records: labels and JPEG inside RecordIO payloads, in the two layouts in use (spec 2.10)."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nfs.arcface.recordio import RecordError, RecordFile, RecordWriter, read_index, rebuild_index
from nfs.errors import InputError

_HEADER = struct.Struct("<IfQQ")
# A float32 holds integers exactly up to here.
MAX_LABEL = 1 << 24


@dataclass(frozen=True)
class FaceRecord:
    """Content of a payload: labels (the first is the class), ids, encoded image."""

    labels: tuple[float, ...]
    image: bytes
    id: int = 0
    id2: int = 0
    flag: int = 0

    @property
    def class_number(self) -> int:
        """The class."""
        return int(self.labels[0])


def decode_face(payload: bytes) -> FaceRecord:
    """Parse a payload.

    Raises:
        InputError: If it is shorter than its header and labels.
    """
    if len(payload) < _HEADER.size:
        raise InputError(f"a payload of {len(payload)} bytes has no image header")
    flag, label, first, second = _HEADER.unpack_from(payload)
    end = _HEADER.size + 4 * flag
    if len(payload) < end:
        raise InputError(f"a payload of {len(payload)} bytes cannot hold {flag} labels")
    labels = struct.unpack_from(f"<{flag}f", payload, _HEADER.size) if flag else (label,)
    return FaceRecord(labels, payload[end:], first, second, flag)


def encode_face(
    labels: float | Sequence[float], image: bytes, *, id: int = 0, id2: int = 0
) -> bytes:
    """Return a payload; a single number is stored in the header, a sequence behind it."""
    if isinstance(labels, int | float):
        return _HEADER.pack(0, labels, id, id2) + image
    body = struct.pack(f"<{len(labels)}f", *labels)
    return _HEADER.pack(len(labels), 0.0, id, id2) + body + image


class FaceRecords:
    """Images of a `.rec` file with their classes.

    Two layouts: InsightFace's, whose record 0 has two labels and no image and tells the range of
    image keys; and im2rec's, where every record is an image.

    Args:
        path: `.rec` file, local or a pyarrow URI; the `.idx` beside it is used when given.
        index: `.idx` file; None: beside the `.rec` file.
    """

    def __init__(self, path: str | Path, index: str | Path | None = None):
        self.file = RecordFile(path)
        name = str(path)
        if not name.endswith(".rec"):
            raise InputError(f"{name}: expected a .rec file")
        self.keys, self.offsets = read_index(index or name.removesuffix(".rec") + ".idx")
        if not len(self.keys):
            raise InputError(f"{name}: the index is empty")
        self.num_identities: int | None = None
        self._select_images()

    def __len__(self) -> int:
        return len(self.image_rows)

    def read(self, number: int) -> FaceRecord:
        """Return image `number`.

        Raises:
            RecordError: If the record is damaged.
        """
        offset = int(self.offsets[self.image_rows[number]])
        payload, following = self.file.read(offset)
        try:
            record = decode_face(payload)
        except InputError as error:
            raise RecordError(self.file.path, offset, str(error), following) from None
        if not record.image:
            raise RecordError(self.file.path, offset, "holds no image", following)
        return record

    def identity_ranges(self) -> NDArray[np.int64] | None:
        """Return image keys `[ids, 2]` (first, last) per identity, or None without such records."""
        if self.num_identities is None:
            return None
        start = int(self._bounds[0])
        rows = np.flatnonzero((self.keys >= start) & (self.keys < self._bounds[1]))
        ranges = [decode_face(self.file.read(int(self.offsets[r]))[0]).labels for r in rows]
        return np.asarray(ranges, np.int64).reshape(-1, 2)

    def _select_images(self) -> None:
        zero = np.flatnonzero(self.keys == 0)
        head = None
        if len(zero):
            head = decode_face(self.file.read(int(self.offsets[zero[0]]))[0])
        # A header-less file may begin with an image of several labels: only an empty body counts.
        if head is not None and head.flag > 0 and not head.image:
            self._bounds = np.asarray(head.labels[:2], np.int64)
            self.num_identities = int(self._bounds[1] - self._bounds[0])
            keep = (self.keys >= 1) & (self.keys < self._bounds[0])
            self.image_rows = np.flatnonzero(keep)
        else:
            self.image_rows = np.arange(len(self.keys))


def write_face_records(
    stem: str | Path, images: Iterable[tuple[int, bytes]], *, with_identities: bool = True
) -> int:
    """Write images as `<stem>.rec` and `<stem>.idx` in InsightFace's layout; return their count.

    Args:
        stem: Path without suffix.
        images: (class, JPEG) sorted by class, classes 0, 1, .. without gaps.
        with_identities: Also write the records that hold each identity's range of keys.

    Raises:
        InputError: If classes are not sorted, have gaps or are too many for float32 labels.
    """
    # Record 0 holds counts that are known at the end: sizes of labels are fixed, so it is patched.
    ranges: list[list[int]] = []
    with RecordWriter(stem) as writer:
        writer.write(0, encode_face((0.0, 0.0), b""))
        count = 0
        for label, image in images:
            _check_order(label, len(ranges))
            count += 1
            if label == len(ranges):
                ranges.append([count, count])
            ranges[label][1] = count + 1
            writer.write(count, encode_face(float(label), image, id=count))
        bounds = (float(count + 1), float(count + 1 + len(ranges)))
        if with_identities:
            for number, (first, last) in enumerate(ranges):
                key = count + 1 + number
                writer.write(key, encode_face((float(first), float(last)), b"", id=key))
        writer.replace_first(encode_face(bounds, b""))
    return count


def check_records(path: str | Path, *, num_classes: int | None = None) -> dict[str, object]:
    """Read every image and report what is wrong.

    Returns:
        `images`, `classes`, `smallest_class`, `largest_class` (images per class), `empty_classes`,
        `duplicates` (same bytes), `problems`: texts with byte offsets.
    """
    import hashlib

    from nfs.media.images import decode_jpeg

    records = FaceRecords(path)
    problems: list[str] = []
    histogram: dict[int, int] = {}
    seen: dict[bytes, int] = {}
    duplicates = 0
    for number in range(len(records)):
        offset = int(records.offsets[records.image_rows[number]])
        try:
            record = records.read(number)
            pixels = decode_jpeg(record.image)
        except (InputError, ValueError) as error:
            problems.append(f"byte {offset}: {error}")
            continue
        label = record.labels[0]
        if label != int(label) or label < 0 or (num_classes is not None and label >= num_classes):
            problems.append(f"byte {offset}: label {label} is out of range")
            continue
        if pixels.shape != (112, 112, 3):
            problems.append(f"byte {offset}: image is {pixels.shape[1]} x {pixels.shape[0]} px")
        histogram[int(label)] = histogram.get(int(label), 0) + 1
        digest = hashlib.blake2b(record.image, digest_size=12).digest()
        duplicates += digest in seen
        seen[digest] = number
    classes = num_classes or (max(histogram, default=-1) + 1)
    return {
        "images": len(records),
        "classes": classes,
        "empty_classes": classes - len(histogram),
        "smallest_class": min(histogram.values(), default=0),
        "largest_class": max(histogram.values(), default=0),
        "duplicates": duplicates,
        "problems": problems,
    }


def repair_index(path: str | Path) -> int:
    """Write the `.idx` of a `.rec` file anew by scanning it; return the number of records."""
    keys, offsets = rebuild_index(path)
    target = Path(str(path).removesuffix(".rec") + ".idx")
    temporary = target.with_name(f".{target.name}.tmp")
    lines = "".join(f"{k}\t{o}\n" for k, o in zip(keys.tolist(), offsets.tolist(), strict=True))
    temporary.write_text(lines, encoding="ascii")
    temporary.replace(target)
    return len(keys)


def _check_order(label: int, known: int) -> None:
    if not max(0, known - 1) <= label <= known:
        raise InputError(
            f"class {label} follows class {known - 1}: sort images, number without gaps"
        )
    if label >= MAX_LABEL:
        raise InputError(f"class {label} is not exact as a float32 label")
