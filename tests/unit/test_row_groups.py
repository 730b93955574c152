"""Row groups from several threads: read once, bounded, errors not remembered."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest

from nfs.artifacts.row_groups import RowGroups
from nfs.artifacts.store import Store
from nfs.errors import ArtifactError


@pytest.fixture
def groups(tmp_path):
    store = Store(tmp_path)
    table = pa.table({"n": list(range(20)), "t": [f"t{i}" for i in range(20)], "x": [0] * 20})
    store.write_table("a.parquet", table, row_group_size=3)
    return RowGroups(store, ["a.parquet", "missing.parquet"], ["t", "n"], keep=2)


def test_many_threads_read_each_group_once_and_keep_two(groups, monkeypatch):
    reads = []
    original = groups._read
    monkeypatch.setattr(groups, "_read", lambda f, g: (reads.append(g), original(f, g))[1])
    with ThreadPoolExecutor(8) as pool:
        same = list(pool.map(lambda _: groups.rows(0, 1)[1], range(64)))
    assert same == [("t4", 4)] * 64
    assert reads == [1]
    with ThreadPoolExecutor(8) as pool:
        found = list(
            pool.map(lambda i: groups.rows(0, i // 3)[i % 3], [i % 20 for i in range(200)])
        )
    assert found == [(f"t{i % 20}", i % 20) for i in range(200)]
    assert len(groups) == 2


def test_an_error_is_raised_and_not_kept(groups):
    for _ in range(2):
        with pytest.raises(ArtifactError, match="missing"):
            groups.rows(1, 0)
    assert len(groups) == 0


def test_copies_start_empty(groups):
    groups.rows(0, 0)
    again = pickle.loads(pickle.dumps(groups))
    assert len(again) == 0
    assert again.rows(0, 6) == [("t18", 18), ("t19", 19)]
