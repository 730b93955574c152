"""jobs.preprocess reads videos, photos and zips from an object store."""

import hashlib
import tempfile
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image
from pyarrow import fs

import nfs.face.clip as clip_module
import nfs.face.remote as remote
from nfs.artifacts import read_manifest
from nfs.artifacts.tables import read_table
from nfs.config.pipeline import PipelineConfig
from nfs.config.preprocess import PreprocessConfig
from nfs.errors import ClipError, ConfigError, InputError
from nfs.face.remote import copy_object, list_objects, shown
from nfs.face.sources import distinct, list_files, make_items
from nfs.media import VideoWriter
from tests.unit.face_fakes import SquareDetector, SquareLandmarks, picture
from tests.unit.test_preprocess import SIZE, job
from tests.unit.test_preprocess_photo_sets import photo_zip  # noqa: F401 - a fixture

TALK = "anna/talk ünï?%20#1.mp4"


@pytest.fixture(autouse=True)
def synthetic_faces(monkeypatch):
    monkeypatch.setattr(clip_module, "build_detector", lambda *_: SquareDetector())
    monkeypatch.setattr(clip_module, "build_landmarks", lambda *_: SquareLandmarks())


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch) -> Path:
    """Where copies go."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def media(tmp_path) -> Path:
    folder = tmp_path / "media"
    (folder / "anna").mkdir(parents=True)
    with VideoWriter(folder / TALK, 25, SIZE, audio=(np.zeros(12800), 16000)) as writer:
        for index in range(20):
            writer.write(picture(SIZE, [(60 + index, 80, 40)]))
    Image.fromarray(picture(SIZE, [(100, 80, 40)])).save(folder / "portrait.png")
    (folder / "torn.mp4").write_bytes((folder / TALK).read_bytes()[:900])
    (folder / "notes.txt").write_text("no media")
    (folder / ".hidden.png").write_bytes((folder / "portrait.png").read_bytes())
    return folder


@pytest.fixture
def bucket(object_store, request, media):
    """URI of a folder with the media."""
    uri = f"s3://bucket/{request.node.name}/my%20clips"
    system, root = fs.FileSystem.from_uri(uri)
    for file in media.rglob("*"):
        if file.is_file():
            with system.open_output_stream(f"{root}/{file.relative_to(media)}") as stream:
                stream.write(file.read_bytes())
    return uri


def rows_of(run: Path) -> dict[str, dict]:
    rows = read_table(str(run / "clips"), "clips").to_pylist()
    return {f"{Path(r['source_uri']).name}|{r['source_start_s']}": r for r in rows}


def test_the_same_clips_as_from_a_local_folder(tmp_path, media, bucket, temporary):
    settings = ("max_clip_s=0.4", "identity_from=folder")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert job(tmp_path / "a", f"inputs=[{media}]", *settings)[0] == 0
    code, run = job(tmp_path / "b", f"inputs=['{bucket}']", *settings)
    assert code == 0
    assert list(temporary.iterdir()) == [], "copies are removed"
    local, far = rows_of(tmp_path / "a" / "runs" / "r"), rows_of(run)
    assert len(far) == 4, "two parts of the video, a photo, a torn file"
    names = {"media": "my-clips"}  # the folder at the top has another name
    for name, row in far.items():
        wanted = dict(local[name])
        assert row["source_uri"] == shown(bucket) + wanted["source_uri"].removeprefix(str(media))
        assert row["clip_id"].split("-")[0] == wanted["clip_id"].split("-")[0]
        wanted["identity_id"] = names.get(wanted["identity_id"], wanted["identity_id"])
        if name.startswith("torn"):
            wanted["error"] = wanted["error"].replace(str(media), shown(bucket))
            wanted["source_sha256"] = None
        for own in ("clip_id", "source_uri", "split"):
            row.pop(own), wanted.pop(own)
        assert row == wanted
    columns = ["image_jpeg", "landmarks_px", "crop_from_source", "status"]
    near, away = (
        read_table(str(tmp_path / side / "runs" / "r" / "clips"), "frames", columns).to_pylist()
        for side in ("a", "b")
    )
    assert sorted(map(repr, away)) == sorted(map(repr, near))
    quarantined = read_manifest(str(run / "clips")).quarantined
    assert [q.item for q in quarantined] == [f"{shown(bucket)}/torn.mp4"]


def test_resume_knows_objects_by_size_and_time(tmp_path, bucket, monkeypatch):
    done = []
    whole = clip_module.ClipWork.__call__
    monkeypatch.setattr(
        clip_module.ClipWork, "__call__", lambda self, item: done.append(item) or whole(self, item)
    )
    assert job(tmp_path, f"inputs=['{bucket}']")[0] == 0
    assert len(done) == 3
    assert job(tmp_path, f"inputs=['{bucket}']")[0] == 0
    assert len(done) == 3
    system, root = fs.FileSystem.from_uri(bucket)
    with system.open_output_stream(f"{root}/portrait.png") as stream:
        Image.fromarray(picture(SIZE, [(110, 80, 44)])).save(stream, "PNG")
    assert job(tmp_path, f"inputs=['{bucket}']")[0] == 0
    assert [Path(item["source_uri"]).name for item in done[3:]] == ["portrait.png"]


def test_what_cannot_be_read(tmp_path, bucket, temporary, monkeypatch, capsys):
    for wrong in ("s3://nowhere", "s3://bucket/nowhere", "s3://bucket/*.mp4"):
        with pytest.raises(InputError, match=r"no such bucket, folder or object"):
            list_objects([wrong])
    with pytest.raises(InputError, match="no storage that pyarrow knows"):
        list_objects(["http://127.0.0.1/a.mp4"])
    with monkeypatch.context() as patch:
        patch.setattr("moto.core.authorization.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0)
        with pytest.raises(InputError, match=r"inputs: s3://.*: cannot be reached: .*DENIED"):
            list_objects([bucket])
        assert job(tmp_path, f"inputs=['{bucket}']")[0] == 2
    assert "ACCESS_DENIED" in capsys.readouterr().err

    def gone(inputs):
        objects = list_objects(inputs)
        system, root = fs.FileSystem.from_uri(bucket)
        system.delete_file(f"{root}/portrait.png")
        return objects

    monkeypatch.setattr(remote, "list_objects", gone)
    code, run = job(tmp_path, f"inputs=['{bucket}']")
    assert code == 0
    reasons = {Path(q.item).name: q.reason for q in read_manifest(str(run / "clips")).quarantined}
    assert set(reasons) == {"portrait.png", "torn.mp4"}
    assert reasons["portrait.png"] == (
        f"decode_error: {shown(bucket)}/portrait.png: cannot be read: no such object"
    )
    assert list(temporary.iterdir()) == []


def test_denied_access_to_one_object(tmp_path, bucket, monkeypatch):
    uri = f"{bucket}/{quote(TALK)}"
    target = tmp_path / "copy.mp4"
    assert copy_object(uri, target) == hashlib.sha256(target.read_bytes()).hexdigest()
    monkeypatch.setattr("moto.core.authorization.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0)
    with pytest.raises(OSError, match=r"1\.mp4: cannot be read: .*ACCESS_DENIED"):
        copy_object(uri, target)
    monkeypatch.undo()
    with pytest.raises(ClipError, match="no such object"):
        copy_object(f"{bucket}/nothing.mp4", target)


def test_a_full_disk_stops_the_job(bucket, monkeypatch):
    full = Path("/dev/full")
    with pytest.raises(InputError, match=r"/dev: no room for a copy of s3://.*/portrait.png"):
        copy_object(f"{bucket}/portrait.png", full)


def test_inputs_may_be_mixed_and_named_twice(media, bucket):
    objects = list_objects([bucket, f"{bucket}/portrait.png", f"{bucket}/notes.txt", str(media)])
    names = [Path(shown(obj.uri)).name for obj in objects]
    assert names == ["talk ünï?%20#1.mp4", "notes.txt", "portrait.png", "torn.mp4"]
    files = list_files([bucket, f"file://{quote(str(media / 'portrait.png'))}"])
    assert files == [media / "portrait.png"]
    found, copies = distinct(files, None, objects)
    assert (len(found), copies) == (5, [])
    items = make_items(found, PreprocessConfig(inputs=["x"]))
    assert len({item["key"] for item in items}) == 5
    assert {item["identity_id"] for item in items} == {"portrait", "talk-n-20-1", "notes", "torn"}


def test_a_zip_of_photos_with_classes(tmp_path, object_store, photo_zip, temporary):  # noqa: F811
    uri = "s3://bucket/sets/set.zip"
    system, path = fs.FileSystem.from_uri(uri)
    with system.open_output_stream(path) as stream:
        stream.write(photo_zip.read_bytes())
    code, run = job(tmp_path, f"inputs=['{uri}']", "identity_from=label")
    assert code == 0
    rows = read_table(str(run / "clips"), "clips").to_pylist()
    assert {row["source_uri"].removeprefix(uri): row["status"] for row in rows} == {
        "!/00000/a.png": "ok",
        "!/00000/b.png": "ok",
        "!/00001/a.png": "ok",
        "!/00001/copy.png": "ok",
        "!/00001/torn.png": "decode_error",
        "!/00001/none.png": "no_face",
    }
    assert {row["identity_id"] for row in rows} == {"class-00003", "class-00007"}
    twins = [r["source_sha256"] for r in rows if r["source_uri"].endswith(("00/a.png", "copy.png"))]
    assert len(set(twins)) == 1, "the content's checksum, not the object's"
    assert list(temporary.iterdir()) == []


def test_the_pipeline_wants_a_mounted_person(repository):
    file = repository / "jobs" / "configs" / "pipeline" / "smoke.yaml"
    PipelineConfig.load(file, ["input=a.mp4", "extra_inputs=['s3://bucket/faces']"])
    with pytest.raises(ConfigError, match=r"input=s3://bucket/a\.mp4: must be a mounted file"):
        PipelineConfig.load(file, ["input=s3://bucket/a.mp4"])
