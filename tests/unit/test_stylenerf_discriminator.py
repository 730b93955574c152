"""Variants of the discriminator: gradients, growth, conditions, exclusions, original options."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from nfs.config.train_stylenerf import DiscriminatorConfig, TrainStylenerfConfig
from nfs.errors import InputError
from nfs.stylenerf import Discriminator, DiscriminatorSpec
from nfs.stylenerf.discriminator_head import camera_loss, pose9_to_matrix
from nfs.stylenerf.original_discriminator import discriminator_spec, load_discriminator

PLAIN = DiscriminatorSpec(
    img_resolution=32, channel_base=1 / 128, channel_max=16, lowres_head=16, mbstd_group_size=2
)
FIXED = replace(PLAIN, progressive=False)
VARIANTS = {
    "plain": PLAIN,
    "resnet": replace(FIXED, architecture="resnet"),
    "orig": replace(FIXED, architecture="orig"),
    "labels": replace(PLAIN, c_dim=3, cmap_dim=6, mapping_num_layers=2),
    "dual": replace(PLAIN, dual_discriminator=True),
    "dual_input": replace(PLAIN, dual_input_ratio=2),
    "matrix": replace(PLAIN, camera="matrix"),
    "pose9": replace(PLAIN, camera="pose9"),
    "uvr": replace(PLAIN, camera="uvr", separate_camera=True),
    "unconditioned": replace(PLAIN, camera="uvr", camera_condition=False),
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def judge(network, image, **options):
    c = torch.eye(3)[torch.arange(len(image)) % 3] if network.spec.c_dim else None
    return network(image, c=c, **options)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_is_trained_and_penalised(name):
    network = Discriminator(VARIANTS[name])
    image = torch.randn(4, 3, 32, 32, requires_grad=True)
    logits = judge(network, image)
    assert logits.shape == ((8 if name == "dual" else 4), 1)
    loss = logits.square().sum()
    if network.spec.camera is not None:
        _, camera = judge(network, image, return_camera=True)
        loss = loss + camera.square().sum()
    loss.backward()
    idle = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    # A bias before the statistics may leave them, but nothing is cut off.
    assert idle == []
    network.zero_grad()
    logits = judge(network, image)
    (gradient,) = torch.autograd.grad(logits.sum(), image, create_graph=True)
    gradient.square().sum().backward()
    trunk = [p for n, p in network.blocks.named_parameters() if n.endswith("weight")]
    assert all(p.grad is not None and p.grad.any() for p in trunk)


@pytest.mark.parametrize("name", ["plain", "labels", "dual", "dual_input"])
def test_second_derivatives_in_float64(name, monkeypatch):
    # The penalty of a piecewise linear network has steps; a smooth activation has derivatives.
    monkeypatch.setattr(F, "leaky_relu", lambda x, slope: slope * x + (1 - slope) * F.softplus(x))
    network = Discriminator(VARIANTS[name]).double().eval()
    image = torch.randn(2, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    direction = torch.randn_like(image)
    c = torch.eye(3, dtype=torch.float64)[:2] if network.spec.c_dim else None

    def penalty(image):
        logits = network(image, c=c)
        return torch.autograd.grad(logits.sum(), image, create_graph=True)[0].square().sum()

    (slope,) = torch.autograd.grad(penalty(image), image)
    step = 1e-6
    ahead = penalty((image + step * direction).detach().requires_grad_(True))
    behind = penalty((image - step * direction).detach().requires_grad_(True))
    expected = (ahead - behind) / (2 * step)
    assert torch.allclose((slope * direction).sum(), expected, rtol=1e-4)


@torch.no_grad()
def test_fade_starts_and_ends_where_the_stages_do():
    network = Discriminator(replace(PLAIN, img_resolution=64, fade=True)).eval()
    image = torch.randn(4, 3, 32, 32)
    # Two levels, 16 -> 32 -> 64: at alpha just above 0 a 32 px image counts as its 16 px one.
    begun = network(image, alpha=1e-9)
    half = F.interpolate(image, size=(16, 16), mode="bilinear", align_corners=False)
    assert torch.allclose(begun, network(half, alpha=0.0), atol=1e-4)
    shipped = Discriminator(replace(PLAIN, img_resolution=64)).eval()
    shipped.load_state_dict(network.state_dict())
    ended = network(image, alpha=0.5 - 1e-9)
    assert torch.allclose(ended, shipped(image, alpha=0.3), atol=1e-4)
    assert not torch.allclose(network(image, alpha=0.25), ended, atol=1e-3)
    # At alpha 0 and 1, and without growth, there is nothing to fade.
    large = torch.randn(4, 3, 64, 64)
    assert torch.equal(network(large, alpha=1.0), shipped(large, alpha=1.0))
    assert torch.equal(network(large, alpha=0.0), shipped(large, alpha=0.0))


@torch.no_grad()
def test_real_images_stand_in_for_their_low_resolution_ones():
    image = torch.randn(4, 3, 32, 32)
    low = F.interpolate(image, size=(16, 16), mode="bilinear", align_corners=False)
    for name in ("dual", "dual_input"):
        network = Discriminator(VARIANTS[name]).eval()
        assert torch.equal(network(image), network(image, image_low=low))
        assert not torch.allclose(network(image), network(image, image_low=low + 1), atol=1e-3)
    # Generated images carry theirs in whatever size the stage has (Q11).
    assert network(image, image_low=torch.randn(4, 3, 8, 8)).shape == (4, 1)
    assert network(torch.randn(4, 3, 16, 16), alpha=0.0).shape == (4, 1)


def test_logits_do_not_train_the_camera():
    network = Discriminator(VARIANTS["uvr"])
    image = torch.randn(4, 3, 32, 32)
    logits, camera = network(image, return_camera=True)
    logits.square().sum().backward()
    assert network.camera_head.weight.grad is None
    camera_loss(camera, torch.zeros(4, 3)).backward()
    assert network.camera_head.weight.grad.any()
    assert network.low_blocks["8"].conv1.weight.grad.any()


def test_predicted_rotations_are_rotations():
    matrix = pose9_to_matrix(torch.randn(5, 9, dtype=torch.float64))
    rotation = matrix[:, :3, :3]
    eye = torch.eye(3, dtype=torch.float64).expand(5, 3, 3)
    assert torch.allclose(rotation @ rotation.transpose(1, 2), eye)
    assert torch.allclose(torch.linalg.det(rotation), torch.ones(5, dtype=torch.float64))
    assert torch.equal(matrix[:, 3], torch.tensor([[0.0, 0, 0, 1]]).double().expand(5, 4))


def test_frozen_layers_are_counted_from_the_image():
    network = Discriminator(replace(PLAIN, num_frozen_layers=4))
    frozen = {
        name.removesuffix(".weight")
        for name, _ in network.blocks.named_buffers()
        if name.endswith(".weight")
    }
    assert frozen == {"32.from_rgb", "32.conv0", "32.conv1", "16.from_rgb"}
    assert list(network.state_dict()) == list(Discriminator(PLAIN).state_dict())
    network.requires_grad_(True)
    network(torch.randn(2, 3, 32, 32)).sum().backward()
    assert network.blocks["32"].conv0.weight.grad is None


@pytest.mark.parametrize("name", VARIANTS)
def test_weights_and_spec_round_trip(name):
    spec = VARIANTS[name]
    first = Discriminator(spec).eval()
    second = Discriminator(DiscriminatorSpec.from_dict(spec.to_dict())).eval()
    second.load_state_dict(first.state_dict())
    image = torch.randn(2, 3, 32, 32)
    assert torch.equal(judge(first, image), judge(second, image))


def test_half_features_and_single_logits_under_autocast():
    network = Discriminator(PLAIN).eval()
    image = torch.randn(4, 3, 32, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        reduced = network(image)
        assert network.blocks["32"](None, image)[0].dtype == torch.bfloat16
    assert reduced.dtype == torch.float32
    exact = network(image)
    assert (reduced - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "dense"}, "architecture='dense'"),
        ({"camera": "quaternion"}, "camera='quaternion'"),
        ({"architecture": "resnet"}, "needs architecture 'skip'"),
        ({"dual_discriminator": True, "lowres_head": None}, "need lowres_head"),
        ({"lowres_head": 64}, "lowres_head=64 is not a power of two from 8 to 32"),
        ({"separate_camera": True}, "need a camera"),
        ({"camera_condition": False}, "need a camera"),
        ({"dual_discriminator": True, "dual_input_ratio": 2}, "choose one"),
        ({"camera": "uvr", "c_dim": 3}, "cannot both condition"),
    ],
)
def test_options_that_exclude_each_other(options, message):
    with pytest.raises(ValueError, match=message):
        Discriminator(replace(PLAIN, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "orig"}, "progressive=false"),
        ({"fade": True, "progressive": False}, "fade needs progressive"),
        ({"separate_camera": True}, r"need discriminator\.camera"),
        ({"dual_discriminator": True, "dual_input_ratio": 2}, "choose one of"),
    ],
)
def test_settings_that_exclude_each_other(options, message):
    with pytest.raises(ValueError, match=message):
        DiscriminatorConfig(**options)


def test_growing_images_need_a_growing_discriminator():
    tree = {"clips": "clips", "batch_size": 8, "discriminator": {"progressive": False}}
    with pytest.raises(ValueError, match=r"growth\.end_kimg=0"):
        TrainStylenerfConfig.model_validate(tree)
    TrainStylenerfConfig.model_validate(tree | {"growth": {"start_kimg": 0, "end_kimg": 0}})
    grown = {"generator": {"grow_field": True}, "loss": {"path_pixels": 0}}
    TrainStylenerfConfig.model_validate(tree | grown)


def test_settings_and_spec_have_the_same_variants():
    shared = set(DiscriminatorConfig.model_fields)
    assert shared <= set(DiscriminatorSpec.__dataclass_fields__)
    derived = {"img_resolution", "lowres_head", "c_dim"}
    assert set(DiscriminatorSpec.__dataclass_fields__) - shared == derived


def test_wrong_inputs_are_named():
    image = torch.zeros(2, 3, 32, 32)
    with pytest.raises(ValueError, match=r"c must be \[2, 3\].*got None"):
        Discriminator(VARIANTS["labels"])(image)
    with pytest.raises(ValueError, match=r"c must be None.*got \[2, 3\]"):
        Discriminator(PLAIN)(image, c=torch.zeros(2, 3))
    with pytest.raises(ValueError, match="predicts no camera"):
        Discriminator(PLAIN)(image, return_camera=True)
    with pytest.raises(ValueError, match=r"\[2, 16\] have no loss against \[2, 3\]"):
        camera_loss(torch.zeros(2, 16), torch.zeros(2, 3))


def test_original_options_are_translated():
    config = {
        "img_resolution": 32,
        "c_dim": 5,
        "channel_base": 0.5,
        "predict_camera": True,
        "predict_9d_camera": True,
        "epilogue_kwargs": {"mbstd_group_size": 8},
        "block_kwargs": {"freeze_layers": 2},
    }
    spec = discriminator_spec(config)
    assert (spec.camera, spec.c_dim, spec.condition_dim) == ("pose9", 0, 16)
    assert (spec.mbstd_group_size, spec.num_frozen_layers, spec.progressive) == (8, 2, False)
    with pytest.raises(InputError, match=r"separate_camera.*need a camera"):
        discriminator_spec({"img_resolution": 32, "lowres_head": 16, "saperate_camera": True})
    with pytest.raises(InputError, match="img_channels=1 is not supported"):
        discriminator_spec({"img_resolution": 32, "img_channels": 1})
    with pytest.raises(InputError, match=r"missing \['blocks.16"):
        load_discriminator({}, {"img_resolution": 32})
