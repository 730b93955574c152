"""Images of any source as training items: decoded, square, resized, mirrored, labelled."""

import copy
import hashlib
from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nfs.artifacts.photo_sets import Labels
from nfs.errors import InputError
from nfs.media.images import decode_jpeg
from nfs.stylenerf.image_sources import ImageSource
from nfs.stylenerf.warm_start import LinearEncoder

_FILTERS = {"lanczos": Image.Resampling.LANCZOS, "area": Image.Resampling.BOX}


class TrainingImages:
    """A `MapDataset` of square images; only numbers and labels are held in memory.

    Args:
        source: Encoded images.
        resolution: R, pixels per side.
        mirror: Flip half of the images.
        numbers: Images of the source to use `[M]`; None uses all.
        labels: Of the used images: int64 `[M]` (become one-hot) or float32 `[M, L]`.
        center_crop: Cut the middle out of images that are not square instead of refusing them.
        resize: Filter for other sizes; `area` averages the covered pixels.
    """

    encoder: LinearEncoder | None = None
    """Adds a `code` to every item."""
    angles: NDArray[np.float32] | None = None
    """`[M, 2]`: adds the `yaw_pitch` of its camera to every item."""
    num_without_fit = 0
    """Images left out because they had no camera."""

    def __init__(
        self,
        source: ImageSource,
        *,
        resolution: int,
        mirror: bool = True,
        numbers: NDArray[np.int64] | None = None,
        labels: Labels | None = None,
        center_crop: bool = False,
        resize: Literal["lanczos", "area"] = "lanczos",
    ) -> None:
        self.source, self.resolution, self.mirror = source, resolution, mirror
        self.numbers = np.arange(len(source)) if numbers is None else numbers
        self.labels, self.center_crop, self.resize = labels, center_crop, resize
        self.label_dim = 0 if labels is None else label_dim(labels)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.numbers)

    def only(self, chosen: NDArray[np.int64]) -> "TrainingImages":
        """Return the images of these indices; label vectors keep their length."""
        some = copy.copy(self)
        some.numbers = self.numbers[chosen]
        some.labels = None if self.labels is None else self.labels[chosen]
        some.angles = None if self.angles is None else self.angles[chosen]
        return some

    def get(self, index: int, rng: np.random.Generator) -> dict[str, NDArray[np.generic]]:
        """Return `image` uint8 `[3, R, R]`, and where set up `label`, `code` and `yaw_pitch`.

        `label` is float32 `[label_dim]`, `code` `[z_dim]`, `yaw_pitch` `[2]`. The flip is drawn
        from `rng`; a mirrored head is seen from the mirrored yaw, labels stay as they are.
        """
        pixels = self.pixels(index)
        mirrored = self.mirror and rng.random() < 0.5
        if mirrored:
            pixels = np.ascontiguousarray(pixels[:, ::-1])
        item: dict[str, NDArray[np.generic]] = {
            "image": np.ascontiguousarray(pixels.transpose(2, 0, 1))
        }
        if self.labels is not None:
            item["label"] = self.label(index)
        if self.encoder is not None:
            item["code"] = self.encoder.encode(pixels, rng)
        if self.angles is not None:
            yaw, pitch = self.angles[index]
            item["yaw_pitch"] = np.asarray([-yaw if mirrored else yaw, pitch], np.float32)
        return item

    def fingerprint(self) -> str:
        """Return a text that tells this set of images from others: names and a few contents."""
        digest = hashlib.sha256()
        for number in self.numbers:
            digest.update(self.source.name(int(number)).encode() + b"\0")
        for index in np.linspace(0, len(self) - 1, min(16, len(self))).round().astype(int):
            digest.update(self.source.read(int(self.numbers[index])))
        return f"{len(self)} images {digest.hexdigest()[:16]}"

    def label(self, index: int) -> NDArray[np.float32]:
        """Return the label float32 `[label_dim]`; a class is one-hot."""
        assert self.labels is not None
        if self.labels.ndim == 2:
            return self.labels[index].astype(np.float32)
        vector = np.zeros(self.label_dim, np.float32)
        vector[int(self.labels[index])] = 1
        return vector

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """Return an image, not mirrored: uint8 `[R, R, 3]`.

        Raises:
            InputError: If it is damaged or not square; the message names it.
        """
        number = int(self.numbers[index])
        picture = decode(self.source, number, center_crop=self.center_crop)
        size = (self.resolution, self.resolution)
        if picture.shape[:2] == size:
            return picture
        return np.asarray(Image.fromarray(picture).resize(size, _FILTERS[self.resize]))


def decode(source: ImageSource, number: int, *, center_crop: bool = False) -> NDArray[np.uint8]:
    """Return an image as stored: uint8 RGB `[S, S, 3]`; grey, 16-bit and transparent ones too.

    Raises:
        InputError: If it is damaged or, without `center_crop`, not square; the message names it.
    """
    where = f"{source.uri}: {source.name(number)}"
    try:
        pixels = decode_jpeg(source.read(number))
    except ValueError as error:
        raise InputError(
            f"{where}: {error}; `nfs artifact check-images {source.uri} > bad.txt` lists all such "
            "images, data.exclude=bad.txt leaves them out"
        ) from None
    height, width = pixels.shape[:2]
    if height == width:
        return pixels
    if not center_crop:
        raise InputError(
            f"{where}: {width} x {height} px is not square; set data.crop=center, or align the "
            "photos with jobs.preprocess"
        )
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return np.ascontiguousarray(pixels[top : top + side, left : left + side])


def label_dim(labels: Labels) -> int:
    """Return the length of a label vector: classes, or L of `[N, L]`."""
    return int(labels.shape[1]) if labels.ndim == 2 else int(labels.max()) + 1


def bad_images(source: ImageSource, *, center_crop: bool = False) -> Iterator[tuple[str, str]]:
    """Yield (name, problem) of each image of a source that cannot be trained on; decodes all."""
    for number in range(len(source)):
        try:
            decode(source, number, center_crop=center_crop)
        except InputError as error:
            problem = str(error).split("; ")[0]
            yield source.name(number), problem.removeprefix(f"{source.uri}: ").partition(": ")[2]
