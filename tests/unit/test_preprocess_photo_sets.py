"""Photo sets as inputs of jobs.preprocess: zips, classes as identities, aligned photos."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import nfs.face.clip as clip_module
from nfs.artifacts import read_manifest
from nfs.artifacts.export_photos import export_zip
from nfs.artifacts.photo_sets import ZipPhotos, read_labels
from nfs.artifacts.tables import read_table
from nfs.cli import app
from nfs.config.preprocess import PreprocessConfig
from nfs.errors import InputError
from nfs.face.align import middle_square
from nfs.face.sources import class_labels, distinct, list_files, make_items
from nfs.media.images import decode_jpeg, encode_jpeg, encode_png
from tests.unit.face_fakes import SquareDetector, SquareLandmarks, picture
from tests.unit.test_preprocess import SIZE, job


@pytest.fixture(autouse=True)
def synthetic_faces(monkeypatch):
    monkeypatch.setattr(clip_module, "build_detector", lambda *_: SquareDetector())
    monkeypatch.setattr(clip_module, "build_landmarks", lambda *_: SquareLandmarks())


def photos() -> dict[str, bytes]:
    return {
        "00000/a.png": encode_png(picture(SIZE, [(60, 80, 40)])),
        "00000/b.png": encode_png(picture(SIZE, [(70, 80, 40)])),
        "00001/a.png": encode_png(picture(SIZE, [(60, 90, 50)])),
        "00001/copy.png": encode_png(picture(SIZE, [(60, 80, 40)])),
        "00001/torn.png": encode_png(picture(SIZE, [(70, 90, 50)]))[:100],
        "00001/none.png": encode_png(picture(SIZE, [])),
    }


@pytest.fixture
def photo_zip(tmp_path) -> Path:
    files = photos()
    labels = [[name, 7 if name.startswith("00000") else 3] for name in files]
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr("dataset.json", json.dumps({"labels": labels}))
        archive.writestr("notes.txt", "no photo")
    return tmp_path / "set.zip"


def clips_of(uri) -> dict[str, dict]:
    rows = read_table(str(uri), "clips").to_pylist()
    return {Path(row["source_uri"].split("!/")[1]).as_posix(): row for row in rows}


def test_a_zip_of_photos_with_classes(tmp_path, photo_zip):
    code, run = job(tmp_path, f"inputs=[{photo_zip}]", "identity_from=label")
    assert code == 0
    rows = clips_of(run / "clips")
    assert {name: row["status"] for name, row in rows.items()} == {
        "00000/a.png": "ok",
        "00000/b.png": "ok",
        "00001/a.png": "ok",
        "00001/torn.png": "decode_error",
        "00001/none.png": "no_face",
    }
    identities = {name: row["identity_id"] for name, row in rows.items()}
    assert identities["00000/a.png"] == identities["00000/b.png"] == "class-00007"
    assert identities["00001/a.png"] == "class-00003"
    manifest = read_manifest(str(run / "clips"))
    assert manifest.counts["duplicates"] == 1
    assert manifest.extra["duplicates"][0]["item"] == f"{photo_zip}!/00001/copy.png"
    reasons = {q.item: q.reason for q in manifest.quarantined}
    assert f"{photo_zip}!/00001/torn.png" in reasons[f"{photo_zip}!/00001/torn.png"]
    assert read_table(str(run / "clips"), "frames").num_rows == 3


def test_identities_without_labels(tmp_path, photo_zip):
    _, run = job(tmp_path, f"inputs=[{photo_zip}]", "identity_from=folder")
    assert {r["identity_id"] for r in clips_of(run / "clips").values()} == {"00000", "00001"}


def test_a_folder_with_dataset_json_and_wrong_labels(tmp_path):
    folder = tmp_path / "set"
    for name, data in photos().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    with pytest.raises(InputError, match=r"set has no dataset\.json with classes"):
        class_labels([str(folder)])
    labels = [[name, index] for index, name in enumerate(sorted(photos()))]
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    sources, _ = distinct(list_files([str(folder)]), class_labels([str(folder)]))
    assert {Path(s.path).relative_to(folder).as_posix(): s.label for s in sources} == {
        name: label for name, label in labels if name != "00001/copy.png"
    }
    (folder / "dataset.json").write_text(json.dumps({"labels": [[n, [0.5]] for n, _ in labels]}))
    with pytest.raises(InputError, match="no dataset"):
        class_labels([str(folder)])


def test_label_vectors_come_back_in_an_exported_zip(tmp_path, photo_zip):
    names = sorted(photos())
    vectors = {name: [0.1 * index, -1.5, 3e-7 * index] for index, name in enumerate(names)}
    with zipfile.ZipFile(tmp_path / "vectors.zip", "w") as archive:
        for name, data in photos().items():
            archive.writestr(name, data)
        archive.writestr("dataset.json", json.dumps({"labels": list(vectors.items())}))
    code, run = job(tmp_path, f"inputs=[{tmp_path / 'vectors.zip'}]")
    assert code == 0
    rows = clips_of(run / "clips")
    for name, row in rows.items():  # refused photos, too
        assert np.array_equal(np.float32(row["label"]), np.float32(vectors[name]))
    target = tmp_path / "out.zip"
    command = ["artifact", "export-zip", str(run / "clips"), str(target), "--resolution", "64"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "3 photos of 2 identities, labels: vectors" in done.output
    facts = json.loads(zipfile.ZipFile(target).read("dataset.json"))
    by_clip = {row["clip_id"]: row["label"] for row in rows.values()}
    clip_of = {name: clip_id for name, clip_id, _ in facts["frames"]}
    assert {name: by_clip[clip_of[name]] for name, _ in facts["labels"]} == dict(facts["labels"])
    again = read_labels(ZipPhotos(str(target)))
    assert again.shape == (3, 3)
    done = CliRunner().invoke(app, [*command, "--identities"])
    assert "labels: identities" in done.output
    (tmp_path / "more.png").write_bytes(encode_png(picture(SIZE, [(64, 84, 44)])))
    (tmp_path / "again").mkdir()
    files = f"inputs=[{tmp_path / 'vectors.zip'}, {tmp_path / 'more.png'}]"
    code, run = job(tmp_path / "again", files)
    assert code == 0
    rows = read_table(str(run / "clips"), "clips").to_pylist()
    assert sorted(row["label"] is None for row in rows) == [False] * 5 + [True]
    with pytest.raises(InputError, match=r"3 of 4 clips have label vectors, of \[3\] numbers"):
        export_zip(str(run / "clips"), target, resolution=64)


def test_a_changed_label_vector_is_another_unit(photo_zip):
    sources, _ = distinct(list_files([str(photo_zip)]))
    config = PreprocessConfig(inputs=["x"])

    def keys(label):
        return [i["key"] for i in make_items([replace(s, label=label) for s in sources], config)]

    assert keys(None) == keys(3)
    assert set(keys((1.0, 2.0))).isdisjoint(keys((1.0, 2.5)) + keys(None))


def test_aligned_photos_are_kept_as_they_are(tmp_path):
    square = picture((64, 64), [(16, 34, 24)])
    square[..., 1] = np.arange(64)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(encode_png(square))
    code, run = job(tmp_path, f"inputs=[{tmp_path / 'in'}]", "clip.align=none")
    assert code == 0
    row = read_table(str(run / "clips"), "frames").to_pylist()[0]
    stored = decode_jpeg(encode_jpeg(square))  # lossy, but not resampled
    assert np.array_equal(decode_jpeg(row["image_jpeg"]), stored)
    assert row["crop_from_source"] == pytest.approx([1, 0, 0, 0, 1, 0])


def test_middle_square():
    assert middle_square(200, 100, 50) == pytest.approx(np.array([[0.5, 0, -25], [0, 0.5, 0]]))
