"""RecordIO, face records, conversion and checks."""

import json
import struct
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from nfs.arcface.conversion import check_source, convert_to_records, make_pairs
from nfs.arcface.datasets import FaceImages, FolderSource, RecordSource, open_source
from nfs.arcface.pair_files import draw_pairs, read_pairs
from nfs.arcface.recordio import (
    MAGIC_BYTES,
    RecordError,
    RecordFile,
    RecordWriter,
    encode_record,
    read_index,
)
from nfs.arcface.records import (
    FaceRecords,
    check_records,
    decode_face,
    encode_face,
    repair_index,
    write_face_records,
)
from nfs.cli import app
from nfs.errors import InputError
from nfs.media.images import encode_jpeg

PAYLOADS = st.lists(
    st.one_of(st.binary(max_size=9), st.sampled_from([MAGIC_BYTES, b"\x00" + MAGIC_BYTES])),
    max_size=6,
).map(b"".join)


def picture(seed: int, size: int = 112) -> bytes:
    return encode_jpeg(
        np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    )


@pytest.fixture
def records(tmp_path):
    """Three identities with 3, 2 and 2 images."""
    images = [(label, picture(i)) for i, label in enumerate([0, 0, 0, 1, 1, 2, 2])]
    write_face_records(tmp_path / "train", images)
    return tmp_path / "train.rec"


@given(st.lists(PAYLOADS, min_size=1, max_size=5))
def test_any_payload_survives(tmp_path_factory, payloads):
    stem = tmp_path_factory.mktemp("rec") / "a"
    with RecordWriter(stem) as writer:
        offsets = [writer.write(i, p) for i, p in enumerate(payloads)]
    file = RecordFile(f"{stem}.rec")
    assert [file.read(o)[0] for o in offsets] == payloads
    assert list(file.scan()) == list(zip(offsets, payloads, strict=True))
    assert read_index(f"{stem}.idx")[1].tolist() == offsets
    assert all(o % 4 == 0 for o in offsets)


def test_magic_is_cut_at_words_only():
    assert encode_record(b"abcd")[:8] == MAGIC_BYTES + struct.pack("<I", 4)
    assert encode_record(b"a" + MAGIC_BYTES + b"bcd").count(MAGIC_BYTES) == 2
    aligned = encode_record(b"abcd" + MAGIC_BYTES + b"e")
    kinds = [struct.unpack_from("<I", aligned, i + 4)[0] >> 29 for i in (0, 12)]
    assert kinds == [1, 3]


def test_layouts(records, tmp_path):
    faces = FaceRecords(records)
    assert (len(faces), faces.num_identities) == (7, 3)
    assert faces.read(3).class_number == 1
    assert faces.identity_ranges().tolist() == [[1, 4], [4, 6], [6, 8]]
    with RecordWriter(tmp_path / "plain") as writer:
        for key in range(2):  # the first image has several labels, but also a body
            writer.write(key, encode_face((float(key), 9.0), picture(key), id=key))
    plain = FaceRecords(tmp_path / "plain.rec")
    assert (len(plain), plain.num_identities, plain.read(1).class_number) == (2, None, 1)
    assert RecordSource(str(tmp_path / "plain.rec")).num_classes == 2


def test_damage_is_reported_by_offset_and_skipped_or_fatal(records):
    _, offsets = read_index(records.with_suffix(".idx"))
    data = bytearray(records.read_bytes())
    bad = int(offsets[2])
    data[bad : bad + 4] = b"junk"
    records.write_bytes(data)
    with pytest.raises(RecordError, match=f"record at byte {bad}: no magic"):
        FaceRecords(records).read(1)
    items = list(RecordFile(records).scan())
    assert [o for o, item in items if isinstance(item, RecordError)] == [bad]
    assert sum(isinstance(item, bytes) for _, item in items) == len(offsets) - 1
    assert any(f"byte {bad}" in p for p in check_records(records)["problems"])
    with pytest.raises(InputError, match=f"byte {bad}"):
        convert_to_records(str(records), records.with_name("again"))


def test_truncated_file_and_bad_labels(records):
    whole = records.read_bytes()
    _, offsets = read_index(records.with_suffix(".idx"))
    records.write_bytes(whole[: offsets[3] + 40])
    with pytest.raises(RecordError, match="passes the end of the file"):
        FaceRecords(records).read(2)
    assert repair_index(records) == 3
    with pytest.raises(InputError, match="has no image header"):
        decode_face(b"short")
    with pytest.raises(InputError, match="cannot hold 9 labels"):
        decode_face(struct.pack("<IfQQ", 9, 0, 0, 0))


def test_writer_leaves_nothing_after_an_error(tmp_path):
    with pytest.raises(InputError, match="class 2 follows class 0"):
        write_face_records(tmp_path / "gap", [(0, b"x"), (2, b"y")])
    assert list(tmp_path.iterdir()) == []


def test_classes_must_fit(records):
    source = RecordSource(str(records), num_classes=2)
    with pytest.raises(InputError, match=r"image 5: label 2.0 is not in 0..1"):
        source.read(5)


def test_folder_to_records_to_pairs(tmp_path):
    for person in ("ann", "bob"):
        (tmp_path / "faces" / person).mkdir(parents=True)
        for i in range(3):
            (tmp_path / "faces" / person / f"{i}.jpg").write_bytes(picture(i + len(person)))
    folder = str(tmp_path / "faces")
    assert isinstance(open_source(folder), FolderSource)
    assert convert_to_records(folder, tmp_path / "train") == (6, 0)
    source = open_source(str(tmp_path))
    assert source.classes().tolist() == [0, 0, 0, 1, 1, 1]
    report = check_source(str(tmp_path))
    assert (report["images"], report["problems"], report["duplicates"]) == (6, [], 3)
    make_pairs(str(tmp_path), tmp_path / "val.bin", num_pairs=8)
    pairs = read_pairs(tmp_path / "val.bin")
    assert pairs.same.tolist() == [True, False] * 4
    first, second = (pairs.images[0], pairs.images[1])
    assert first != second


def test_pairs_of_a_person_come_from_two_recordings():
    recordings = [[4, 4, 4, 9, 9], [7], [5] * 9]
    images, same = draw_pairs(recordings, 60, np.random.default_rng(0))
    pairs = list(zip(images[0::2], images[1::2], strict=True))
    assert {a[0] for a, b in pairs} == {0, 1, 2}
    for (first, second), one_person in zip(pairs, same, strict=True):
        assert (first[0] == second[0]) == one_person
        if one_person and first[0] == 0:
            assert recordings[0][first[1]] != recordings[0][second[1]]
        if one_person and first[0] == 2:
            assert abs(first[1] - second[1]) >= 3
    with pytest.raises(InputError, match="two identities"):
        draw_pairs([[0], [1]], 4, np.random.default_rng(0))


def test_wrong_sizes_are_named(tmp_path):
    (tmp_path / "faces" / "ann").mkdir(parents=True)
    (tmp_path / "faces" / "ann" / "0.png").write_bytes(picture(0, size=90))
    source = FolderSource(str(tmp_path / "faces"))
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="90 x 90 px"):
        FaceImages(source).get(0, rng)
    assert FaceImages(source, resize=True).get(0, rng)["image"].shape == (3, 112, 112)
    assert len(check_source(str(tmp_path / "faces"))["problems"]) == 1
    with pytest.raises(InputError, match="no sub-folder with images"):
        FolderSource(str(tmp_path / "faces" / "ann"))


def test_command_line(records, tmp_path):
    runner = CliRunner()
    result = runner.invoke(app, ["records", "check", str(records)])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["classes"] == 3
    result = runner.invoke(
        app, ["records", "pairs", str(records), str(tmp_path / "v.bin"), "--pairs", "9"]
    )
    assert result.stdout.strip() == "9 pairs"
    result = runner.invoke(app, ["records", "convert", str(records), str(tmp_path / "copy")])
    assert result.stdout.strip() == "7 images, 0 left out"
    assert (tmp_path / "copy.rec").read_bytes() == records.read_bytes()
    result = runner.invoke(app, ["records", "index", str(records)])
    assert result.stdout.strip() == "11 records"


def test_labels_rise_with_keys(records):
    labels = FaceRecords(records)
    classes = [labels.read(i).class_number for i in range(len(labels))]
    assert all(b >= a for a, b in pairwise(classes))
