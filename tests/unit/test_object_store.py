"""Artifacts on an S3-compatible server in this process, on loopback."""

import numpy as np
import pyarrow as pa
import pytest

import nfs.artifacts.compaction as compaction
import nfs.face.clip as clip_module
from jobs._launch import run_command
from jobs._run_directory import artifact_ids
from nfs.artifacts import Store, read_manifest, verify, write_manifest
from nfs.artifacts.compaction import compact
from nfs.artifacts.tables import iter_files, read_table
from nfs.artifacts.units import run_units_here
from nfs.errors import InputError
from nfs.media import VideoWriter
from nfs.runtime.state_mirror import StateMirror
from tests.toy import EchoWork
from tests.unit.face_fakes import SquareDetector, SquareLandmarks, picture

SIZE = (160, 240)


@pytest.fixture
def uri(object_store, request):
    return f"s3://bucket/{request.node.name}"


def test_files_come_back_and_nothing_else_is_there(uri):
    store = Store(uri)
    store.write_bytes("a/b.bin", b"one")
    store.write_bytes("a/b.bin", b"three")
    assert store.read_bytes("a/b.bin") == b"three"
    assert (store.size_bytes("a/b.bin"), store.exists("a"), store.exists("c")) == (5, False, False)
    assert store.list(recursive=True) == ["a/b.bin"]
    assert store.list("none") == []
    store.delete("a/b.bin")
    store.delete("a/b.bin")
    assert store.list(recursive=True) == []
    with pytest.raises(InputError, match="needs a local or mounted path"):
        store.local_path()


def test_a_stage_commits_and_resumes(uri):
    items = [{"key": f"{i:04d}", "path": path} for i, path in enumerate(("a", "bad", "b"))]
    report = run_units_here(items, EchoWork, uri, lambda _: None)
    assert (report.ok, list(report.failed)) == (["0000", "0002"], ["0001"])
    assert run_units_here(items, EchoWork, uri, lambda _: None).ok == []
    first = write_manifest(uri, kind="rows", config={})
    assert write_manifest(uri, kind="rows", config={}) == first
    assert verify(uri) == []
    assert artifact_ids([uri]) == {uri: first.id}


def test_compaction_on_an_object_store(uri, monkeypatch):
    rng = np.random.default_rng(0)
    store = Store(uri)
    for key in ("a", "b", "c"):
        rows = {"clip_id": [key] * 40, "image_jpeg": [rng.bytes(60_000) for _ in range(40)]}
        store.write_table(f"frames/{key}.parquet", pa.table(rows))
    write_manifest(uri, kind="clips", config={})
    before = [table for _, table in iter_files(uri, "frames")]

    def torn(*args, **options):
        raise RuntimeError("out of luck")

    with monkeypatch.context() as patch:  # the upload of a shard breaks off
        patch.setattr(compaction.pq.ParquetWriter, "write_table", torn)
        with pytest.raises(RuntimeError, match="out of luck"):
            compact(uri)
    assert [table for _, table in iter_files(uri, "frames")] == before
    compact(uri, shard_mb=100)
    assert verify(uri) == []
    assert len(store.list("frames")) == 1
    assert pa.concat_tables([t for _, t in iter_files(uri, "frames")]) == pa.concat_tables(before)


def job(name, schema, config, *overrides):
    config.write_text("launch: {kind: local}\ntracking: {kind: jsonl}\n")
    return run_command(name, schema, [str(config), *overrides, "--run-name", "r"])


def test_preprocess_and_fit_write_there_and_read_back(uri, tmp_path, monkeypatch):
    monkeypatch.setattr(clip_module, "build_detector", lambda *_: SquareDetector())
    monkeypatch.setattr(clip_module, "build_landmarks", lambda *_: SquareLandmarks())
    for clip in range(2):
        with VideoWriter(tmp_path / f"{clip}.mp4", 25, SIZE, audio=(np.zeros(6400), 16000)) as w:
            for index in range(6):
                w.write(picture(SIZE, [(60 + index, 80 + clip, 40)]))
    (tmp_path / "torn.mp4").write_bytes((tmp_path / "0.mp4").read_bytes()[:900])
    places = [f"storage={tmp_path}/runs", f"artifacts={uri}", "shard_mb=64"]
    preprocess = (
        "preprocess", "nfs.config.preprocess:PreprocessConfig", tmp_path / "p.yaml",
        f"inputs=[{tmp_path}/*.mp4]", "clip.crop_size_px=64", *places,
    )  # fmt: skip
    assert job(*preprocess) == 0
    clips = f"{uri}/r/clips"
    first = read_manifest(clips, "clips")
    assert verify(clips) == []
    assert first.counts["clips_ok"] == 2
    assert read_table(clips, "frames").num_rows == 12
    assert [path for path in Store(clips).list("frames") if "shard-" not in path] == []
    assert job(*preprocess) == 0
    assert read_manifest(clips).id == first.id, "the second run found everything done"
    fit = (
        "fit_3dmm", "nfs.config.fit_3dmm:Fit3dmmConfig", tmp_path / "f.yaml", f"clips={clips}",
        "max_failed_fraction=1", "fit.sheet_frames=1", *places[1:], f"storage={tmp_path}/fits",
    )  # fmt: skip
    assert job(*fit) == 0
    fits = f"{uri}/r/fits"
    assert verify(fits) == []
    assert read_manifest(fits, "fits").parents == [first.id]
    assert read_table(fits, "fits").num_rows == 12
    assert not (tmp_path / "fits" / "r" / "fits").exists()
    assert job(*fit) == 0


def test_what_is_no_storage_is_said_or_ignored():
    with pytest.raises(InputError, match="no storage that pyarrow knows"):
        Store("http://127.0.0.1:5000")
    assert artifact_ids(["http://127.0.0.1:5000", "sqlite:///x.db"]) == {}


def test_states_of_a_training_come_back_from_the_server(uri, tmp_path):
    states = StateMirror(uri)
    for number in range(3):
        folder = tmp_path / str(number)
        (folder / "part").mkdir(parents=True)
        (folder / "part" / "state.pt").write_bytes(bytes([number]) * 5)
        (folder / "metrics.json").write_text("{}")
        states.put(number, folder, keep=2)
    assert states.numbers() == [1, 2]
    states.get(2, tmp_path / "back")
    assert (tmp_path / "back" / "part" / "state.pt").read_bytes() == bytes([2]) * 5
    assert not any(name.startswith("000000/") for name in Store(uri).list(recursive=True))
