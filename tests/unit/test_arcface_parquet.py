"""Faces in parquet shards as ArcFace training data."""

import pickle
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nfs.arcface.augment import augment
from nfs.arcface.builders import build_source
from nfs.arcface.conversion import check_source, convert_to_records
from nfs.arcface.datasets import FaceImages, open_source
from nfs.arcface.recordio import RecordError
from nfs.arcface.records import FaceRecords
from nfs.config.train_arcface import AugmentConfig, TrainArcfaceConfig
from nfs.errors import InputError
from nfs.media.images import encode_jpeg


def face(value: int, size: int = 112) -> bytes:
    return encode_jpeg(np.full((size, size, 3), value, np.uint8))


def write(folder, labels, size=112):
    folder.mkdir()
    pictures = [face(10 * i, size) for i in range(len(labels))]
    for part in range(2):
        table = pa.table({"image": pictures[part::2], "label": labels[part::2]})
        pq.write_table(table, folder / f"{part}.parquet", row_group_size=2)
    return str(folder)


def source(path, **data):
    return build_source(
        TrainArcfaceConfig.from_tree({"data": {"kind": "parquet", "path": path, **data}})
    )


def test_integers_are_classes_and_texts_are_numbered(tmp_path):
    numbers = source(write(tmp_path / "a", [4, 0, 2, 0, 4, 1]))
    assert numbers.num_classes == 5
    assert numbers.classes().tolist() == [4, 2, 4, 0, 0, 1]
    texts = source(write(tmp_path / "b", ["zoe", "ann", "bob", "ann", "zoe", "ann"]))
    assert texts.num_classes == 3
    assert texts.classes().tolist() == [2, 1, 2, 0, 0, 0]
    item = FaceImages(texts).get(3, np.random.default_rng(0))
    assert item["image"].shape == (3, 112, 112)
    assert abs(int(item["image"][0, 0, 0]) - 10) <= 2
    assert int(item["label"]) == 0


def test_wrong_files_and_labels(tmp_path):
    path = write(tmp_path / "a", [0, 1, 2, 3])
    with pytest.raises(InputError, match=r"class 3 does not fit data\.num_classes=2"):
        source(path, num_classes=2)
    with pytest.raises(InputError, match="has no column 'identity'"):
        source(path, label_column="identity")
    with pytest.raises(InputError, match="class -1 is negative"):
        source(write(tmp_path / "b", [0, -1, 0, 0]))
    with pytest.raises(InputError, match="2 rows have no value"):
        source(write(tmp_path / "c", ["a", None, "b", None]))
    with pytest.raises(InputError, match="need integers or texts, got double"):
        source(write(tmp_path / "d", [0.5, 1.0]))
    raw = source(write(tmp_path / "e", [0, 1], size=100))
    with pytest.raises(InputError, match=r"100 x 100 px.*data\.resize=true"):
        FaceImages(raw).get(0, np.random.default_rng(0))


def test_parquet_is_checked_and_becomes_records_without_loss(tmp_path):
    path = write(tmp_path / "a", [1, 0, 1, 0])
    report = check_source(path)
    assert (report["images"], report["classes"], report["problems"]) == (4, 2, [])
    assert convert_to_records(path, tmp_path / "train") == (4, 0)
    records = FaceRecords(tmp_path / "train.rec")
    stored = {records.read(i).image for i in range(4)}
    assert stored == {open_source(path).encoded(i) for i in range(4)}


def test_training_images_travel_to_other_processes(tmp_path):
    path = write(tmp_path / "a", [1, 0, 1, 0])
    convert_to_records(path, tmp_path / "train")
    (tmp_path / "folder" / "x").mkdir(parents=True)
    (tmp_path / "folder" / "x" / "0.jpg").write_bytes(face(7))
    change = partial(augment, settings=AugmentConfig(flip=1.0))
    for place in (path, str(tmp_path / "train.rec"), str(tmp_path / "folder")):
        images = FaceImages(open_source(place), change=change)
        images.get(0, np.random.default_rng(0))  # files are open now
        again = pickle.loads(pickle.dumps(images))
        for a, b in zip(
            images.get(0, np.random.default_rng(1)).values(),
            again.get(0, np.random.default_rng(1)).values(),
            strict=True,
        ):
            assert np.array_equal(a, b)


def test_damaged_records_are_reported_across_processes():
    error = pickle.loads(pickle.dumps(RecordError("a.rec", 12, "no magic", 16)))
    assert (str(error), error.offset, error.resume_at) == (
        "a.rec: record at byte 12: no magic",
        12,
        16,
    )
