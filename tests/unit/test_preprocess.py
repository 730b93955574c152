"""The job in one process, with synthetic faces."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import nfs.artifacts.manifest as manifest_module
import nfs.face.clip as clip_module
import nfs.face.sources as sources
from jobs._launch import run_command
from nfs.artifacts import read_manifest, verify
from nfs.artifacts.tables import read_table
from nfs.config.preprocess import PreprocessConfig
from nfs.errors import InputError
from nfs.face.sources import distinct, list_files, make_items, split_of
from nfs.media import VideoWriter
from nfs.media.video import VideoInfo
from tests.media import huge_video
from tests.unit.face_fakes import SquareDetector, SquareLandmarks, picture

SIZE = (160, 240)
SCHEMA = "nfs.config.preprocess:PreprocessConfig"


@pytest.fixture(autouse=True)
def synthetic_faces(monkeypatch):
    monkeypatch.setattr(clip_module, "build_detector", lambda *_: SquareDetector())
    monkeypatch.setattr(clip_module, "build_landmarks", lambda *_: SquareLandmarks())


@pytest.fixture
def media(tmp_path) -> Path:
    folder = tmp_path / "media"
    (folder / "anna").mkdir(parents=True)
    with VideoWriter(folder / "anna" / "talk.mp4", 25, SIZE, audio=(np.zeros(6400), 16000)) as w:
        for index in range(10):
            w.write(picture(SIZE, [(60 + index, 80, 40)]))
    Image.fromarray(picture(SIZE, [(100, 80, 40)])).save(folder / "portrait.png")
    (folder / "copy of portrait.png").write_bytes((folder / "portrait.png").read_bytes())
    (folder / "torn.mp4").write_bytes((folder / "anna" / "talk.mp4").read_bytes()[:900])
    (folder / "notes.txt").write_text("no media")
    return folder


def job(tmp_path: Path, *overrides: str) -> tuple[int, Path]:
    config = tmp_path / "c.yaml"
    config.write_text("clip: {crop_size_px: 64}\nlaunch: {kind: local}\ntracking: {kind: jsonl}\n")
    arguments = [str(config), *overrides, f"storage={tmp_path / 'runs'}", "--run-name", "r"]
    return run_command("preprocess", SCHEMA, arguments), tmp_path / "runs" / "r"


def test_job_writes_a_complete_artifact(tmp_path, media):
    code, run = job(tmp_path, f"inputs=[{media}]")
    assert code == 0
    uri = str(run / "clips")
    manifest = read_manifest(uri, "clips")
    assert verify(uri) == []
    counts = manifest.counts
    assert (counts["clips"], counts["clips_ok"], counts["clips_bad"]) == (3, 2, 1)
    assert (counts["duplicates"], counts["frames"]) == (1, 11)
    assert [Path(q.item).name for q in manifest.quarantined] == ["torn.mp4"]
    assert manifest.quarantined[0].reason.startswith("decode_error: ")
    clips = {row["status"]: row for row in read_table(uri, "clips").to_pylist()}
    assert set(clips) == {"ok", "decode_error"}
    assert read_table(uri, "frames").num_rows == 11
    result = json.loads((run / "result.json").read_text())
    assert result["metrics"]["preprocess/clips_ok"] == 2
    assert result["artifacts"]["clips"] == uri
    assert list((run / "tracking").rglob("*contact_sheet*"))


def test_the_driver_hashes_no_tables(tmp_path, media, monkeypatch):
    hashed, entry_of = [], manifest_module.file_entry
    monkeypatch.setattr(
        manifest_module, "file_entry", lambda s, path: hashed.append(path) or entry_of(s, path)
    )
    code, run = job(tmp_path, f"inputs=[{media}]")
    assert code == 0
    assert hashed == ["card.html"]
    assert verify(str(run / "clips")) == []


def test_running_again_does_only_what_is_new(tmp_path, media, monkeypatch):
    assert job(tmp_path, f"inputs=[{media}]")[0] == 0
    before = read_manifest(str(tmp_path / "runs" / "r" / "clips"))
    done = []
    whole = clip_module.ClipWork.__call__
    monkeypatch.setattr(
        clip_module.ClipWork, "__call__", lambda self, item: done.append(item) or whole(self, item)
    )
    assert job(tmp_path, f"inputs=[{media}]")[0] == 0
    assert done == []
    assert read_manifest(str(tmp_path / "runs" / "r" / "clips")).id == before.id
    Image.fromarray(picture(SIZE, [(110, 80, 44)])).save(media / "new.png")
    (media / "portrait.png").unlink()
    (media / "copy of portrait.png").unlink()
    assert job(tmp_path, f"inputs=[{media}]")[0] == 0
    assert [item["identity_id"] for item in done] == ["new"]
    rows = read_table(str(tmp_path / "runs" / "r" / "clips"), "clips").to_pylist()
    names = sorted(Path(row["source_uri"]).name for row in rows)
    assert names == ["new.png", "talk.mp4", "torn.mp4"]


def test_bad_input_fails_with_code_2(tmp_path, media, capsys):
    assert job(tmp_path, f"inputs=[{media / 'none.mp4'}]")[0] == 2
    assert "none.mp4: no such file" in capsys.readouterr().err


def test_only_bad_clips_fail_with_their_reasons(tmp_path, media, capsys):
    code, run = job(tmp_path, f"inputs=[{media / 'torn.mp4'}, {media / 'notes.txt'}]")
    assert code == 2
    text = capsys.readouterr().err
    assert "2 of 2 files are unusable" in text
    assert "torn.mp4" in text
    assert "notes.txt" in text
    assert len(read_manifest(str(run / "clips")).quarantined) == 2


def test_a_huge_video_is_quarantined_by_its_header(tmp_path, media):
    huge_video(media / "huge.avi", 12_000)
    code, run = job(tmp_path, f"inputs=[{media}]")
    assert code == 0
    reasons = {Path(q.item).name: q.reason for q in read_manifest(str(run / "clips")).quarantined}
    assert set(reasons) == {"huge.avi", "torn.mp4"}
    assert reasons["huge.avi"].startswith("decode_error: ")
    assert "12000 x 12000 pixels" in reasons["huge.avi"]
    assert "clip.max_frame_pixels" in reasons["huge.avi"]


def test_bad_fraction_limit(tmp_path, media):
    assert job(tmp_path, f"inputs=[{media}]", "max_bad_fraction=0.3")[0] == 2


def test_files_are_sorted_distinct_and_filtered(media):
    names = [path.name for path in list_files([str(media), str(media / "portrait.png")])]
    assert names == ["talk.mp4", "copy of portrait.png", "portrait.png", "torn.mp4"]
    assert [p.name for p in list_files([str(media / "**" / "*.mp4")])] == ["talk.mp4", "torn.mp4"]
    found, copies = distinct(list_files([str(media)]))
    assert len(found) == 3
    assert [Path(copy["item"]).name for copy in copies] == ["portrait.png"]
    with pytest.raises(InputError, match="no picture or video"):
        list_files([str(media / "*.avi")])


def test_keys_depend_on_content_and_clip_settings_only(media):
    found, _ = distinct(list_files([str(media)]))

    def keys(**settings):
        items = make_items(found, PreprocessConfig(inputs=["x"], **settings))
        return [item["key"] for item in items]

    assert keys() == keys(storage="elsewhere", val_fraction=0.5)
    assert set(keys()).isdisjoint(keys(clip={"fps": 12}))
    items = make_items(found, PreprocessConfig(inputs=["x"], identity_from="folder"))
    assert [item["identity_id"] for item in items] == ["anna", "media", "media"]
    assert len({item["clip_id"] for item in items}) == 3


def test_long_videos_become_equal_parts(media, monkeypatch):
    def long_video(_path, **_options):
        return VideoInfo(240, 160, 25.0, 130.0, has_audio=True, rotation_deg=0, is_photo=False)

    monkeypatch.setattr(sources, "probe", long_video)
    found, _ = distinct([media / "anna" / "talk.mp4"])
    items = make_items(found, PreprocessConfig(inputs=["x"], max_clip_s=60))
    assert [(item["start_s"], item["end_s"]) for item in items] == [(0.0, 65.0), (65.0, None)]
    assert [item["clip_id"][-4:] for item in items] == ["-000", "-001"]
    assert len({item["key"] for item in items}) == 2
    assert len({item["identity_id"] for item in items}) == 1


def test_split_is_stable_and_about_the_wanted_fraction():
    splits = [split_of(f"person {index}", 0.2) for index in range(1000)]
    assert 0.15 < splits.count("val") / 1000 < 0.25
    assert split_of("a", 0.0) == "train"
    assert [split_of("person 7", f) for f in (0.2, 0.2)] == [splits[7]] * 2
