"""The unit work of fit_3dmm and its job, on a small synthetic artifact."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch

from jobs._launch import run_command
from nfs.artifacts import Store, read_manifest, verify, write_manifest
from nfs.artifacts.schemas import CLIPS, FITS, FRAMES
from nfs.artifacts.tables import read_table
from nfs.config.fit_3dmm import ClipFitConfig, Fit3dmmConfig
from nfs.errors import ClipError, ConfigError
from nfs.media.images import decode_jpeg, encode_jpeg
from nfs.morphable.clip_fit import FitWork, spread_frames
from nfs.morphable.coefficients import Coefficients
from nfs.morphable.loading import load_model
from nfs.morphable.shading import posed_vertices, render, to_screen

SIZE = 96


def clip_rows(clip_id: str, status: str, frames: int) -> pa.Table:
    row = dict.fromkeys(CLIPS.names)
    row |= {"clip_id": clip_id, "status": status, "num_frames": frames, "fps": 25.0, "error": ""}
    return pa.Table.from_pylist([row], schema=CLIPS)


def frame_rows(clip_id: str, landmarks: np.ndarray, images: np.ndarray, status: list[str]):
    rows = [
        {
            "clip_id": clip_id,
            "frame_index": i,
            "time_s": i / 25,
            "image_jpeg": encode_jpeg(images[i]),
            "image_size_px": SIZE,
            "landmarks_px": np.nan * landmarks[i].ravel()
            if status[i] == "no_face"
            else landmarks[i].ravel(),
            "crop_from_source": np.zeros(6),
            "detection_score": 1.0,
            "status": status[i],
        }
        for i in range(len(landmarks))
    ]
    return pa.Table.from_pylist(rows, schema=FRAMES)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> str:
    """A turning head, a photo, nonsense landmarks, a clip without faces, an undecodable one."""
    uri = str(tmp_path_factory.mktemp("stage") / "clips")
    model, store = load_model(), Store(uri)
    coefficients = Coefficients.zeros(7)
    coefficients.rotation[:, 1] = torch.linspace(-0.3, 0.3, 7)
    shaded = render(model, coefficients, SIZE)
    images = (shaded.image.clamp(0, 1) * 255).byte().numpy()
    points = model.landmarks_of(posed_vertices(model, coefficients))
    landmarks = to_screen(points, SIZE)[..., :2].numpy()
    nonsense = np.random.default_rng(0).uniform(0, SIZE, landmarks.shape).astype(np.float32)
    ok = ["ok"] * 7
    tables = {
        "clip": frame_rows(
            "clip", landmarks, images, ["ok", "ok", "no_face", "ok", "ok", "ok", "ok"]
        ),
        "photo": frame_rows("photo", landmarks[:1], images[:1], ["ok"]),
        "wild": frame_rows("wild", nonsense, images, ok),
        "empty": frame_rows("empty", landmarks[:2], images[:2], ["no_face"] * 2),
    }
    for key, table in tables.items():
        store.write_table(f"frames/{key}.parquet", table, row_group_size=3)
        store.write_table(f"clips/{key}.parquet", clip_rows(key, "ok", len(table)))
    store.write_table("clips/broken.parquet", clip_rows("broken", "decode_error", 0))
    write_manifest(uri, kind="clips", config={})
    return uri


def item(key: str) -> dict[str, str]:
    return {"key": key, "clip_id": key, "path": f"frames/{key}.parquet"}


def test_work_returns_a_row_for_every_frame(clips, tmp_path):
    work = FitWork(clips, str(tmp_path), {"appearance_frames": 3, "sheet_frames": 4})
    table = work(item("clip"))["fits"]
    assert table.schema == FITS
    assert table["frame_index"].to_pylist() == list(range(7))
    assert table["status"].to_pylist() == ["ok", "ok", "no_face", "ok", "ok", "ok", "ok"]
    errors = table["nme_percent"].to_numpy()
    assert np.isnan(errors[2])
    assert np.nanmax(errors) < 1
    assert np.isfinite(table["photometric_l1"].to_numpy()).sum() == 3
    yaw = np.array(table["rotation_rad"].to_pylist())[:, 1]
    assert yaw == pytest.approx(np.linspace(-0.3, 0.3, 7), abs=0.05)
    sheet = decode_jpeg((tmp_path / "sheets" / "clip.png").read_bytes())
    assert sheet.shape == (6 * SIZE, 4 * SIZE, 3)


def test_a_photo_is_a_clip_of_one_frame(clips, tmp_path):
    table = FitWork(clips, str(tmp_path), {"sheet_frames": 0})(item("photo"))["fits"]
    assert len(table) == 1
    assert table["nme_percent"].to_numpy()[0] < 1
    assert not (tmp_path / "sheets").exists()


def test_the_photometric_stage_fills_texture_and_light(clips, tmp_path):
    stage = {"frames": 2, "joint_steps": 3, "image_size_px": 48}
    config = {"photometric": stage, "sheet_frames": 0}
    table = FitWork(clips, str(tmp_path), config)(item("clip"))["fits"]
    plain = FitWork(clips, str(tmp_path), {"sheet_frames": 0, "appearance_frames": 2})(item("clip"))
    assert np.isfinite(table["photometric_l1"].to_numpy()).sum() == 2
    for name in ("texture", "lighting", "identity"):
        values = np.array(table[name].to_pylist())
        assert values.any()
        assert (values == values[0]).all()
        assert not np.array_equal(values, np.array(plain["fits"][name].to_pylist()))


def test_bad_clips_are_refused_or_marked(clips, tmp_path):
    work = FitWork(clips, str(tmp_path), {"appearance_frames": 0})
    with pytest.raises(ClipError) as error:
        work(item("empty"))
    assert error.value.status == "no_face"
    assert set(work(item("wild"))["fits"]["status"].to_pylist()) == {"poor_fit"}
    failure = work.failure(item("empty"), "no_face", "none of 2 frames")["fits"]
    assert failure["frame_index"].to_pylist() == [-1]
    assert failure["status"].to_pylist() == ["no_face"]


def test_the_job_writes_a_fits_artifact(clips, tmp_path, capsys):
    schema = "nfs.config.fit_3dmm:Fit3dmmConfig"
    file = tmp_path / "fit.yaml"
    file.write_text(
        f"clips: {clips}\nstorage: {tmp_path}\nlaunch: {{kind: local}}\n"
        "tracking: {kind: jsonl}\nfit: {appearance_frames: 2, sheet_frames: 2}\n"
    )
    assert run_command("fit_3dmm", schema, [str(file), "max_failed_fraction=0.4"]) == 2
    assert "have no good fit" in capsys.readouterr().err
    arguments = [str(file), "max_failed_fraction=0.6", "--run-name", "second"]
    assert run_command("fit_3dmm", schema, arguments) == 0
    fits = str(tmp_path / "second" / "fits")
    manifest = read_manifest(fits, kind="fits")
    model = load_model()
    assert verify(fits) == []
    assert manifest.extra == {"model": "open_head", "model_checksum": model.checksum}
    assert manifest.counts == {
        "clips": 3, "poor_clips": 1, "failed_clips": 1, "skipped_clips": 1, "frames": 15,
    }  # fmt: skip
    reasons = {entry.item: entry.reason for entry in manifest.quarantined}
    assert set(reasons) == {"empty", "broken"}
    assert reasons["broken"] == "skipped: decode_error"
    assert len(read_table(fits, "fits", clip_ids=["clip"])) == 7
    result = json.loads((tmp_path / "second" / "result.json").read_text())
    assert result["metrics"]["fit/nme_median_percent"] < 1


def test_settings_are_checked():
    assert Fit3dmmConfig(clips="x").fit == ClipFitConfig()
    for wrong, message in (
        ({"landmarks": {"iterations": 2}}, "leaves nothing"),
        ({"landmarks": {"segment_frames": 64, "segment_overlap": 40}}, "more than half"),
        ({"max_median_nme_percent": 0}, "greater than 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            Fit3dmmConfig.from_tree({"clips": "x", "fit": wrong})


def test_spread_frames_are_usable_and_even():
    usable = torch.ones(20, dtype=torch.bool)
    usable[5:15] = False
    assert spread_frames(usable, 4) == [0, 3, 16, 19]
    assert spread_frames(usable, 100) == [*range(5), *range(15, 20)]
    assert spread_frames(usable, 0) == []
