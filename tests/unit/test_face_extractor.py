import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from typer.testing import CliRunner

import nfs.face.extractor as extractor_module
from nfs.artifacts import Store, write_manifest
from nfs.artifacts.schemas import CLIPS, FRAMES
from nfs.cli import app
from nfs.face.extractor import KeypointExtractor
from tests.unit.face_fakes import SquareDetector, SquareLandmarks, face_points, picture

SIZE = (160, 240)


@pytest.fixture
def extractor(monkeypatch):
    monkeypatch.setattr(extractor_module, "build_detector", lambda *_: SquareDetector())
    monkeypatch.setattr(extractor_module, "build_landmarks", lambda *_: SquareLandmarks())
    return KeypointExtractor("cpu", detect_every=1)


def test_a_frame_without_a_face_repeats_the_last_points(extractor, tmp_path):
    faces = [[], [(60, 80, 40)], [], [(64, 80, 40)]]
    frames = [picture(SIZE, face) for face in faces]
    points = extractor.extract_keypoint(frames, tmp_path / "clip.mp4")
    assert points.shape == (4, 68, 2)
    assert np.all(points[0] == -1)
    assert np.array_equal(points[2], points[1])
    assert (points[3] - points[1]).mean(axis=0) == pytest.approx([4, 0])
    jaw = (points[1, 0] + points[1, 16]) / 2
    assert jaw[0] == pytest.approx(59.5)  # pixel centres, as the original counts
    written = np.loadtxt(tmp_path / "clip.txt")
    assert written.shape == (4 * 68 * 2,)
    assert np.allclose(written.reshape(points.shape), points)


def test_a_single_picture(extractor):
    frame = picture(SIZE, [(60, 80, 40)])
    points = extractor.extract_keypoint(frame)
    assert points.shape == (68, 2)
    assert np.array_equal(extractor.extract_keypoint(Image.fromarray(frame)), points)
    assert np.all(extractor.extract_keypoint(picture(SIZE, [])) == -1)


@pytest.fixture
def clips(tmp_path) -> str:
    matrix = np.array([[0.5, 0.0, -10.0], [0.0, 0.5, 4.0]])
    rows = [
        {
            "clip_id": clip_id,
            "frame_index": index,
            "landmarks_px": face_points((30 + index, 40), 20).ravel(),
            "crop_from_source": matrix.ravel(),
            "detection_score": 0.9,
            "status": "no_face" if index == 1 else "ok",
        }
        for clip_id in ("a-f00", "a-f01")
        for index in range(3)
    ]
    uri = str(tmp_path / "clips")
    store = Store(uri)
    store.write_table("frames/k.parquet", pa.Table.from_pylist(rows, schema=FRAMES))
    heads = [{"clip_id": clip_id, "status": "ok"} for clip_id in ("a-f00", "a-f01")]
    store.write_table("clips/k.parquet", pa.Table.from_pylist(heads, schema=CLIPS))
    write_manifest(uri, kind="clips", config={})
    return uri


def test_export_of_keypoints(clips, tmp_path):
    run = CliRunner().invoke
    done = run(app, ["artifact", "export-keypoints", clips, str(tmp_path / "txt")])
    assert (done.exit_code, done.stdout) == (0, "2 clips\n")
    points = np.loadtxt(tmp_path / "txt" / "a-f01.txt").reshape(3, 68, 2)
    crop = face_points((31, 40), 20)
    assert np.allclose(points[1] + 0.5, (crop + np.array([10, -4])) * 2, atol=1e-3)
    options = ["--format", "npz", "--space", "crop"]
    run(app, ["artifact", "export-keypoints", clips, str(tmp_path / "npz"), *options])
    with np.load(tmp_path / "npz" / "a-f00.npz") as found:
        assert np.allclose(found["landmarks"][1] + 0.5, crop, atol=1e-4)
        assert found["valid"].tolist() == [True, False, True]
        assert found["score"] == pytest.approx([0.9] * 3)
    wrong = run(app, ["artifact", "export-keypoints", clips, str(tmp_path), "--format", "xml"])
    assert wrong.exit_code != 0
