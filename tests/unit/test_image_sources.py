"""Training images from folders, zips and parquet: labels, subsets, odd pictures, bad files."""

import io
import json
import multiprocessing
import pickle
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from nfs.artifacts.image_shards import ImageShards
from nfs.artifacts.photo_sets import open_photos, read_labels
from nfs.artifacts.zip_archive import ZipArchive
from nfs.config.train_stylenerf import TrainStylenerfConfig
from nfs.errors import ConfigError, InputError
from nfs.media.images import encode_png
from nfs.stylenerf.dataset import TrainingImages, bad_images
from nfs.stylenerf.image_builders import guess_source, open_images, open_source

RNG = np.random.default_rng


def picture(value: int, size: int = 8) -> np.ndarray:
    ramp = np.zeros((size, size, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(size), value
    return ramp


def encode(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def write_zip(path, files: dict[str, bytes], method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return str(path)


def write_folder(path, files: dict[str, bytes]):
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return str(path)


def labelled(labels, count=6):
    names = [f"{i // 3:05d}/img{i:08d}.png" for i in range(count)]
    files = {name: encode_png(picture(i)) for i, name in enumerate(names)}
    entries = None if labels is None else [[n, x] for n, x in zip(names, labels, strict=True)]
    return {**files, "dataset.json": json.dumps({"labels": entries}).encode()}


def write_parquet(folder, labels, rows_per_group=2):
    folder.mkdir(exist_ok=True)
    images = [encode_png(picture(i)) for i in range(len(labels))]
    for part, start in enumerate((0, 4)):
        here = slice(start, start + 4)
        table = pa.table({"image": images[here], "label": labels[here]})
        pq.write_table(table, folder / f"part-{part}.parquet", row_group_size=rows_per_group)
    return str(folder)


def config(**data):
    return TrainStylenerfConfig.from_tree({"data": data}).data


def images(resolution=8, seed=0, **data):
    return open_images(config(mirror=False, **data), resolution=resolution, seed=seed)


def values(found: TrainingImages) -> list[int]:
    return [int(found.get(i, RNG(0))["image"][1, 0, 0]) for i in range(len(found))]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_folder_and_zip_give_the_same_items(tmp_path, method):
    files = labelled([2, 0, 1, 1, 0, 2])
    from_zip = images(kind="zip", path=write_zip(tmp_path / "a.zip", files, method), labels=True)
    folder = write_folder(tmp_path / "a", files)
    from_folder = images(kind="folder", path=folder, labels=True)
    assert values(from_zip) == values(from_folder) == [0, 1, 2, 3, 4, 5]
    for i, one_hot in enumerate(([0, 0, 1], [1, 0, 0], [0, 1, 0])):
        for found in (from_zip, from_folder):
            label = found.get(i, RNG(0))["label"]
            assert label.dtype == np.float32
            assert label.tolist() == one_hot
    assert from_zip.label_dim == 3


def test_parquet_shards_with_either_kind_of_label(tmp_path):
    classes = images(
        kind="parquet", path=write_parquet(tmp_path / "a", [3, 1, 2, 0, 3]), labels=True
    )
    assert values(classes) == [0, 1, 2, 3, 4]
    assert classes.get(4, RNG(0))["label"].tolist() == [0, 0, 0, 1]
    vectors = write_parquet(tmp_path / "b", [[0.5, -1.0]] * 5)
    assert images(kind="parquet", path=vectors, labels=True).get(4, RNG(0))["label"].tolist() == [
        0.5,
        -1,
    ]
    one = images(kind="parquet", path=f"{vectors}/part-1.parquet")
    assert values(one) == [4]
    assert one.source.name(0) == "part-1.parquet:0"
    with pytest.raises(InputError, match="no column 'picture', only image, label"):
        images(kind="parquet", path=vectors, image_column="picture")
    with pytest.raises(InputError, match="need encoded pictures"):
        images(kind="parquet", path=vectors, image_column="label")


def test_hugging_face_structs_are_understood(tmp_path):
    rows = [{"bytes": encode_png(picture(i)), "path": "x"} for i in range(3)]
    pq.write_table(pa.table({"image": rows}), tmp_path / "a.parquet")
    assert values(images(kind="parquet", path=str(tmp_path))) == [0, 1, 2]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2, 3, 4, [1.0]], "must all be integers"),
        ([[1.0], [1.0, 2.0], [1.0], [1.0], [1.0], [1.0]], "must all be integers"),
        ([0, 1, -2, 3, 4, 5], "class -2 is negative"),
        (["a"] * 6, "must all be integers"),
    ],
)
def test_wrong_labels_are_refused(tmp_path, labels, message):
    with pytest.raises(InputError, match=message):
        images(kind="folder", path=write_folder(tmp_path / "a", labelled(labels)), labels=True)


def test_absent_labels(tmp_path):
    none = write_folder(tmp_path / "a", labelled(None))
    assert read_labels(open_photos(none)) is None
    assert "label" not in images(kind="folder", path=none).get(0, RNG(0))
    with pytest.raises(InputError, match="has no labels in its dataset"):
        images(kind="folder", path=none, labels=True)
    files = labelled([0] * 6) | {"new.png": encode_png(picture(9))}
    with pytest.raises(InputError, match=r"no label for 1 of 7 photos, e\.g\. new\.png"):
        images(kind="folder", path=write_folder(tmp_path / "b", files), labels=True)
    files["dataset.json"] = b"{"
    with pytest.raises(InputError, match=r"dataset\.json: expected"):
        images(kind="folder", path=write_folder(tmp_path / "c", files), labels=True)


def test_a_subset_is_the_one_of_the_original_program(tmp_path):
    path = write_folder(tmp_path / "a", labelled([0, 1, 2, 3, 4, 5]))
    expected = np.arange(6)
    np.random.RandomState(7).shuffle(expected)
    found = images(kind="folder", path=path, max_images=3, labels=True, seed=7)
    assert values(found) == sorted(expected[:3].tolist())
    assert [int(found.label(i).argmax()) for i in range(3)] == values(found)


def test_odd_pictures_become_rgb(tmp_path):
    deep = np.full((8, 8), 257 * 40, np.uint16)
    clear = np.zeros((8, 8, 4), np.uint8)
    files = {
        "a_grey.png": encode(Image.new("L", (8, 8), 100)),
        "b_deep.png": encode(Image.fromarray(deep)),
        "c_clear.png": encode(Image.fromarray(clear, "RGBA")),
        "d_palette.png": encode(Image.new("RGB", (8, 8), (1, 100, 3)).convert("P")),
        "e_cmyk.jpg": encode(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG"),
        "f_bit.png": encode(Image.new("1", (8, 8), 1)),
    }
    found = images(kind="folder", path=write_folder(tmp_path / "a", files))
    assert [found.pixels(i).shape for i in range(6)] == [(8, 8, 3)] * 6
    assert values(found)[:3] == [100, 40, 255]
    assert values(found)[4:] == [255, 255]


def test_pictures_that_are_not_square(tmp_path):
    wide = np.zeros((8, 12, 3), np.uint8)
    wide[:, 2:10] = 50
    path = write_folder(tmp_path / "a", {"w.png": encode_png(wide)})
    with pytest.raises(InputError, match=r"w\.png: 12 x 8 px is not square; set data\.crop=center"):
        images(kind="folder", path=path).pixels(0)
    cut = images(kind="folder", path=path, crop="center").pixels(0)
    assert (cut == 50).all()
    assert list(bad_images(open_source(config(kind="folder", path=path)))) == [
        ("w.png", "12 x 8 px is not square")
    ]


def test_area_filter_is_the_mean_of_the_covered_pixels(tmp_path):
    noise = RNG(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    path = write_folder(tmp_path / "a", {"n.png": encode_png(noise)})
    mean = noise.reshape(4, 4, 4, 4, 3).mean(axis=(1, 3))
    area = images(4, kind="folder", path=path, resize="area").pixels(0)
    assert np.abs(area - mean).max() <= 1  # rounded once per axis
    lanczos = images(4, kind="folder", path=path).pixels(0)
    assert np.abs(lanczos - mean).max() > 2


def test_bad_files_are_named_listed_and_can_be_left_out(tmp_path):
    files = labelled([0, 1, 2, 3, 4, 5])
    names = [n for n in files if n.endswith(".png")]
    files[names[1]] = b"not a picture"
    files[names[4]] = files[names[4]][:48]
    path = write_zip(tmp_path / "a.zip", files)
    found = images(kind="zip", path=path)
    with pytest.raises(InputError, match=rf"{names[1]}: 13 bytes are not .*check-images"):
        found.pixels(1)
    bad = list(bad_images(found.source))
    assert [name for name, _ in bad] == [names[1], names[4]]
    listing = tmp_path / "bad.txt"
    listing.write_text("".join(f"{name}\t{problem}\n" for name, problem in bad))
    kept = images(kind="zip", path=path, exclude=str(listing), labels=True)
    assert values(kept) == [0, 2, 3, 5]
    assert kept.label(3).argmax() == 5
    listing.write_text("nowhere.png\n")
    with pytest.raises(InputError, match="names 1 images, only 0 of them"):
        images(kind="zip", path=path, exclude=str(listing))


def test_check_images_command(tmp_path):
    from typer.testing import CliRunner

    from nfs.cli import app

    files = labelled(None)
    good = write_zip(tmp_path / "good.zip", files)
    assert CliRunner().invoke(app, ["artifact", "check-images", good]).exit_code == 0
    files["z.png"] = b"x"
    run = CliRunner().invoke(
        app, ["artifact", "check-images", write_zip(tmp_path / "b.zip", files)]
    )
    assert run.exit_code == 1
    assert run.stdout.startswith("z.png\t1 bytes are not a readable picture")


def test_damaged_zips(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"PK nothing")
    with pytest.raises(InputError, match=r"x\.zip: not a whole zip"):
        ZipArchive(tmp_path / "x.zip")
    with pytest.raises(InputError, match=r"none\.zip: cannot be read"):
        ZipArchive(tmp_path / "none.zip")
    path = write_zip(tmp_path / "y.zip", {"a.png": bytes(100), "b.png": b"good"})
    data = bytearray((tmp_path / "y.zip").read_bytes())
    data[60] ^= 1
    (tmp_path / "y.zip").write_bytes(data)
    archive = ZipArchive(path)
    assert archive.read("b.png") == b"good"
    with pytest.raises(InputError, match=r"a\.png: damaged: its checksum is wrong"):
        archive.read("a.png")
    with pytest.raises(InputError, match="compression method 14"):
        ZipArchive(write_zip(tmp_path / "l.zip", {"a.png": b"x"}, zipfile.ZIP_LZMA))


def _read_all(archive: ZipArchive) -> list[bytes]:
    return [archive.read(name) for name in archive.names()]


def test_a_zip_is_read_by_threads_and_forked_and_pickled_copies(tmp_path):
    files = {f"{i}.png": bytes([i]) * (1000 + i) for i in range(64)}
    archive = ZipArchive(write_zip(tmp_path / "a.zip", files, zipfile.ZIP_DEFLATED))
    expected = _read_all(archive)
    with ThreadPoolExecutor(8) as pool:
        order = RNG(0).integers(0, 64, 1000)
        found = list(pool.map(lambda i: archive.read(f"{i}.png"), order))
    assert found == [files[f"{i}.png"] for i in order]
    assert _read_all(pickle.loads(pickle.dumps(archive))) == expected
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(_read_all, [archive] * 2) == [expected] * 2


def test_large_zip_is_not_held_in_memory(tmp_path):
    import tracemalloc

    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for i in range(40):
            archive.writestr(f"{i}.png", bytes(1 << 20))
    tracemalloc.start()
    zipped = ZipArchive(tmp_path / "a.zip")
    zipped.read("7.png")
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_sources_are_guessed_from_their_path(tmp_path):
    files = labelled([0] * 6)
    paths = [
        write_zip(tmp_path / "a.zip", files),
        write_folder(tmp_path / "a", files),
        write_parquet(tmp_path / "p", [0] * 6),
    ]
    assert [len(guess_source(path)) for path in paths] == [6, 6, 6]
    with pytest.raises(InputError, match="no photo in this folder"):
        guess_source(str(tmp_path / "empty"))


def test_copies_of_a_dataset_read_the_same(tmp_path):
    path = write_parquet(tmp_path / "p", [0, 1, 2, 3, 4])
    found = images(kind="parquet", path=path, labels=True)
    again = pickle.loads(pickle.dumps(found))
    assert values(again) == values(found)
    assert again.fingerprint() == found.fingerprint()
    assert images(kind="parquet", path=path, max_images=3).fingerprint() != found.fingerprint()


def test_remote_uris(tmp_path):
    files = labelled([0, 1, 2, 0, 1, 2])
    write_zip(tmp_path / "a.zip", files)
    write_parquet(tmp_path / "p", [0] * 5)
    uri = f"file://{tmp_path}"
    assert values(images(kind="zip", path=f"{uri}/a.zip", labels=True)) == list(range(6))
    assert values(images(kind="parquet", path=f"{uri}/p")) == list(range(5))
    assert len(ImageShards(f"{uri}/p/part-0.parquet")) == 4


def test_clips_is_short_for_a_kind_of_data():
    short = TrainStylenerfConfig.from_tree({"clips": "a", "data": {"mirror": False}})
    assert (short.data.kind, short.data.path, short.data.mirror) == ("clips", "a", False)
    assert TrainStylenerfConfig.from_tree(short.tree()) == short
    assert short.override({"clips": "b"}).data.path == "b"
    with pytest.raises(ConfigError, match=r"data\.path: required and not given"):
        TrainStylenerfConfig.from_tree({})
    with pytest.raises(ConfigError, match=r"clips=a has no place in data\.kind=zip"):
        TrainStylenerfConfig.from_tree({"clips": "a", "data": {"kind": "zip", "path": "b"}})
    with pytest.raises(ConfigError, match=r"fits needs data\.kind=clips"):
        TrainStylenerfConfig.from_tree(
            {"data": {"kind": "zip", "path": "b"}, "cameras": {"kind": "fits", "path": "f"}}
        )
