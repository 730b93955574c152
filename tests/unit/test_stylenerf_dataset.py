"""Frames of a clips artifact as training images, and cameras from fits."""

import numpy as np
import pyarrow as pa
import pytest

from nfs.artifacts import write_manifest
from nfs.artifacts.schemas import CLIPS, FITS, FRAMES
from nfs.artifacts.store import Store
from nfs.config.train_stylenerf import TrainStylenerfConfig
from nfs.errors import ArtifactError, InputError
from nfs.media.images import encode_png
from nfs.stylenerf.builders import build_dataset, build_prior, read_fitted
from nfs.stylenerf.clip_frames import ClipFrames, index_frames
from nfs.stylenerf.dataset import TrainingImages
from nfs.stylenerf.poses import fitted_prior, frame_angles, read_angles
from nfs.stylenerf.spec import CameraPrior
from nfs.stylenerf.warm_start import fit_linear_encoder


def rows(schema: pa.Schema, values: list[dict]) -> pa.Table:
    blank = dict.fromkeys(schema.names)
    return pa.Table.from_pylist([blank | value for value in values], schema=schema)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Two clips; every third frame is bad; frame i of clip c is a left-right ramp plus a mark."""
    uri = str(tmp_path_factory.mktemp("clips"))
    store = Store(uri)
    for clip, (split, count) in enumerate((("train", 7), ("val", 3))):
        frames = []
        for i in range(count):
            image = np.zeros((8, 8, 3), np.uint8)
            image[..., 0] = np.arange(8)
            image[..., 1], image[..., 2] = clip, i
            status = "no_face" if i % 3 == 2 else "ok"
            frames.append(
                {
                    "clip_id": f"c{clip}",
                    "frame_index": i,
                    "image_jpeg": encode_png(image),
                    "status": status,
                }
            )
        store.write_table(f"frames/c{clip}.parquet", rows(FRAMES, frames), row_group_size=2)
        store.write_table(
            f"clips/c{clip}.parquet", rows(CLIPS, [{"clip_id": f"c{clip}", "split": split}])
        )
    write_manifest(uri, kind="clips", config={})
    return uri


def frame_images(clips, *, cache_row_groups=64, split=None, limit=None, **options):
    index = index_frames(clips, split=split, max_frames_per_clip=limit)
    source = ClipFrames(clips, index, cache_row_groups=cache_row_groups)
    return TrainingImages(source, **{"resolution": 8, **options})


def marks(images: TrainingImages) -> list[tuple[int, int]]:
    found = [images.get(i, np.random.default_rng(0))["image"][1:, 0, 0] for i in range(len(images))]
    return [(int(clip), int(frame)) for clip, frame in found]


def test_only_good_frames_are_used(clips):
    images = frame_images(clips)
    assert marks(images) == [(0, 0), (0, 1), (0, 3), (0, 4), (0, 6), (1, 0), (1, 1)]


def test_split_and_limit(clips):
    val = frame_images(clips, split="val")
    assert [val.source.name(i) for i in range(2)] == ["c1:0", "c1:1"]
    assert marks(val) == [(1, 0), (1, 1)]
    few = frame_images(clips, limit=2)
    assert marks(few) == [(0, 0), (0, 6), (1, 0), (1, 1)]
    with pytest.raises(ArtifactError, match="no frame with status ok in split 'test'"):
        index_frames(clips, split="test")


def test_images_are_resized_and_mirrored_by_the_given_generator(clips):
    small = frame_images(clips, resolution=4).get(0, np.random.default_rng(0))["image"]
    assert small.shape == (3, 4, 4)
    assert small.dtype == np.uint8
    images = frame_images(clips)
    ramps = {images.get(0, np.random.default_rng(seed))["image"][0, 0, 0] for seed in range(8)}
    assert ramps == {0, 7}
    plain = frame_images(clips, mirror=False)
    assert {plain.get(0, np.random.default_rng(s))["image"][0, 0, 0] for s in range(8)} == {0}


def test_codes_are_white_and_repeatable():
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(12)]
    encoder = fit_linear_encoder(pictures, 8)
    codes = np.stack([encoder.encode(picture, random) for picture in pictures])
    assert codes.mean(axis=0) == pytest.approx(np.zeros(8), abs=0.1)
    assert np.cov(codes.T, bias=True) == pytest.approx(np.eye(8), abs=0.2)
    again = encoder.encode(pictures[0], np.random.default_rng(5))
    assert np.array_equal(again, codes[0])
    few = fit_linear_encoder(pictures[:3], 8)
    noisy = [few.encode(pictures[0], np.random.default_rng(seed)) for seed in (1, 2)]
    assert np.array_equal(noisy[0][:2], noisy[1][:2])
    assert not np.any(noisy[0][2:] == noisy[1][2:])
    with pytest.raises(ValueError, match="at least two images"):
        fit_linear_encoder(pictures[:1], 8)


def test_items_carry_codes_when_there_is_an_encoder(clips):
    images = frame_images(clips)
    images.encoder = fit_linear_encoder([images.pixels(i) for i in range(4)], 3)
    item = images.get(0, np.random.default_rng(0))
    assert item["code"].shape == (3,)
    assert item["code"].dtype == np.float32


def test_the_cache_is_bounded(clips):
    images = frame_images(clips, cache_row_groups=2)
    first = marks(images)
    assert len(images.source.groups) == 2
    assert marks(images) == first


def write_fits(folder, yaws: dict[tuple[str, int], float | None]) -> str:
    """Fits of frames by clip and number; None is a fit that failed."""
    for clip_id in {clip_id for clip_id, _ in yaws}:
        fits = [
            {
                "clip_id": clip_id,
                "frame_index": frame,
                "rotation_rad": [0.0, 9.0 if yaw is None else yaw, 0.0],
                "status": "failed" if yaw is None else "ok",
            }
            for (clip, frame), yaw in yaws.items()
            if clip == clip_id
        ]
        Store(str(folder)).write_table(f"fits/{clip_id}.parquet", rows(FITS, fits))
    write_manifest(str(folder), kind="fits", config={})
    return str(folder)


def test_cameras_from_fits(clips, tmp_path):
    # The other clip's rows come first and frames are not in order.
    yaws = {("other", 0): 0.3, ("c1", 1): 0.4, ("c0", 3): 0.2, ("c0", 0): None, ("c0", 9): 0.3}
    angles = read_angles(write_fits(tmp_path, yaws))
    prior = fitted_prior(angles, min_spread_rad=0.05, max_spread_rad=0.3)
    assert prior.gaussian
    spread = float(np.std([0.3, 0.4, 0.2, 0.3]))
    assert prior.yaw_rad == pytest.approx((-0.3 - spread, -0.3 + spread), abs=1e-5)
    assert prior.pitch_rad == pytest.approx((np.pi / 2 - 0.05, np.pi / 2 + 0.05), abs=1e-5)
    found = frame_angles(angles, index_frames(clips), prior)
    nan = float("nan")
    assert found[:, 0] == pytest.approx(
        [nan, nan, -0.2, nan, nan, nan, -0.4], abs=1e-5, nan_ok=True
    )
    narrow = CameraPrior(yaw_rad=(-0.31, -0.29), pitch_rad=prior.pitch_rad)
    limited = frame_angles(angles, index_frames(clips), narrow)[[2, 6], 0]
    assert limited == pytest.approx([-0.27, -0.33], abs=1e-5)
    with pytest.raises(ArtifactError, match="no fit with status ok"):
        read_angles(write_fits(tmp_path / "none", {("c0", 0): None}))


def build(repository, clips, fits, *overrides):
    path = repository / "jobs/configs/train_stylenerf/smoke.yaml"
    cameras = f"cameras={{kind: fits, path: '{fits}', per_image: true}}"
    config = TrainStylenerfConfig.load(path, [f"clips={clips}", cameras, *overrides])
    angles = read_fitted(config)
    return build_dataset(config, build_prior(config, angles), angles)


@pytest.mark.parametrize("warm_start", ["null", "{kimg: 1, num_images: 4}"])
def test_frames_without_a_fit_are_left_out_and_counted(
    repository, clips, tmp_path, caplog, warm_start
):
    yaws = {("c0", 0): 0.1, ("c0", 3): 0.2, ("c0", 4): None, ("c1", 0): 0.3, ("c1", 1): 0.4}
    fits = write_fits(tmp_path, yaws)
    images = build(repository, clips, fits, f"warm_start={warm_start}")
    assert images.num_without_fit == 3
    assert "3 of 7 frames have no fit" in caplog.text
    assert [images.source.name(int(n)) for n in images.numbers] == ["c0:0", "c0:3", "c1:0", "c1:1"]
    items = [images.get(i, np.random.default_rng(0)) for i in range(len(images))]
    assert [abs(float(item["yaw_pitch"][0])) for item in items] == pytest.approx(
        [0.1, 0.2, 0.3, 0.4], abs=1e-5
    )
    assert all(("code" in item) == (warm_start != "null") for item in items)


def test_a_set_mostly_without_fits_is_refused(repository, clips, tmp_path):
    fits = write_fits(tmp_path, {("c0", 0): 0.1, ("c1", 0): 0.2, ("c1", 1): 0.3})
    with pytest.raises(InputError, match=r"4 of 7 frames of .* have no fit; run jobs\.fit_3dmm"):
        build(repository, clips, fits)


def test_some_of_the_images_keep_their_labels_and_cameras(clips):
    images = frame_images(clips, labels=np.arange(7))
    images.angles = np.arange(14, dtype=np.float32).reshape(7, 2)
    some = images.only(np.asarray([5, 1]))
    assert len(some) == 2
    assert marks(some) == [(1, 0), (0, 1)]
    assert some.label(0).tolist() == [0, 0, 0, 0, 0, 1, 0]
    assert some.angles.tolist() == [[10, 11], [2, 3]]
    assert len(images) == 7


def test_a_mirrored_head_is_seen_from_the_mirrored_yaw(clips):
    images = frame_images(clips)
    images.angles = np.tile(np.float32([0.2, 1.5]), (len(images), 1))
    items = [images.get(0, np.random.default_rng(seed)) for seed in range(8)]
    yaws = {(int(item["image"][0, 0, 0]), round(float(item["yaw_pitch"][0]), 3)) for item in items}
    assert yaws == {(0, 0.2), (7, -0.2)}
    assert all(float(item["yaw_pitch"][1]) == 1.5 for item in items)
