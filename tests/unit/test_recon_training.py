"""Training the regressor on rendered heads, and its use as the start of a fit."""

import json
import pickle

import numpy as np
import pytest
import torch

from jobs._launch import run_command
from jobs.train_recon import load_identity, train_worker
from nfs.artifacts import read_manifest
from nfs.artifacts.tables import read_table
from nfs.config.train_recon import TrainReconConfig
from nfs.errors import ArtifactError, ConfigError, InputError
from nfs.media.images import decode_jpeg
from nfs.morphable.coefficients import Coefficients
from nfs.morphable.landmark_fit import FitSettings, fit_landmarks
from nfs.morphable.loading import load_model
from nfs.morphable.metrics import nme_percent
from nfs.morphable.recon.augment import Augmentation
from nfs.morphable.recon.builders import build_network, build_weights, rate_factor
from nfs.morphable.recon.checkpoint import load_network
from nfs.morphable.recon.frames import (
    FitReader,
    FrameReader,
    ReconFrames,
    index_frames,
    mean_landmarks,
    split_frames,
    stack_items,
)
from nfs.morphable.recon.losses import ReconObjective
from nfs.morphable.recon.predictor import ReconPredictor
from nfs.runtime.local import LocalContext
from nfs.tracking.null import NullTracker
from tests.unit.recon_fakes import NUM_FRAMES, SIZE, heads, landmarks_px, write_clips

SCHEMA = "nfs.config.train_recon:TrainReconConfig"


@pytest.fixture(scope="module")
def model():
    return load_model()


@pytest.fixture(scope="module")
def artifacts(model, tmp_path_factory) -> dict[str, str]:
    return write_clips(tmp_path_factory.mktemp("recon"), model, {"ann": "", "bob": ""})


def tree_of(artifacts, **changes):
    tree = {
        "clips": artifacts["clips"], "supervision": {"fits": artifacts["fits"]},
        "network": {"backbone": "resnet18", "image_size_px": 64},
        "identity": {"kind": "none"}, "loss": {"feature": 0.0},
        "optimizer": {"lr": 1e-3, "ema_kimg": 0.01, "schedule": {"kind": "cosine"}},
        "batch_size": 4, "total_samples": 12, "log_every": 4, "checkpoint_every": 8,
        "evaluate_every": 8, "max_eval_frames": 6, "sheet_frames": 2,
        "launch": {"kind": "local"}, "tracking": {"kind": "jsonl"},
    }  # fmt: skip
    return {**tree, **changes}


def context(folder, on_report=None):
    return LocalContext(folder, NullTracker(), on_report)


def test_frames_are_split_in_time_with_a_gap(artifacts):
    index = index_frames(artifacts["clips"])
    assert len(index) == 2 * (NUM_FRAMES - 1)
    split = split_frames(artifacts["clips"], index, 0.25)
    assert split.kind == "time_tail"
    assert sorted(set(split.held_out.frame.tolist())) == list(range(15, 20))
    assert max(split.train.frame) == 9
    assert 3 not in split.train.frame
    assert len(split.held_out.spread(4)) == 4
    with pytest.raises(ArtifactError, match="0 to evaluate"):
        split_frames(artifacts["clips"], index, 0.01)


def test_frames_are_split_by_person_where_the_table_says_so(model, tmp_path):
    uris = write_clips(tmp_path, model, {"ann": "train", "bob": "val"})
    split = split_frames(uris["clips"], index_frames(uris["clips"]), 0.2)
    assert split.kind == "identity"
    names = split.train.clip_ids
    assert {names[c] for c in split.train.clip} == {"ann"}
    assert {names[c] for c in split.held_out.clip} == {"bob"}


def test_samples_are_aligned_faces_with_their_fits(artifacts, model):
    index = index_frames(artifacts["clips"])
    reader = FrameReader(artifacts["clips"], index.files, 2)
    fits = FitReader(artifacts["fits"])
    plain = ReconFrames(reader, index, size_px=64, fits=fits)
    changed = ReconFrames(reader, index, size_px=64, fits=fits, augmentation=Augmentation())
    assert len(plain) == len(index)
    batch = stack_items(plain.items())
    assert batch["image"].shape == (len(index), 3, 64, 64)
    assert batch["fit_pose"].sum() == len(index) - 2  # frame 4 has no good fit
    known = batch["fit_pose"] > 0
    found = landmarks_px(model, Coefficients.unpack(batch["fit"][known]), 64)
    assert (found - batch["landmarks"][known]).norm(dim=-1).max() < 0.3
    eyes = batch["landmarks"][:, 36:48].mean(1)
    assert eyes.std(0).max() < 3
    flips = 0
    for position in range(len(index)):
        item = changed.get(position, np.random.default_rng(position))
        again = changed.get(position, np.random.default_rng(position))
        assert all(np.array_equal(item[name], again[name]) for name in item)
        if item["fit_pose"]:
            moved = Coefficients.unpack(torch.from_numpy(item["fit"])[None])
            found = landmarks_px(model, moved, 64)[0].numpy()
            assert np.abs(found - item["landmarks"]).mean() < 0.5
            flips += int(not item["fit_shape"])
    assert 5 < flips < 30
    travelled = pickle.loads(pickle.dumps(changed)).get(0, np.random.default_rng(0))
    assert np.array_equal(travelled["image"], changed.get(0, np.random.default_rng(0))["image"])
    constant = mean_landmarks(plain, 8)
    assert constant.shape == (68, 2)


def test_published_alignment_needs_its_size(artifacts, model):
    index = index_frames(artifacts["clips"])
    reader = FrameReader(artifacts["clips"], index.files)
    fits = FitReader(artifacts["fits"])
    frames = ReconFrames(reader, index, size_px=224, align="published", fits=fits)
    batch = stack_items([frames.get(0, np.random.default_rng(0))])
    found = landmarks_px(model, Coefficients.unpack(batch["fit"]), 224)
    assert (found - batch["landmarks"]).norm(dim=-1).max() < 4
    with pytest.raises(ConfigError, match="image_size_px=224, got 64"):
        TrainReconConfig.from_tree(tree_of(artifacts, data={"align": "published"}))


def test_every_parameter_gets_a_gradient(artifacts, model):
    config = TrainReconConfig.from_tree(tree_of(artifacts))
    network = build_network(config, model)
    index = index_frames(artifacts["clips"])
    reader = FrameReader(artifacts["clips"], index.files)
    frames = ReconFrames(reader, index, size_px=64, fits=FitReader(artifacts["fits"]))
    batch = stack_items([frames.get(i, np.random.default_rng(i)) for i in (0, 9)])
    for parameter in network.final_layers.parameters():  # at zero they pass nothing on
        torch.nn.init.normal_(parameter, std=1e-3)
    objective = ReconObjective(model, image_size_px=64, weights=build_weights(config), mask="face")
    raw = network(batch["image"].float() / 255)
    objective(network.unpack(raw), batch)[0].backward()
    without = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_training_resumes_to_the_same_weights(artifacts, tmp_path):
    tree = TrainReconConfig.from_tree(tree_of(artifacts)).tree()
    whole = train_worker(tree, context(tmp_path / "whole"))
    stopped = train_worker(tree, context(tmp_path / "cut", lambda _: False))
    assert stopped["train/samples_seen"] == 8
    cut = train_worker(tree, context(tmp_path / "cut"))
    assert cut == pytest.approx(whole, abs=1e-6)
    first, second = (load_network(tmp_path / name / "checkpoint") for name in ("whole", "cut"))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    assert not first.training


def test_the_job_learns_and_its_result_starts_a_fit(artifacts, model, tmp_path):
    file = tmp_path / "train.yaml"
    still = {"shift_px": 0, "scale": 0.0, "rotation_deg": 0.0, "flip_probability": 0.0}
    tree = tree_of(
        artifacts,
        storage=str(tmp_path),
        data={"augment": still, "holdout_fraction": 0.2},
        optimizer={"lr": 4e-4, "ema_kimg": 0.0, "schedule": {"kind": "cosine"}},
        loss={"feature": 0.0, "landmark": 0.01},
        batch_size=8, total_samples=256, log_every=32, checkpoint_every=256, evaluate_every=256,
    )  # fmt: skip
    file.write_text(json.dumps(tree))
    assert run_command("train_recon", SCHEMA, [str(file), "--run-name", "net"]) == 0
    metrics = json.loads((tmp_path / "net" / "result.json").read_text())["metrics"]
    assert metrics["val/nme_percent"] < 0.9 * metrics["val/initial_nme_percent"]
    assert metrics["val/shape_error_mm"] > 0
    checkpoint = str(tmp_path / "net" / "checkpoint")
    assert read_manifest(checkpoint, kind="checkpoint").extra["model"] == "recon"
    assert "held-out metric" in (tmp_path / "net" / "checkpoint" / "card.md").read_text()
    picture = next((tmp_path / "net" / "tracking" / "images").glob("val_sheet*"))
    assert decode_jpeg(picture.read_bytes()).shape[2] == 3
    lines = (tmp_path / "net" / "tracking" / "metrics.jsonl").read_text().splitlines()
    logged = [json.loads(line)["metrics"] for line in lines]
    curve = [metrics["loss/total"] for metrics in logged if "loss/total" in metrics]
    assert curve[-1] < 0.5 * curve[0]

    fit = f"clips: {artifacts['clips']}\nstorage: {tmp_path}\nlaunch: {{kind: local}}\n"
    fit += "tracking: {kind: jsonl}\n"
    fit += f"fit: {{init: recon, recon: {checkpoint}, appearance_frames: 0, sheet_frames: 0}}\n"
    (tmp_path / "fit.yaml").write_text(fit)
    fit_schema = "nfs.config.fit_3dmm:Fit3dmmConfig"
    arguments = [str(tmp_path / "fit.yaml"), "--run-name", "fit"]
    assert run_command("fit_3dmm", fit_schema, arguments) == 0
    manifest = read_manifest(str(tmp_path / "fit" / "fits"), kind="fits")
    assert len(manifest.parents) == 2
    table = read_table(str(tmp_path / "fit" / "fits"), "fits", clip_ids=["ann"])
    assert np.nanmedian(table["nme_percent"].to_numpy()) < 1


def test_a_good_start_is_kept_and_the_end_is_the_same(model):
    truth = heads(model, 0, 6)
    target = landmarks_px(model, truth, 256)
    one = FitSettings(iterations=1, rigid_iterations=0)
    cold = fit_landmarks(model, target, 256, settings=one)
    warm = fit_landmarks(model, target, 256, settings=one, start=truth)
    assert warm.nme_percent.mean() < cold.nme_percent.mean()
    ends = [
        fit_landmarks(model, target, 256, start=start, settings=FitSettings(iterations=20))
        for start in (None, truth)
    ]
    torch.testing.assert_close(ends[0].landmarks_px, ends[1].landmarks_px, atol=0.2, rtol=0)


def test_a_start_covers_long_clips_and_photographs(model):
    truth = heads(model, 0, 80)
    target = landmarks_px(model, truth, 256)
    segments = FitSettings(iterations=3, segment_frames=64, segment_overlap=8)
    fit = fit_landmarks(model, target, 256, settings=segments, start=truth)
    assert fit.nme_percent.mean() < 2
    photos = fit_landmarks(model, target[:4], 256, shared_identity=False, start=truth[:4])
    assert photos.nme_percent.mean() < 2


def test_predictions_come_in_the_camera_of_the_frame(artifacts, model):
    network = build_network(TrainReconConfig.from_tree(tree_of(artifacts)), model).eval()
    frames = np.zeros((3, SIZE, SIZE, 3), np.uint8)
    target = landmarks_px(model, heads(model, 1, 3))
    found = ReconPredictor(network, model)(frames, target.numpy())
    # The mean face where the alignment says the face is, without a turn.
    assert nme_percent(landmarks_px(model, found), target).max() < 30
    assert found.identity.abs().max() == 0
    with pytest.raises(ArtifactError, match=r"no model\.json"):
        ReconPredictor.load(artifacts["clips"], model)


def test_another_morphable_model_is_refused(artifacts, model, tmp_path):
    tree = TrainReconConfig.from_tree(tree_of(artifacts, total_samples=4)).tree()
    train_worker(tree, context(tmp_path))
    path = tmp_path / "checkpoint" / "model.json"
    content = json.loads(path.read_text())
    content["spec"]["model_checksum"] = "0" * 64
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="coefficients belong to open_head 000000000000"):
        ReconPredictor.load(tmp_path / "checkpoint", model)
    init = {"kind": "checkpoint", "path": str(tmp_path / "checkpoint")}
    config = TrainReconConfig.from_tree(tree_of(artifacts, init=init))
    with pytest.raises(InputError, match="coefficients belong to"):
        build_network(config, model)


def test_configuration_mistakes_name_the_key(artifacts):
    for changes, message in (
        ({"launch": {"num_workers": 3}}, r"launch\.num_workers=3"),
        ({"checkpoint_every": 6}, "log_every"),
        ({"loss": {"feature": 0.2}}, r"identity\.kind=none"),
        ({"network": {"backbone": "r50"}}, r"network\.backbone"),
    ):
        with pytest.raises(ConfigError, match=message):
            TrainReconConfig.from_tree(tree_of(artifacts, **changes))


def test_learning_rates_follow_their_schedules(artifacts):
    config = TrainReconConfig.from_tree(tree_of(artifacts)).optimizer
    step = config.override({"schedule": {"kind": "step", "every_samples": 10, "factor": 0.2}})
    rates = [rate_factor(step, s, 30) for s in (0, 9, 10, 25)]
    assert rates == pytest.approx([1, 1, 0.2, 0.04])
    line = config.override({"schedule": {"kind": "linear", "start_fraction": 0.5}})
    assert [rate_factor(line, s, 100) for s in (0, 50, 75, 100)] == pytest.approx([1, 1, 0.5, 0])
    rise = config.override({"warmup_samples": 10})
    assert rate_factor(rise, 0, 10**9) == pytest.approx(0.1)


def test_an_arcface_checkpoint_can_be_the_identity_network(artifacts, tmp_path):
    from nfs.arcface.backbones import BackboneOptions, build_backbone
    from nfs.arcface.export import export_backbone

    torch.manual_seed(0)
    options = BackboneOptions()
    backbone = build_backbone("mbf", 64, options)
    export_backbone(tmp_path, backbone, name="mbf", embedding_size=64, options=options)
    identity = {"kind": "arcface", "path": str(tmp_path)}
    config = TrainReconConfig.from_tree(tree_of(artifacts, identity=identity))
    network = load_identity(config)
    assert network is not None
    assert network.name == "arcface_mbf"
    images = torch.rand(2, 3, 64, 64, requires_grad=True)
    points = torch.from_numpy(np.random.default_rng(0).uniform(10, 50, (2, 68, 2)))
    embedding = network(images, points)
    assert embedding.shape == (2, 64)
    embedding.sum().backward()
    assert images.grad is not None
    assert images.grad.abs().max() > 0
    again = load_identity(config)
    assert again is not None
    assert again.checksum == network.checksum
