"""Encoded training images by number, with labels: what all sources have in common."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nfs.artifacts.image_shards import ImageShards
from nfs.artifacts.photo_sets import Labels, PhotoSet, read_labels
from nfs.artifacts.store import Store
from nfs.errors import InputError


class ImageSource(Protocol):
    """Encoded images by number; all methods work from any thread and after pickling."""

    uri: str

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def name(self, number: int) -> str:
        """Return what a message and a list of exclusions call an image."""
        ...

    def read(self, number: int) -> bytes:
        """Return an encoded image.

        Raises:
            InputError: If it cannot be read; the message names it.
        """
        ...

    def labels(self) -> Labels | None:
        """Return classes int64 `[N]` or vectors float32 `[N, L]`; None: there are no labels."""
        ...


class PhotoImages:
    """Photos of a folder or a zip.

    Args:
        photos: Open set.
    """

    def __init__(self, photos: PhotoSet) -> None:
        self.uri = photos.uri
        self._photos = photos

    def __len__(self) -> int:
        """Return the number of photos."""
        return len(self._photos.names)

    def name(self, number: int) -> str:
        """Return the path within the set."""
        return self._photos.names[number]

    def read(self, number: int) -> bytes:
        """Return an encoded photo."""
        return self._photos.read(self._photos.names[number])

    def labels(self) -> Labels | None:
        """Return the labels of `dataset.json`."""
        return read_labels(self._photos)


class ShardImages:
    """Rows of parquet files.

    Args:
        shards: Open files.
        label_column: Column of labels.
    """

    def __init__(self, shards: ImageShards, label_column: str) -> None:
        self.uri = shards.uri
        self._shards, self._label_column = shards, label_column

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._shards)

    def name(self, number: int) -> str:
        """Return file and row."""
        return self._shards.name(number)

    def read(self, number: int) -> bytes:
        """Return an encoded image."""
        return self._shards.read(number)

    def labels(self) -> Labels | None:
        """Return the label column."""
        return self._shards.labels(self._label_column)


def choose(
    source: ImageSource, *, exclude: str | None, max_images: int | None, seed: int
) -> NDArray[np.int64]:
    """Return the numbers of the images to use, ascending.

    Args:
        source: Images.
        exclude: File whose lines name images to leave out; what follows a tab is a remark.
        max_images: Size of a random subset; None keeps all.
        seed: Seed of the subset.

    Raises:
        InputError: If nothing is left, or an excluded name is unknown.
    """
    numbers = np.arange(len(source))
    if exclude is not None:
        folder, _, file = exclude.rpartition("/")
        lines = Store(folder or ".").read_bytes(file).decode().splitlines()
        names = {line.split("\t")[0] for line in lines if line.strip()}
        keep = np.asarray([source.name(int(i)) not in names for i in numbers])
        numbers = numbers[keep]
        found = len(keep) - len(numbers)
        if found != len(names):
            raise InputError(
                f"{exclude}: names {len(names)} images, only {found} of them are in {source.uri}"
            )
    if max_images is not None and max_images < len(numbers):
        # The legacy generator, so that a subset is the one that the original program takes.
        np.random.RandomState(seed % 2**32).shuffle(numbers)
        numbers = np.sort(numbers[:max_images])
    if not len(numbers):
        raise InputError(f"{source.uri}: no image is left to train on")
    return numbers
