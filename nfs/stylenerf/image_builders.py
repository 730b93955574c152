"""From `nfs.config.image_data` to training images."""

from nfs.artifacts.image_shards import ImageShards
from nfs.artifacts.photo_sets import FolderPhotos, ZipPhotos
from nfs.config.image_data import ClipImages, FolderImages, ImageData, ZipImages
from nfs.errors import InputError
from nfs.stylenerf.clip_frames import ClipFrames, index_frames
from nfs.stylenerf.dataset import TrainingImages
from nfs.stylenerf.image_sources import ImageSource, PhotoImages, ShardImages, choose


def open_images(data: ImageData, *, resolution: int, seed: int) -> TrainingImages:
    """Return the images of a configuration.

    Args:
        data: Source and options.
        resolution: Pixels per side.
        seed: Seed of the subset.

    Raises:
        InputError: If there are no images, or no labels where they are asked for.
    """
    source = open_source(data)
    numbers = choose(source, exclude=data.exclude, max_images=data.max_images, seed=seed)
    labels = source.labels() if data.labels else None
    if data.labels and labels is None:
        raise InputError(f"data.labels=true, but {source.uri} has no labels in its dataset.json")
    return TrainingImages(
        source,
        resolution=resolution,
        mirror=data.mirror,
        numbers=numbers,
        labels=None if labels is None else labels[numbers],
        center_crop=data.crop == "center",
        resize=data.resize,
    )


def open_source(data: ImageData) -> ImageSource:
    """Return the encoded images of a configuration."""
    if isinstance(data, ClipImages):
        index = index_frames(
            data.path, split=data.split, max_frames_per_clip=data.max_frames_per_clip
        )
        return ClipFrames(data.path, index, cache_row_groups=data.cache_row_groups)
    if isinstance(data, FolderImages):
        return PhotoImages(FolderPhotos(data.path))
    if isinstance(data, ZipImages):
        return PhotoImages(ZipPhotos(data.path))
    shards = ImageShards(data.path, image_column=data.image_column, keep=data.cache_row_groups)
    return ShardImages(shards, data.label_column)


def guess_source(path: str) -> ImageSource:
    """Return the images at a path: a zip, parquet files, a `clips` artifact or a folder."""
    from nfs.artifacts.manifest import MANIFEST
    from nfs.artifacts.store import Store

    if path.lower().endswith(".zip"):
        return PhotoImages(ZipPhotos(path))
    if path.endswith(".parquet"):
        return ShardImages(ImageShards(path), "label")
    store = Store(path)
    if store.exists(MANIFEST):
        return ClipFrames(path)
    if any(name.endswith(".parquet") for name in store.list("")):
        return ShardImages(ImageShards(path), "label")
    return PhotoImages(FolderPhotos(path))
