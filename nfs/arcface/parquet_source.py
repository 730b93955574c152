"""Face images in parquet shards: a column of encoded pictures and one of identities."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nfs.artifacts.image_shards import ImageShards, class_numbers
from nfs.errors import InputError
from nfs.media.images import decode_jpeg


class ParquetSource:
    """Rows of a parquet file, or of all parquet files in a folder.

    Integers of the label column are the classes; texts are numbered in sorted order. Labels and
    the row groups' places are held in memory (16 bytes an image), pictures are not.

    Args:
        path: Local path or pyarrow URI of the file or folder.
        image_column: Encoded pictures: binary, or a struct with a field `bytes`.
        label_column: Identities.
        num_classes: Classes; None: what the labels say.
        cache_row_groups: Row groups kept in memory.
    """

    def __init__(
        self,
        path: str,
        *,
        image_column: str = "image",
        label_column: str = "label",
        num_classes: int | None = None,
        cache_row_groups: int = 64,
    ) -> None:
        self._shards = ImageShards(path, image_column=image_column, keep=cache_row_groups)
        where = f"{path}: column {label_column!r}"
        self.labels, found = class_numbers(self._shards.column(label_column), where)
        if num_classes is not None and num_classes < found:
            raise InputError(
                f"{where}: class {found - 1} does not fit data.num_classes={num_classes}"
            )
        self.num_classes = num_classes or found

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._shards)

    def read(self, number: int) -> tuple[NDArray[np.uint8], int]:
        """Return image `[H, W, 3]` and class."""
        try:
            pixels = decode_jpeg(self.encoded(number))
        except ValueError as error:
            where = f"{self._shards.uri}: {self._shards.name(number)}"
            raise InputError(f"{where}: {error}") from None
        return pixels, int(self.labels[number])

    def encoded(self, number: int) -> bytes:
        """Return an image as it is stored."""
        return self._shards.read(number)

    def classes(self) -> NDArray[np.int64]:
        """Return the class of every image."""
        return self.labels
