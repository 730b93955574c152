"""Clips to StyleGAN's zip and back; camera labels."""

import json
import zipfile

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from nfs.artifacts import write_manifest
from nfs.artifacts.export_photos import export_zip
from nfs.artifacts.schemas import CLIPS, FITS, FRAMES
from nfs.artifacts.store import Store
from nfs.cli import app
from nfs.config.train_stylenerf import TrainStylenerfConfig
from nfs.errors import ArtifactError, InputError
from nfs.media.images import encode_png
from nfs.stylenerf.image_builders import open_images


def rows(schema: pa.Schema, values: list[dict]) -> pa.Table:
    blank = dict.fromkeys(schema.names)
    return pa.Table.from_pylist([blank | value for value in values], schema=schema)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Three clips of two people, 40 frames each; every fourth frame has no face."""
    uri = str(tmp_path_factory.mktemp("clips"))
    store = Store(uri)
    for clip, (person, split) in enumerate([("zoe", "train"), ("ann", "train"), ("zoe", "val")]):
        frames = [
            {
                "clip_id": f"c{clip}",
                "frame_index": i,
                "image_jpeg": encode_png(np.full((16, 16, 3), 50 * clip + i, np.uint8)),
                "status": "no_face" if i % 4 == 3 else "ok",
            }
            for i in range(40)
        ]
        row = {"clip_id": f"c{clip}", "identity_id": person, "split": split, "status": "ok"}
        store.write_table(f"frames/c{clip}.parquet", rows(FRAMES, frames))
        store.write_table(f"clips/c{clip}.parquet", rows(CLIPS, [row]))
    write_manifest(uri, kind="clips", config={})
    return uri


@pytest.fixture(scope="module")
def fits(tmp_path_factory):
    uri = str(tmp_path_factory.mktemp("fits"))
    frames = [
        {
            "clip_id": "c0",
            "frame_index": i,
            "rotation_rad": [0.0, 0.1 * i, 0.0],
            "status": "poor_fit" if i == 2 else "ok",
        }
        for i in range(10)
    ]
    Store(uri).write_table("fits/c0.parquet", rows(FITS, frames))
    write_manifest(uri, kind="fits", config={})
    return uri


def test_identities_round_trip(tmp_path, clips):
    done = export_zip(clips, tmp_path / "a.zip", resolution=16)
    assert (done.num_photos, done.num_identities, done.num_without_label) == (90, 2, 0)
    data = {"kind": "zip", "path": str(tmp_path / "a.zip"), "labels": True, "mirror": False}
    config = TrainStylenerfConfig.from_tree({"data": data})
    found = open_images(config.data, resolution=16, seed=0)
    facts = json.loads(zipfile.ZipFile(tmp_path / "a.zip").read("dataset.json"))
    assert facts["identities"] == ["ann", "zoe"]
    assert found.source.name(0) == "00000/img00000000.png"
    for i in (0, 1, 29, 30, 60, 89):
        name, clip_id, frame = facts["frames"][i]
        assert name == found.source.name(i)
        value = 50 * int(clip_id[1]) + frame
        assert frame % 4 != 3
        assert (found.pixels(i) == value).all()
        assert found.label(i).tolist() == ([1, 0] if clip_id == "c1" else [0, 1])
    # What clips themselves give as labels is the same.
    direct = TrainStylenerfConfig.from_tree({"clips": clips, "data": {"labels": True}})
    labels = open_images(direct.data, resolution=16, seed=0).labels
    assert labels.tolist() == [label for _, label in facts["labels"]]


def test_selection_and_resolution(tmp_path, clips):
    done = export_zip(clips, tmp_path / "a.zip", resolution=8, split="train", max_frames_per_clip=3)
    assert (done.num_photos, done.num_identities) == (6, 2)
    names = zipfile.ZipFile(tmp_path / "a.zip").namelist()
    assert len(names) == 7
    export_zip(clips, tmp_path / "c.zip", resolution=8, split="train", max_frames_per_clip=3)
    assert (tmp_path / "c.zip").read_bytes() == (tmp_path / "a.zip").read_bytes()
    with pytest.raises(InputError, match="resolution=12 is not a power of two"):
        export_zip(clips, tmp_path / "b.zip", resolution=12)
    with pytest.raises(InputError, match=r"ends in \.zip"):
        export_zip(clips, tmp_path / "b", resolution=8)
    with pytest.raises(ArtifactError, match="no usable frame in split 'test'"):
        export_zip(clips, tmp_path / "b.zip", resolution=8, split="test")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "c.zip"]


def test_camera_labels_are_eg3d_cameras(tmp_path, clips, fits):
    target = tmp_path / "a.zip"
    run = CliRunner().invoke(
        app, ["artifact", "export-zip", clips, str(target), "--resolution", "16", "--fits", fits]
    )
    assert run.exit_code == 0, run.output
    facts = json.loads(zipfile.ZipFile(target).read("dataset.json"))
    frames = [frame for _, clip_id, frame in facts["frames"] if clip_id == "c0"]
    assert frames == [0, 1, 4, 5, 6, 8, 9]
    assert "labels: cameras\n83 frames without a good fit left out" in run.output
    label = np.asarray(facts["labels"][0][1])
    frontal = [1, 0, 0, 0, 0, -1, 0, 0, 0, 0, -1, 2.7, 0, 0, 0, 1]
    assert label[:16] == pytest.approx(frontal, abs=1e-6)
    assert label[16:] == pytest.approx([4.2647, 0, 0.5, 0, 4.2647, 0.5, 0, 0, 1])
    turned = np.asarray(facts["labels"][4][1])[:16].reshape(4, 4)
    # The head turns to the image's right by 0.6: the camera sees it from its other side.
    assert turned[:3, 3] == pytest.approx([-2.7 * np.sin(0.6), 0, 2.7 * np.cos(0.6)], abs=1e-5)
    assert -turned[:3, 2] * 2.7 == pytest.approx(turned[:3, 3], abs=1e-5)


def test_frames_are_read_a_few_at_a_time(tmp_path, clips, monkeypatch):
    import nfs.artifacts.export_photos as module

    sizes = []
    original = module.decode_jpeg
    monkeypatch.setattr(module, "decode_jpeg", lambda d: (sizes.append(len(d)), original(d))[1])
    monkeypatch.setattr(module, "_ROWS", 7)
    assert export_zip(clips, tmp_path / "a.zip", resolution=16).num_photos == len(sizes) == 90
