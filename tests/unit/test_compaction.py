"""Compaction: same rows, same order, same id; killed after any step nothing is lost or double."""

import numpy as np
import pyarrow as pa
import pytest

import nfs.artifacts.compaction as compaction
from nfs.artifacts import Store, read_manifest, verify, write_manifest
from nfs.artifacts.compaction import compact
from nfs.artifacts.tables import clip_places, iter_files, read_clip, read_rows, read_table
from nfs.artifacts.unit_tables import UnitTables, drop_units
from nfs.artifacts.units import pending
from nfs.errors import ArtifactError

TABLES = ("clips", "frames")
FRAME_BYTES = 20_000


def add_units(uri, keys, *, clips_per_unit=1, frames=40):
    store, rng = Store(uri), np.random.default_rng(sum(map(ord, "".join(keys))))
    for key in keys:
        names = [f"{key}-{i}" for i in range(clips_per_unit)]
        rows = {
            "clip_id": [n for n in names for _ in range(frames)],
            "frame_index": list(range(frames)) * clips_per_unit,
            "image_jpeg": [rng.bytes(FRAME_BYTES) for _ in range(frames * clips_per_unit)],
        }
        store.write_table(f"frames/{key}.parquet", pa.table(rows))
        store.write_table(f"clips/{key}.parquet", pa.table({"clip_id": names}))


def complete(uri):
    return write_manifest(uri, kind="clips", config={"fps": 25})


@pytest.fixture
def artifact(tmp_path):
    uri = str(tmp_path / "clips")
    add_units(uri, [f"{i:02x}aa" for i in range(7)], clips_per_unit=2)
    complete(uri)
    return uri


def content(uri):
    return {name: read_table_raw(uri, name) for name in TABLES}


def read_table_raw(uri, name):
    return pa.concat_tables([table for _, table in iter_files(uri, name)]).combine_chunks()


def test_rows_order_and_id_stay(artifact):
    before, manifest = content(artifact), read_manifest(artifact)
    done = compact(artifact, shard_mb=4)
    assert content(artifact) == before
    assert read_manifest(artifact).id == manifest.id
    assert read_manifest(artifact).config == manifest.config
    assert verify(artifact) == []
    sizes = [Store(artifact).size_bytes(p) for p in Store(artifact).list("frames")]
    assert len(sizes) == 3
    assert all(4e6 <= size < 8e6 for size in sizes[:-1])
    assert (done.files_before, done.files_after) == (14, 4)
    assert compact(artifact, shard_mb=4).bytes_written == 0, "a second pass has nothing to do"


def test_readers_find_clips_in_shards(artifact):
    compact(artifact, shard_mb=4)
    places = {place.clip_id: place for place in clip_places(artifact, "frames")}
    assert len(places) == 14
    for clip_id in ("03aa-1", "06aa-0"):
        rows = read_rows(Store(artifact), places[clip_id], ["frame_index"])
        assert rows["frame_index"].to_pylist() == list(range(40))
        assert set(rows["clip_id"].to_pylist()) == {clip_id}
        same = read_clip(Store(artifact), places[clip_id].path, clip_id, ["frame_index"])
        assert same["frame_index"].to_pylist() == list(range(40))
    assert len(read_table(artifact, "frames", ["frame_index"], ["03aa-1"])) == 40
    units = UnitTables(artifact)
    assert units.read("clips", "05aa")["clip_id"].to_pylist() == ["05aa-0", "05aa-1"]
    assert pending([{"key": "05aa"}, {"key": "new"}], artifact, "clips") == [{"key": "new"}]


def test_row_groups_are_joined_but_stay_small(tmp_path):
    uri = str(tmp_path / "clips")
    add_units(uri, [f"{i:03d}" for i in range(30)], frames=10)
    complete(uri)
    compact(uri, shard_mb=1000)
    (path,) = Store(uri).list("frames")
    with Store(uri).open_parquet(path) as parquet:
        assert 5 <= parquet.num_row_groups < 10
    (path,) = Store(uri).list("clips")
    with Store(uri).open_parquet(path) as parquet:
        assert parquet.num_row_groups == 1


class Killed(BaseException):
    pass


def kill_at(monkeypatch, step):
    """Stop the process's writes and deletes at the `step`-th one, as SIGKILL would."""
    left = [step]

    def counted(real, self, *args, **kwargs):
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        return real(self, *args, **kwargs)

    for name in ("write_bytes", "delete", "open_output"):
        real = getattr(Store, name)
        monkeypatch.setattr(
            compaction.Store, name, lambda self, *a, real=real, **k: counted(real, self, *a, **k)
        )
    return left


@pytest.mark.parametrize("then", ["compact", "job"])
def test_killed_at_every_step(tmp_path, then):
    """After a kill readers see all rows once, and the next command ends as if nothing happened."""
    step, finished = 0, False
    while not finished:
        uri = str(tmp_path / str(step))
        add_units(uri, [f"{i:02x}aa" for i in range(3)])
        complete(uri)
        before, artifact_id = content(uri), read_manifest(uri).id
        with pytest.MonkeyPatch.context() as patch:
            left = kill_at(patch, step)
            try:
                compact(uri, shard_mb=1)
                finished = left[0] > 0
            except Killed:
                pass
        assert content(uri) == before
        assert UnitTables(uri).keys("frames") == {"00aa", "01aa", "02aa"}
        if then == "compact":
            compact(uri, shard_mb=1)
        else:
            complete(uri)
        assert content(uri) == before
        assert read_manifest(uri).id == artifact_id
        assert verify(uri) == []
        step += 1
    assert step > 8


def test_new_units_are_appended_and_large_shards_stay(artifact):
    compact(artifact, shard_mb=4)
    shards = Store(artifact).list("frames")
    add_units(artifact, ["000new"])
    second = complete(artifact)
    before = content(artifact)
    assert before["frames"]["clip_id"][-1].as_py() == "000new-0", "new units come last"
    compact(artifact, shard_mb=4)
    assert content(artifact) == before
    assert read_manifest(artifact).id == second.id
    assert Store(artifact).list("frames")[:2] == shards[:2]
    assert verify(artifact) == []


def test_dropped_units_leave_their_shards(artifact):
    compact(artifact, shard_mb=4)
    first = read_manifest(artifact)
    add_units(artifact, ["0new"])
    complete(artifact)
    drop_units(artifact, {"02aa", "0new"}, TABLES)
    assert UnitTables(artifact).keys("frames") == {f"{i:02x}aa" for i in (0, 1, 3, 4, 5, 6)}
    assert len(read_table_raw(artifact, "frames")) == 6 * 80
    assert read_manifest(artifact).id != first.id
    assert verify(artifact) == []


def test_columns_that_a_newer_version_added_are_null_in_old_rows(tmp_path):
    uri = str(tmp_path / "clips")
    store = Store(uri)
    store.write_table("clips/a.parquet", pa.table({"clip_id": ["a"]}))
    store.write_table("clips/b.parquet", pa.table({"clip_id": ["b"], "blur": [0.5]}))
    complete(uri)
    compact(uri)
    assert read_table_raw(uri, "clips").to_pydict() == {"clip_id": ["a", "b"], "blur": [None, 0.5]}


def test_other_kinds_are_refused(tmp_path):
    uri = str(tmp_path)
    Store(uri).write_bytes("weights.safetensors", b"")
    write_manifest(uri, kind="checkpoint", config={})
    with pytest.raises(ArtifactError, match="only clips and fits"):
        compact(uri)
    with pytest.raises(ArtifactError, match="not a complete artifact"):
        compact(str(tmp_path / "none"))


def test_memory_is_bounded_by_row_groups(tmp_path, monkeypatch):
    uri = str(tmp_path / "clips")
    add_units(uri, [f"{i:02d}" for i in range(10)], frames=100)
    complete(uri)
    most = []
    real = compaction.pa.concat_tables

    def spy(tables, **options):
        result = real(tables, **options)
        most.append(result.nbytes)
        return result

    monkeypatch.setattr(compaction, "pa", partial_module(compaction.pa, concat_tables=spy))
    compact(uri, shard_mb=100)
    assert max(most) < 3e6 < sum(most)


def partial_module(module, **changes):
    class View:
        def __getattr__(self, name):
            return changes.get(name) or getattr(module, name)

    return View()
