import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch

from nfs.artifacts import Store, write_manifest
from nfs.artifacts.schemas import AUDIO, CLIPS, FITS
from nfs.audio.augment import Augmentation
from nfs.audio.baselines import fit_reference_map, fit_ridge
from nfs.audio.builders import load_checkpoint, train_worker
from nfs.audio.clip_index import ClipReader, index_clips
from nfs.audio.dataset import SpeechWindows, held_out_runs, split_clips
from nfs.audio.evaluation import evaluate_baselines
from nfs.audio.face_basis import (
    FaceBasis,
    direct_teacher,
    displace,
    eye_aspect,
    lip_gap_mm,
    load_face_basis,
    raw_teacher,
    save_face_basis,
)
from nfs.audio.losses import LossWeights, audio2exp_loss, lip_vertex_error_mm
from nfs.audio.mel import melspectrogram
from nfs.audio.plots import line_plot
from nfs.audio.search import search_trial
from nfs.config.train_audio2exp import TrainAudio2expConfig
from nfs.errors import ArtifactError, ConfigError, InputError
from nfs.runtime.local import LocalContext
from nfs.tracking.null import NullTracker

FPS, NUM_FRAMES, OPENING = 25.0, 60, 3


def clip_tables(clip_id, split="", identity="one", seed=0, **changes):
    """A clip whose expression OPENING follows the loudness, and whose frame 5 has no fit."""
    rng = np.random.default_rng(seed)
    num_samples = int(NUM_FRAMES * 16000 / FPS)
    loudness = np.repeat(rng.uniform(0, 1, NUM_FRAMES // 5), 5)
    wave = rng.uniform(-0.5, 0.5, num_samples) * np.repeat(loudness, num_samples // NUM_FRAMES)
    samples = (wave * 32767).astype(np.int16)
    mel = melspectrogram(samples / 32767.0, 16000)
    row = {
        "clip_id": clip_id, "source_uri": "x", "source_sha256": "0", "identity_id": identity,
        "split": split, "fps": FPS, "num_frames": NUM_FRAMES, "duration_s": NUM_FRAMES / FPS,
        "width_px": 64, "height_px": 64, "has_audio": True, "av_offset_s": 0.0, "status": "ok",
        "error": "", **changes,
    }  # fmt: skip
    expression = np.zeros((NUM_FRAMES, 64), np.float32)
    expression[:, OPENING] = loudness
    fits = [
        {
            "clip_id": clip_id, "frame_index": i, "identity": [0.0] * 80,
            "expression": expression[i].tolist(), "texture": [0.0] * 80,
            "rotation_rad": [0.0] * 3, "translation": [0.0] * 3, "lighting": [0.0] * 27,
            "nme_percent": 1.0, "photometric_l1": 0.0, "status": "no_face" if i == 5 else "ok",
        }
        for i in range(NUM_FRAMES)
    ]  # fmt: skip
    audio = {
        "clip_id": clip_id, "sample_rate_hz": 16000, "samples": samples.tobytes(),
        "mel": mel.T.ravel().tolist(), "num_mel_frames": mel.shape[1],
    }  # fmt: skip
    return {
        "clips": pa.Table.from_pylist([row], CLIPS),
        "audio": pa.Table.from_pylist([audio], AUDIO),
        "fits": pa.Table.from_pylist(fits, FITS),
    }


def write_artifacts(folder, clips):
    """Write `clips` and `fits` artifacts of `{clip_id: changes}`."""
    uris = {"clips": str(folder / "clips"), "fits": str(folder / "fits")}
    for seed, (clip_id, changes) in enumerate(clips.items()):
        for table, rows in clip_tables(clip_id, seed=seed, **changes).items():
            uri = uris["fits" if table == "fits" else "clips"]
            Store(uri).write_table(f"{table}/{clip_id}.parquet", rows)
    write_manifest(uris["clips"], kind="clips", config={})
    write_manifest(uris["fits"], kind="fits", config={}, parents=[uris["clips"]])
    return uris


def face_basis():
    """Points that move down with OPENING (lips) or up with expression 7 (brows)."""
    lips, upper, landmarks = torch.zeros(6, 3, 64), torch.zeros(5, 3, 64), torch.zeros(68, 3, 64)
    lips[:3, 1, OPENING] = -10.0
    lips[:, 0, 9] = 0.5
    upper[:, 1, 7] = 5.0
    landmarks[66, 1, OPENING] = -10.0
    landmarks[[41, 40, 47, 46], 1, 11] = 8.0
    neutral = torch.zeros(68, 3)
    neutral[36:48, 0] = torch.arange(12.0) * 5
    neutral[[41, 40, 47, 46], 0] = neutral[[37, 38, 43, 44], 0]
    neutral[[37, 38, 43, 44], 1] = 8.0
    return FaceBasis(lips, upper, landmarks, neutral)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audio")
    save_face_basis(folder / "basis.npz", face_basis())
    return {**write_artifacts(folder, {"a": {}, "b": {}}), "face_basis": str(folder / "basis.npz")}


def records_of(uris, **kwargs):
    options = {"min_frames": 8, "max_offset_s": 0.5, **kwargs}
    return index_clips(uris["clips"], uris["fits"], **options)


def config_of(uris, **changes):
    tree = {
        **uris, "data": {"num_frames": 6}, "batch_size": 4, "total_samples": 12, "log_every": 4,
        "checkpoint_every": 8, "evaluate_every": 8, "optimizer": {"lr": 1e-3, "ema_kimg": 0.01},
    }  # fmt: skip
    return TrainAudio2expConfig.from_tree({**tree, **changes})


def test_face_basis_round_trips_and_refuses_other_files(tmp_path):
    save_face_basis(tmp_path / "b.npz", face_basis())
    loaded = load_face_basis(tmp_path / "b.npz")
    assert torch.equal(loaded.lips, face_basis().lips)
    np.savez(tmp_path / "other.npz", x=np.zeros(1))
    for name in ("other.npz", "absent.npz"):
        with pytest.raises(InputError, match="face basis"):
            load_face_basis(tmp_path / name)


def test_gap_and_eyes_follow_their_expressions():
    basis, expression = face_basis(), torch.zeros(3, 64)
    expression[1, OPENING] = 1.0
    assert lip_gap_mm(basis, expression).tolist() == pytest.approx([0, 10, 0])
    expression[2, 11] = 1.0
    aspect = eye_aspect(basis, expression)
    assert aspect[2] == pytest.approx(0, abs=1e-6)
    assert aspect[0] > 0.1


def test_lve_is_the_mean_over_frames_of_the_largest_lip_distance():
    truth, prediction = torch.zeros(2, 64), torch.zeros(2, 64)
    prediction[0, OPENING] = 0.5
    assert lip_vertex_error_mm(prediction, truth, face_basis()).item() == pytest.approx(2.5)


def test_direct_teacher_keeps_lips_of_the_fit_and_brows_of_the_reference():
    basis = face_basis()
    teacher = direct_teacher(basis, 1.0, 1e-3)
    fit, reference = torch.zeros(1, 1, 64), torch.zeros(1, 64)
    fit[..., OPENING], fit[..., 7], fit[..., 20] = 0.8, 0.6, 0.4
    reference[..., 7] = -0.2
    target = teacher(fit, reference)[0, 0]
    assert target[OPENING].item() == pytest.approx(0.8, abs=0.01)
    assert target[7].item() == pytest.approx(-0.2, abs=0.01)
    assert target[20].item() == pytest.approx(0.0, abs=1e-6)
    same = torch.randn(1, 64)
    torch.testing.assert_close(teacher(same[None], same)[0], same, atol=1e-5, rtol=1e-5)
    assert torch.equal(raw_teacher(64)(fit, reference), fit)


def test_losses_are_zero_at_the_target_and_count_what_they_say():
    basis, zero = face_basis(), torch.zeros(2, 3, 64)
    weights = LossWeights(expression=2.0, lip=1.0, velocity=5.0, eye=0.0)
    extra = {"reference": torch.zeros(2, 64), "blink": torch.zeros(2, 1), "basis": basis}
    total, terms = audio2exp_loss(zero, zero, weights=weights, **extra)
    assert total.item() == 0
    off = zero.clone()
    off[:, :, OPENING] = 0.1
    total, terms = audio2exp_loss(off, zero, weights=weights, **extra)
    assert terms["loss/lip_mm2"].item() == pytest.approx(0.5)
    assert terms["loss/lip_velocity_mm2"].item() == pytest.approx(0, abs=1e-12)
    assert total.item() == pytest.approx(2 * 0.01 / 64 + 0.5)
    closed = dataclasses.replace(weights, eye=1.0)
    _, open_terms = audio2exp_loss(zero, zero, weights=closed, **extra)
    assert open_terms["loss/eye_aspect"].item() == pytest.approx(0, abs=1e-6)
    extra["blink"] = torch.ones(2, 1)
    _, terms = audio2exp_loss(zero, zero, weights=closed, **extra)
    assert terms["loss/eye_aspect"] == pytest.approx(float(eye_aspect(basis, zero[0, 0])))


def test_index_joins_good_frames_and_says_what_it_left_out(tmp_path):
    clips = {
        "good": {},
        "bad": {"status": "decode_error"},
        "mute": {"has_audio": False},
        "late": {"av_offset_s": 2.0},
    }
    uris = write_artifacts(tmp_path, clips)
    records, left_out = records_of(uris)
    assert [r.clip_id for r in records] == ["good"]
    assert left_out == {"status_decode_error": 1, "no_audio": 1, "av_offset": 1}
    assert records[0].runs(0, 20) == [(0, 5), (6, 20)]
    with pytest.raises(ArtifactError, match="too_few_frames"):
        records_of(uris, min_frames=1000)


def test_one_identity_is_split_by_time_with_a_guard(artifacts):
    split = split_clips(records_of(artifacts)[0], num_frames=6, holdout_fraction=0.25)
    assert split.kind == "time_tail"
    assert max(s.stop for s in split.train) == 40
    assert {(s.start, s.stop) for s in split.held_out} == {(45, 60)}
    with pytest.raises(ArtifactError, match="longest stretch"):
        split_clips(records_of(artifacts)[0], num_frames=50, holdout_fraction=0.25)


def test_several_identities_are_split_by_the_split_column(tmp_path):
    clips = {"a": {"split": "train"}, "b": {"split": "val", "identity": "two"}}
    records, _ = records_of(write_artifacts(tmp_path, clips))
    split = split_clips(records, num_frames=6, holdout_fraction=0.25)
    assert split.kind == "identity"
    assert {s.record.clip_id for s in split.train} == {"a"}
    assert {s.record.clip_id for s in split.held_out} == {"b"}
    leaking = [dataclasses.replace(r, identity_id="same") for r in records]
    assert split_clips(leaking, num_frames=6, holdout_fraction=0.25).kind == "time_tail"


def dataset_of(uris, augmentation=None, **changes):
    records, _ = records_of(uris)
    reader = ClipReader(uris["clips"], uris["fits"], cache_clips=1)
    spans = split_clips(records, num_frames=6, holdout_fraction=0.25).train
    options = {"num_frames": 6, "reference": "random", "use_blink": True, **changes}
    return SpeechWindows(spans, reader, augmentation=augmentation or Augmentation(), **options)


def test_samples_are_aligned_and_depend_on_the_generator_only(artifacts):
    dataset = dataset_of(artifacts)
    for index in range(len(dataset)):
        item = dataset.get(index, np.random.default_rng(index))
        again = dataset.get(index, np.random.default_rng(index))
        assert all(np.array_equal(item[k], again[k]) for k in item)
        assert item["windows"].shape == (6, 80, 16)
        assert item["expression"].shape == (6, 64)
        assert np.isfinite(item["expression"]).all()
        assert 0 <= item["blink"][0] <= 1


def test_audio_follows_the_frames(artifacts):
    dataset = dataset_of(artifacts)
    items = [dataset.get(i, np.random.default_rng(i)) for i in range(len(dataset))]
    loudness = np.concatenate([i["expression"][:, OPENING] for i in items])
    level = np.concatenate([i["windows"][:, :, 6:10].mean((1, 2)) for i in items])
    assert np.corrcoef(loudness, level)[0, 1] > 0.8


def test_mel_of_the_unchanged_cut_wave_equals_the_stored_mel(artifacts):
    dataset = dataset_of(artifacts)
    changed = dataset_of(artifacts, Augmentation(gain_db=1e-12))
    for index in range(len(dataset)):
        stored = dataset.get(index, np.random.default_rng(3))["windows"]
        cut = changed.get(index, np.random.default_rng(3))["windows"]
        np.testing.assert_allclose(cut, stored, atol=1e-4)


def test_first_reference_and_no_blink(artifacts):
    item = dataset_of(artifacts, reference="first", use_blink=False)
    first = item.get(0, np.random.default_rng(0))
    assert first["blink"].tolist() == [0]
    record = records_of(artifacts)[0][0]
    clip = ClipReader(artifacts["clips"], artifacts["fits"], 1).read(record)
    np.testing.assert_array_equal(first["reference"], clip.expression[0])


def test_ridge_beats_the_constant_reference_on_learnable_data(artifacts):
    records, _ = records_of(artifacts)
    reader = ClipReader(artifacts["clips"], artifacts["fits"], 2)
    split = split_clips(records, num_frames=6, holdout_fraction=0.25)
    runs = held_out_runs(split.held_out, reader, 1000)
    rng = np.random.default_rng(0)
    silent = fit_reference_map(split.train, reader, raw_teacher(64), rng, 1000)
    ridge = fit_ridge(split.train, reader, silent, face_basis().lips.numpy(), 1000)
    metrics = evaluate_baselines(runs, ridge, face_basis())
    assert metrics["val/lve_mm_ridge"] < 0.7 * metrics["val/lve_mm_silent"]
    assert metrics["val/lip_gap_correlation_ridge"] > 0.5


def test_held_out_runs_stop_at_the_frame_budget(artifacts):
    records, _ = records_of(artifacts)
    reader = ClipReader(artifacts["clips"], artifacts["fits"], 2)
    split = split_clips(records, num_frames=6, holdout_fraction=0.25)
    assert [len(r.expression) for r in held_out_runs(split.held_out, reader, 20)] == [15, 5]


def test_plot_is_an_image():
    image = line_plot({"a": np.arange(5.0), "b": np.zeros(5)}, "gap, mm")
    assert image.shape == (320, 960, 3)
    assert image.dtype == np.uint8
    assert image.min() < 100


def test_training_resumes_to_the_same_weights_and_exports(artifacts, tmp_path):
    tree = config_of(artifacts).tree()
    reports = []

    def stop_early(metrics):
        reports.append(metrics)
        return False

    whole = train_worker(tree, LocalContext(tmp_path / "whole", NullTracker()))
    search_trial(tree, stop_early, tmp_path / "cut", NullTracker())
    assert reports[0]["train/samples_seen"] == 8
    cut = train_worker(tree, LocalContext(tmp_path / "cut", NullTracker()))
    assert cut == pytest.approx(whole, abs=1e-6)
    assert {"val/lve_mm", "val/lve_mm_reference", "val/lve_mm_ridge"} <= whole.keys()
    first, second = (load_checkpoint(tmp_path / name / "checkpoint") for name in ("whole", "cut"))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    assert not first.training


def test_training_from_a_checkpoint_can_freeze_the_encoder(artifacts, tmp_path):
    start = config_of(artifacts, total_samples=4, batch_size=2)
    train_worker(start.tree(), LocalContext(tmp_path / "a", NullTracker()))
    path = str(tmp_path / "a" / "checkpoint")
    init = {"kind": "checkpoint", "path": path, "freeze_encoder": True}
    frozen = config_of(artifacts, init=init, loss={"eye": 0.0}, total_samples=4).tree()
    train_worker(frozen, LocalContext(tmp_path / "b", NullTracker()))
    before, after = load_checkpoint(path), load_checkpoint(tmp_path / "b" / "checkpoint")
    for name, value in before.audio_encoder.state_dict().items():
        assert torch.equal(value, after.audio_encoder.state_dict()[name]), name
    assert not torch.equal(before.mapping1.weight, after.mapping1.weight)


def test_configuration_mistakes_name_the_key(artifacts):
    with pytest.raises(ConfigError, match=r"launch\.num_workers=3"):
        config_of(artifacts, launch={"num_workers": 3})
    with pytest.raises(ConfigError, match="log_every"):
        config_of(artifacts, checkpoint_every=6)
    with pytest.raises(ConfigError, match="min_snr_db"):
        config_of(artifacts, data={"augment": {"min_snr_db": 50.0}})
    with pytest.raises(ConfigError, match="face_basis"):
        train_worker(config_of({**artifacts, "face_basis": None}).tree(), None)


def test_lip_displacement_is_linear():
    basis, expression = face_basis().lips, torch.randn(2, 5, 64)
    torch.testing.assert_close(displace(basis, 2 * expression), 2 * displace(basis, expression))


def test_the_silent_guess_of_one_clip_is_its_mean(artifacts):
    records, _ = records_of(artifacts)
    reader = ClipReader(artifacts["clips"], artifacts["fits"], 2)
    spans = split_clips(records[:1], num_frames=6, holdout_fraction=0.25).train
    rng = np.random.default_rng(0)
    guess = fit_reference_map(spans, reader, raw_teacher(64), rng, 1000)
    clip = reader.read(records[0])
    mean = np.concatenate([clip.expression[s.start : s.stop] for s in spans]).mean(0)
    for reference in clip.expression[[0, 10, 20]]:
        np.testing.assert_allclose(guess.weight @ reference + guess.bias, mean, atol=0.15)
