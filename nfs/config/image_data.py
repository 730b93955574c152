"""Where training images come from: clips, folders, zips, parquet shards."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from nfs.config.base import Config


class ImageOptions(Config):
    """What all sources of images share."""

    path: str
    """Local path or URI."""
    mirror: bool = True
    """Flip half of the images left to right."""
    max_images: int | None = Field(None, ge=1)
    """Use a random subset (drawn from the run's seed) of this size; null uses all."""
    exclude: str | None = None
    """File that names images to leave out, one a line (`nfs artifact check-images` writes it)."""
    crop: Literal["none", "center"] = "none"
    """What happens to an image that is not square: an error, or its middle is cut out."""
    resize: Literal["lanczos", "area"] = "lanczos"
    """Filter that makes other sizes fit."""
    labels: bool = False
    """Train a conditional model on the images' labels."""


class ClipImages(ImageOptions):
    """Aligned frames of a `clips` artifact; the label is the identity."""

    kind: Literal["clips"] = "clips"
    """Tag."""
    split: str | None = None
    """Value of the clips' `split` column; null uses all."""
    max_frames_per_clip: int | None = Field(None, ge=1)
    """Evenly spaced frames kept of each clip; null keeps all."""
    cache_row_groups: int = Field(64, ge=1)
    """Row groups of 32 encoded frames kept in memory (about 1 MB each at 256 px)."""


class FolderImages(ImageOptions):
    """Photos in a folder and below it; labels in its `dataset.json`."""

    kind: Literal["folder"] = "folder"
    """Tag."""


class ZipImages(ImageOptions):
    """Photos in a zip in StyleGAN's format; labels in its `dataset.json`."""

    kind: Literal["zip"] = "zip"
    """Tag."""


class ParquetImages(ImageOptions):
    """Encoded images in a column of a parquet file, or of all parquet files in a folder."""

    kind: Literal["parquet"] = "parquet"
    """Tag."""
    image_column: str = "image"
    """Column of encoded pictures: binary, or a struct with a field `bytes`."""
    label_column: str = "label"
    """Column of labels: integers or lists of numbers."""
    cache_row_groups: int = Field(64, ge=1)
    """Row groups kept in memory."""


ImageData = Annotated[
    ClipImages | FolderImages | ZipImages | ParquetImages, Field(discriminator="kind")
]
