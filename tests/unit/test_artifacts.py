import hashlib
import json
import os
import threading
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import nfs.artifacts.manifest as manifest_module
from nfs.artifacts import Store, read_manifest, verify, write_manifest
from nfs.artifacts.tables import iter_clips, read_table
from nfs.artifacts.units import MAX_DEATHS, MAX_DEATHS_EVER, UnitStage, run_units_here
from nfs.config.base import LaunchConfig
from nfs.errors import ArtifactError, InputError
from nfs.runtime import run_units
from tests.toy import EchoWork

LOCAL = LaunchConfig(kind="local")


def items(*paths, **extra):
    return [{"key": f"{i:04d}", "path": p, **extra} for i, p in enumerate(paths)]


def test_store_round_trip_and_no_temporary_left(tmp_path):
    store = Store(tmp_path)
    store.write_bytes("a/b.bin", b"one")
    store.write_bytes("a/b.bin", b"two")
    assert store.read_bytes("a/b.bin") == b"two"
    assert store.list(recursive=True) == ["a/b.bin"]
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["b.bin"]


def test_old_temporaries_of_killed_writers_are_deleted(tmp_path):
    old, young = tmp_path / "a" / ".x.bin.1.tmp", tmp_path / "a" / ".x.bin.2.tmp"
    old.parent.mkdir()
    for file in (old, young):
        file.write_bytes(b"half")
    os.utime(old, (1, 1))
    Store(tmp_path).write_bytes("a/x.bin", b"whole")
    manifest = write_manifest(str(tmp_path), kind="clips", config={})
    assert [entry.path for entry in manifest.files] == ["a/x.bin"]
    assert young.exists()
    assert not old.exists()


def test_files_are_hashed_side_by_side_and_listed_in_order(tmp_path, monkeypatch):
    for name in "abcd":
        Store(tmp_path).write_bytes(f"{name}.bin", name.encode())
    together, entry_of = threading.Barrier(4, timeout=20), manifest_module.file_entry

    def waiting(store, path):
        together.wait()  # passes only when four threads are here
        return entry_of(store, path)

    monkeypatch.setattr(manifest_module, "file_entry", waiting)
    manifest = write_manifest(str(tmp_path), kind="clips", config={})
    assert [entry.path for entry in manifest.files] == ["a.bin", "b.bin", "c.bin", "d.bin"]
    assert [entry.sha256 for entry in manifest.files] == [
        hashlib.sha256(name.encode()).hexdigest() for name in "abcd"
    ]


def test_store_refuses_to_leave_its_root(tmp_path):
    with pytest.raises(ValueError, match="leaves the store"):
        Store(tmp_path).write_bytes("../x", b"")


def test_store_names_what_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"file/x: cannot be written.*storage"):
        Store(tmp_path).write_bytes("file/x", b"")


def test_manifest_completes_and_verifies(tmp_path):
    Store(tmp_path).write_table("clips/0.parquet", pa.table({"clip_id": ["a"]}))
    with pytest.raises(ArtifactError, match="not a complete artifact"):
        read_manifest(str(tmp_path))
    first = write_manifest(str(tmp_path), kind="clips", config={"a": 1}, counts={"clips": 1})
    assert (
        write_manifest(str(tmp_path), kind="clips", config={"a": 1}, counts={"clips": 1}) == first
    )
    assert verify(str(tmp_path)) == []
    with pytest.raises(ArtifactError, match="holds 'clips', need 'fits'"):
        read_manifest(str(tmp_path), kind="fits")


def test_verify_finds_damage(tmp_path):
    store = Store(tmp_path)
    store.write_bytes("x.bin", b"abc")
    store.write_bytes("y.bin", b"abc")
    write_manifest(str(tmp_path), kind="clips", config={})
    store.write_bytes("x.bin", b"abd")
    store.delete("y.bin")
    store.write_bytes("z.bin", b"")
    problems = "; ".join(verify(str(tmp_path)))
    assert "x.bin: content differs" in problems
    assert "y.bin: missing" in problems
    assert "z.bin: not in the manifest" in problems


def test_damaged_manifest_is_an_artifact_error(tmp_path):
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match="damaged"):
        read_manifest(str(tmp_path))


def test_units_every_fate_is_recorded(tmp_path):
    uri = str(tmp_path / "out")
    work = items("a", "bad", "flaky", "broken", once=str(tmp_path / "once"))
    report = run_units(work, EchoWork, uri, LOCAL, primary="rows")
    assert report.ok == ["0000", "0002"]
    assert report.failed == {
        "0001": "no_face: no face in any frame",
        "0003": "error: RuntimeError: always",
    }
    write_manifest(uri, kind="rows", config={})
    status = {c: t["status"][0].as_py() for c, t in iter_clips(uri, "rows")}
    assert status == {"a": "ok", "bad": "no_face", "flaky": "ok", "broken": "error"}
    assert read_table(uri, "detail", ["value"], ["flaky"])["value"].to_pylist() == [0, 1, 2]
    assert Store(uri).list("inflight") == []
    assert Store(uri).list("failed") == []


def test_workers_hash_what_they_wrote(tmp_path, monkeypatch):
    uri = str(tmp_path / "out")
    work = items("a", "bad", "broken", once=str(tmp_path / "once"))
    report = run_units(work, EchoWork, uri, LOCAL, primary="rows")
    Store(uri).write_bytes("card.html", b"more")
    assert sorted(report.written) == [
        "detail/0000.parquet", "rows/0000.parquet", "rows/0001.parquet", "rows/0002.parquet",
    ]  # fmt: skip
    monkeypatch.setattr(manifest_module, "new_id", lambda kind: f"{kind}-0")
    plain = write_manifest(uri, kind="rows", config={})
    assert verify(uri) == []
    written = Store(uri).read_bytes("manifest.json")
    Store(uri).delete("manifest.json")
    hashed, entry_of = [], manifest_module.file_entry
    monkeypatch.setattr(
        manifest_module, "file_entry", lambda s, path: hashed.append(path) or entry_of(s, path)
    )
    again = write_manifest(uri, kind="rows", config={}, known=report.written)
    assert hashed == ["card.html"]
    assert again.files == plain.files
    stamp = plain.created_at.encode(), again.created_at.encode()
    assert Store(uri).read_bytes("manifest.json") == written.replace(*stamp)


def test_units_second_run_repeats_nothing(tmp_path):
    log, uri = tmp_path / "log", str(tmp_path / "out")
    make = partial(EchoWork, str(log))
    run_units(items("a", "bad", "c"), make, uri, LOCAL, primary="rows")
    report = run_units(items("a", "bad", "c", "d"), make, uri, LOCAL, primary="rows")
    assert log.read_text().split() == ["a", "bad", "c", "d"]
    assert report.ok == ["0003"]
    assert sorted(report.skipped) == ["0000", "0001", "0002"]


def test_unit_that_kills_its_worker_is_given_up(tmp_path):
    store = Store(tmp_path)
    mark = {"ever": MAX_DEATHS, "s1": MAX_DEATHS}
    store.write_bytes("inflight/0000.json", json.dumps(mark).encode())
    result = UnitStage(str(tmp_path), EchoWork, "s1").run_one(items("a")[0])
    assert result["status"] == "failed"
    assert "worker_died" in result["error"]


def test_marks_of_killed_jobs_do_not_condemn_a_unit(tmp_path):
    store = Store(tmp_path)
    mark = {"ever": MAX_DEATHS_EVER - 1, "old": MAX_DEATHS}
    store.write_bytes("inflight/0000.json", json.dumps(mark).encode())
    assert UnitStage(str(tmp_path), EchoWork, "new").run_one(items("a")[0])["status"] == "ok"


def test_torn_primary_is_not_committed(tmp_path):
    store = Store(tmp_path)
    store.write_table("detail/0000.parquet", pa.table({"clip_id": ["half"]}))
    report = run_units_here(items("a"), EchoWork, str(tmp_path), lambda _: None)
    assert report.ok == ["0000"]
    assert pq.read_table(tmp_path / "detail" / "0000.parquet")["clip_id"].to_pylist() == ["a"] * 3


def test_store_error_stops_the_stage(tmp_path):
    (tmp_path / "rows").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        run_units_here(items("a"), EchoWork, str(tmp_path), lambda _: None)
