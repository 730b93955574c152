"""Odd and broken files among many clips, with the driver killed twice on the way."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from nfs.artifacts import read_manifest, verify
from nfs.artifacts.compaction import compact
from nfs.artifacts.tables import iter_clips, read_table
from nfs.media.images import decode_jpeg
from tests.killing import committed, finish, kill_when, run_directory, start
from tests.odd_media import FPS, ODD, VARIABLE_TIMES, OddMedia

pytestmark = pytest.mark.timeout(3600)

TINY = ["clip.crop_size_px=128"]
PATIENCE_S = 1800


def run_killed(repository: Path, folder: Path, storage: Path, count: int, kind: str) -> str:
    """Preprocess a folder with SIGKILL after a third and two thirds; return the artifact."""
    arguments = ("preprocess", storage, f"inputs=[{folder}]", f"launch.kind={kind}", *TINY)
    seen: dict[str, int] = {}
    for part in (count // 3, 2 * count // 3):
        kill_when(
            start(repository, *arguments),
            lambda part=part: len(committed(storage, "clips")) >= part,
            PATIENCE_S,
        )
        now = committed(storage, "clips")
        assert len(now) < count, "the kill came too late to prove anything"
        assert {name: now[name] for name in seen} == seen, "a finished file was done again"
        seen = now
    finish(start(repository, *arguments), PATIENCE_S)
    now = committed(storage, "clips")
    assert {name: now[name] for name in seen} == seen
    return str(run_directory(storage) / "clips")


def run_whole(repository: Path, folder: Path, storage: Path) -> str:
    arguments = ("preprocess", storage, f"inputs=[{folder}]", "launch.kind=local", *TINY)
    finish(start(repository, *arguments), PATIENCE_S)
    return str(run_directory(storage) / "clips")


def content(uri: str) -> dict[str, dict[str, str]]:
    """Table -> clip id -> checksum of the values of its rows."""
    found: dict[str, dict[str, str]] = {}
    for table in ("clips", "frames", "audio"):
        names = found[table] = {}
        for clip_id, rows in iter_clips(uri, table):
            assert clip_id not in names, f"{clip_id} is in {table} twice"
            names[clip_id] = hashlib.sha256(repr(rows.to_pylist()).encode()).hexdigest()
    return found


def check(uri: str, wanted: dict[str, str]) -> None:
    """Every good file is there once, every bad one with its reason."""
    rows = read_table(uri, "clips").to_pylist()
    names = [Path(row["source_uri"]).name for row in rows]
    assert sorted(names) == sorted(wanted)
    assert {n: row["status"] for n, row in zip(names, rows, strict=True)} == wanted
    bad = {name for name, status in wanted.items() if status != "ok"}
    quarantined = {Path(q.item).name: q.reason for q in read_manifest(uri).quarantined}
    assert quarantined.keys() == bad
    for name, word in {
        "fuzzed.mp4": "Invalid data", "zero_length.mp4": "Invalid data",
        "huge.png": "900000000 pixels", "loop.mp4": "symbolic links",
    }.items():  # fmt: skip
        assert word in quarantined[name]
    frames = read_table(uri, "frames", ["clip_id", "frame_index"]).to_pylist()
    assert len({(f["clip_id"], f["frame_index"]) for f in frames}) == len(frames)
    assert {f["clip_id"] for f in frames} == {r["clip_id"] for r in rows if r["status"] == "ok"}
    assert verify(uri) == []


def check_odd(uri: str, num_frames: int) -> None:
    """The odd but good ones were understood: turned upright, resampled, made RGB and 8 bits."""
    rows = read_table(uri, "clips").to_pylist()
    rows = {Path(row["source_uri"]).name: row for row in rows}
    assert not rows["no_audio.mp4"]["has_audio"]
    assert rows["clip_000.mp4"]["has_audio"]
    last = VARIABLE_TIMES[num_frames - 1]
    step = last - VARIABLE_TIMES[num_frames - 2]
    assert rows["variable_rate.mkv"]["num_frames"] == last + step
    assert rows["variable_rate.mkv"]["fps"] == FPS
    assert rows["sixteen_bit.png"]["num_frames"] == 1
    assert {rows[n]["num_frames"] for n in ("rotated.mp4", "grey.mp4")} == {num_frames}
    crops = {}
    for clip_id, table in iter_clips(uri, "frames", ["image_jpeg", "crop_from_source"]):
        crops[clip_id] = table.to_pylist()[0]
    for name in ("grey.mp4", "sixteen_bit.png"):
        image = decode_jpeg(crops[rows[name]["clip_id"]]["image_jpeg"]).astype(int)
        assert np.ptp(image, axis=2).max() <= 8, f"{name} has colours"
        assert 60 < image.mean() < 200, f"{name} lost its brightness"
    matrix = np.reshape(crops[rows["rotated.mp4"]["clip_id"]]["crop_from_source"], (2, 3))
    assert abs(np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0]))) < 20, "the face lies on its side"


def run_and_check(repository, source, folder: Path, count: int, kind: str) -> None:
    media = OddMedia(source)
    wanted = media.write(folder / "media", count)
    uri = run_killed(repository, folder / "media", folder / "killed", count, kind)
    check(uri, wanted)
    check_odd(uri, media.num_frames)
    whole = run_whole(repository, folder / "media", folder / "whole")
    assert content(uri) == content(whole)
    before = content(uri)
    compact(uri)
    assert content(uri) == before
    check(uri, wanted)


@pytest.fixture
def source(shared_dir) -> Path:
    return shared_dir / "data" / "clips" / "interview_512.mp4"


@pytest.mark.fault
def test_forty_files_killed_twice(repository, source, tmp_path):
    run_and_check(repository, source, tmp_path, 40, "local")


@pytest.mark.slow
def test_two_hundred_files_killed_twice_on_ray(repository, source, tmp_path):
    run_and_check(repository, source, tmp_path, 200, "ray")


def test_every_odd_kind_is_named():
    assert len(ODD) == 10
    assert sum(status != "ok" for status in ODD.values()) == 4
