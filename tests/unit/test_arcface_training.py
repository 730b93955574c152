"""Backbones, original weights, task, data kinds, presets and the job."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs._launch import run_command
from nfs.arcface import ArcfaceIdentity, build_backbone
from nfs.arcface.augment import augment, turn_hue
from nfs.arcface.backbones import NAMES, BackboneOptions
from nfs.arcface.builders import build_margin, build_optimizer, total_samples
from nfs.arcface.datasets import FaceImages, SyntheticSource, align_face, find_validation
from nfs.arcface.export import load_backbone
from nfs.arcface.iresnet import IResNet
from nfs.arcface.loss_scale import LossScale
from nfs.arcface.original import read_pickled, read_training
from nfs.arcface.prelu import ChannelPReLU
from nfs.arcface.records import write_face_records
from nfs.config.train_arcface import AugmentConfig, TrainArcfaceConfig
from nfs.errors import ArtifactError, ConfigError, InputError, NonFiniteError
from nfs.face.align import ARCFACE_TEMPLATE_INDEX
from nfs.perceptual.protocol import IdentityEmbedding
from nfs.pretrained import load_original
from tests.arcface_ranks import make_task, steps
from tests.unit.test_arcface_records import picture

PRESETS = sorted(Path("jobs/configs/train_arcface").glob("*.yaml"))
SCHEMA = "nfs.config.train_arcface:TrainArcfaceConfig"
TINY = [
    "backbone={name: mbf, embedding_size: 8, image_size_px: 32}",
    "data={kind: synthetic, num_classes: 4, num_images: 16}",
    "launch={kind: local}",
    "tracking={kind: jsonl}",
    "batch_size=8",
    "log_every=8",
    "checkpoint_every=8",
    "epochs=1",
]


class OneProcess:
    device = torch.device("cpu")

    def wrap(self, module):
        return module


@pytest.mark.parametrize("name", ["mbf", "vit_t"])
def test_every_parameter_learns_and_eval_is_deterministic(name):
    torch.manual_seed(0)
    model = build_backbone(name, 8, BackboneOptions(image_size_px=36))
    images = torch.randn(2, 3, 36, 36)
    (model(images) * torch.randn(2, 8)).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(images), model(images), rtol=0, atol=0)


def test_names_and_options_are_checked():
    assert len(NAMES) == 17  # sixteen of the original and vit_l
    with pytest.raises(InputError, match="did you mean 'vit_b'"):
        build_backbone("vitb")
    with pytest.raises(InputError, match="has no mask_ratio"):
        build_backbone("r18", 8, BackboneOptions(mask_ratio=0.1))


def test_recomputing_activations_changes_nothing():
    images = torch.randn(2, 3, 32, 32)
    gradients = []
    for segments in ((0, 0, 0, 0), (-1, -1, 1, 0)):
        torch.manual_seed(0)
        model = IResNet(
            (1, 1, 1, 1), embedding_size=4, image_size_px=32, checkpoint_segments=segments
        )
        model(images).square().sum().backward()
        gradients.append(model.conv1.weight.grad)
    torch.testing.assert_close(*gradients)


def test_prelu_equals_torchs():
    torch.manual_seed(0)
    ours, theirs = ChannelPReLU(5), torch.nn.PReLU(5)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 5, 7, 6).contiguous(memory_format=torch.channels_last)
    results = []
    for module in (ours, theirs):
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        y = module(leaf)
        y.backward(torch.cos(x))
        results.append((y.detach(), leaf.grad, module.weight.grad))
    assert ours._swept(x.requires_grad_())
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_original_weights_are_checked_by_name():
    weights = build_backbone("mbf", 8).state_dict()
    prefixed = {f"module.{k}": v for k, v in weights.items()}
    loaded = load_original("arcface/mbf", prefixed, {"fp16": True, "num_features": 8})
    assert all(torch.equal(v, weights[k]) for k, v in loaded.state_dict().items())
    with pytest.raises(InputError, match="embedding size 8, asked for 512"):
        load_original("arcface/mbf", weights, {"num_features": 512})
    with pytest.raises(InputError, match="May and June 2021"):
        load_original("arcface/mbf", {"conv1.weight": torch.ones(1)})
    less = {k: v for k, v in weights.items() if k != "conv_sep.layers.0.weight"}
    with pytest.raises(InputError, match=r"missing .'conv_sep\.layers\.0\.weight'"):
        load_original("arcface/mbf", less)
    with pytest.raises(InputError, match="unknown options"):
        load_original("arcface/mbf", weights, {"width": 2})


def test_original_training_states_are_joined(tmp_path):
    head = torch.randn(5, 3)
    for rank, rows in enumerate((slice(0, 3), slice(3, 5))):
        state = {
            "epoch": 2,
            "global_step": 7,
            "state_dict_backbone": {"module.a": torch.ones(1)},
            "state_dict_softmax_fc": {"weight": head[rows]},
            "state_optimizer": {
                "param_groups": [{"params": [0]}, {"params": [1]}],
                "state": {1: {"momentum_buffer": 2 * head[rows]}},
            },
        }
        torch.save(state, tmp_path / f"checkpoint_gpu_{rank}.pt")
    found = read_training(tmp_path)
    assert torch.equal(found.head, head)
    assert torch.equal(found.head_moments["momentum"], 2 * head)
    assert list(found.backbone) == ["a"]
    (tmp_path / "checkpoint_gpu_0.pt").unlink()
    with pytest.raises(InputError, match=r"need checkpoint_gpu_0\.pt"):
        read_training(tmp_path)
    (tmp_path / "evil.pt").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    with pytest.raises(InputError, match=r"evil\.pt"):
        read_pickled(tmp_path / "evil.pt")


def test_a_step_moves_everything_and_the_state_restores_it(tmp_path):
    task = make_task(0.5)
    task.setup(OneProcess())
    steps(task, 0, 1)
    state = copy.deepcopy(task.state_dict())
    task.save_part(tmp_path)
    again = make_task(0.5)
    again.setup(OneProcess())
    again.load_state_dict(state)
    again.load_parts(tmp_path)
    assert steps(again, 0, 1) == steps(task, 0, 1)
    torch.testing.assert_close(again.head.weight, task.head.weight, rtol=0, atol=0)


def test_accumulated_gradients_equal_one_batch():
    whole, parts, summed = (
        make_task(**options)
        for options in (
            {},
            {"gradient_accumulation": 3},
            {"gradient_accumulation": 3, "accumulate": "sum", "lr": 0.1 / 3, "clip_norm": 1e9},
        )
    )
    for task in (whole, parts, summed):
        task.setup(OneProcess())
    assert steps(parts, 0, 1) == pytest.approx(steps(whole, 0, 1), abs=2e-5)
    assert len(steps(summed, 0, 1)) == 4


def test_non_finite_steps_are_skipped_up_to_the_limit():
    task = make_task(max_skipped_steps=1)
    task.setup(OneProcess())
    with torch.no_grad():
        task.backbone.first.weight[0, 0] = float("nan")
    before = task.head.weight.detach().clone()
    steps(task, 0, 1, 1)
    assert task.skipped == 1
    assert torch.equal(task.head.weight, before)
    with pytest.raises(NonFiniteError, match="loss/arcface"):
        steps(task, 0, 1, 1)


def test_freezing_and_decay_groups():
    task = make_task(freeze=("first.*",))
    task.setup(OneProcess())
    before = task.backbone.first.weight.detach().clone()
    steps(task, 0, 1)
    assert torch.equal(task.backbone.first.weight, before)
    config = TrainArcfaceConfig.from_tree(
        {"data": {"kind": "synthetic"}, "optimizer": {"kind": "sgd", "decay_norms": False}}
    )
    groups = build_optimizer(config, dict(build_backbone("mbf", 8).named_parameters())).param_groups
    assert [g["weight_decay"] for g in groups] == [5e-4, 0.0]


def test_loss_scale():
    scale = LossScale(enabled=True)
    scale.update(False)
    assert scale.value == 32768.0
    for _ in range(100):
        scale.update(True)
    assert scale.value == 65536.0
    still = LossScale(enabled=False)
    still.update(False)
    assert still.value == 1.0


def test_alignment_puts_the_points_on_the_template():
    landmarks = np.zeros((68, 2))
    places = ((36, 39), (42, 45), (30,), (48,), (54,))
    for points, place in zip(ARCFACE_TEMPLATE_INDEX, places, strict=True):
        landmarks[list(place)] = 2 * (points + 0.5) + 7
    picture = np.zeros((300, 300, 3), np.uint8)
    x, y = (2 * (ARCFACE_TEMPLATE_INDEX[2] + 0.5) + 7).astype(int)
    picture[y - 2 : y + 2, x - 2 : x + 2] = 255
    aligned = align_face(picture, landmarks).astype(float)[..., 0]
    assert aligned.shape == (112, 112)
    rows, columns = np.indices(aligned.shape)
    centre = [(aligned * grid).sum() / aligned.sum() for grid in (columns, rows)]
    np.testing.assert_allclose(centre, ARCFACE_TEMPLATE_INDEX[2], atol=0.6)


def test_augmentation_depends_on_the_generator_only():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    everything = AugmentConfig(
        low_resolution=0.5, blur=0.5, colour=0.5, grey=0.5, crop=0.5, brightness=0.5
    )
    results = [augment(pixels, np.random.default_rng(seed), everything) for seed in (1, 1, 2)]
    assert (results[0] == results[1]).all()
    assert (results[0] != results[2]).any()
    assert (turn_hue(pixels, 0.0, 1.0) == pixels).mean() > 0.99
    synthetic = SyntheticSource(3, 9, 4.0, 24)
    assert (synthetic.read(4)[0] == synthetic.read(4)[0]).all()
    assert FaceImages(synthetic, size_px=24).get(5, np.random.default_rng(0))["label"] == 2


@pytest.mark.parametrize("file", PRESETS, ids=lambda f: f.stem)
def test_presets_start_on_synthetic_data(file):
    config = TrainArcfaceConfig.load(file)
    assert config.backbone.name in NAMES
    build_margin(config.head)
    other = TrainArcfaceConfig.load(file, ["data={kind: synthetic}", "launch={kind: local}"])
    assert total_samples(other, 100_000) % other.batch_size == 0


def test_configuration_errors_name_the_key():
    def load(*overrides):
        return TrainArcfaceConfig.load("jobs/configs/train_arcface/smoke.yaml", overrides)

    with pytest.raises(ConfigError, match=r"not divisible by launch\.num_workers"):
        load("launch.num_workers=3")
    with pytest.raises(ConfigError, match="BatchNorm needs two"):
        load("gradient_accumulation=16")
    with pytest.raises(ConfigError, match="fold=linear needs m1=1"):
        load("head.margin={kind: combined, m1: 0.9, fold: linear}")
    with pytest.raises(ConfigError, match="accumulate=sum has no effect"):
        load("accumulate=sum")
    with pytest.raises(InputError, match="do not fill batch_size"):
        total_samples(load(), 1)
    with pytest.raises(InputError, match=r"'lfw': .*lfw.bin is missing"):
        find_validation("/nowhere", ["lfw"])


def test_job_trains_on_records_and_exports(tmp_path, monkeypatch):
    images = [(label, picture(i)) for i, label in enumerate([0] * 8 + [1] * 8)]
    write_face_records(tmp_path / "train", images)
    data = f"data={{kind: recordio, path: {tmp_path}}}"
    arguments = ["jobs/configs/train_arcface/smoke.yaml", *TINY, data, f"storage={tmp_path}"]
    assert run_command("train_arcface", SCHEMA, [*arguments, "--run-name", "a"]) == 0
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    assert result["metrics"]["train/samples_seen"] == 16
    model = load_backbone(result["artifacts"]["checkpoint"])
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 8)
    identity = ArcfaceIdentity.from_checkpoint(result["artifacts"]["checkpoint"])
    assert isinstance(identity, IdentityEmbedding)
    crops = torch.rand(2, 3, 64, 64, requires_grad=True)
    identity.embed(crops)[:, 0].sum().backward()
    assert crops.grad.abs().sum() > 0
    torch.testing.assert_close(identity.similarity(crops, crops), torch.ones(2))
    with pytest.raises(ArtifactError, match=r"model\.json"):
        load_backbone(tmp_path)
    tuned = [f"backbone.init={result['artifacts']['checkpoint']}", "--run-name", "b"]
    assert run_command("train_arcface", SCHEMA, [*arguments, *tuned]) == 0
