"""Import of original checkpoints: strict, and never by executing a pickle."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from nfs.errors import InputError
from nfs.pretrained import load_original, read_state_dict
from nfs.stylenerf.original import generator_spec
from nfs.stylenerf.original_discriminator import discriminator_spec

D_CONFIG = {"img_resolution": 8, "channel_base": 0.002, "architecture": "skip"}
G_CONFIG = {
    "z_dim": 8,
    "w_dim": 8,
    "img_resolution": 16,
    "synthesis_kwargs": {
        "kernel_size": 1,
        "upsample_mode": "nn_cat",
        "use_noise": False,
        "magnitude_ema_beta": 0.999,
        "camera_kwargs": {"angular_camera": True, "ray_align_corner": False},
        "foreground_kwargs": {"predict_rgb": True},
        "background_kwargs": {"predict_rgb": True, "inverse_sphere": True},
    },
}


def test_unknown_family_lists_the_known_ones():
    with pytest.raises(InputError, match=r"known: .*stylenerf/generator"):
        load_original("stylegan9", {})


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(InputError, match="no such checkpoint file"):
        read_state_dict(tmp_path / "absent.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="not a readable safetensors file"):
        load_original("stylenerf/discriminator", tmp_path / "bad.safetensors", D_CONFIG)


def test_supported_options_are_read():
    spec = generator_spec(G_CONFIG)
    assert (spec.resolution_vol, spec.channel_max, spec.fov_deg) == (16, 1024, 49.13)
    assert discriminator_spec(D_CONFIG).channels(8) == 8


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("upsample_mode", "pixelshuffle"),
        ("upsample_mode", None),
        ("kernel_size", 3),
        ("renderer_kwargs.no_background", True),
        ("camera_kwargs.angular_camera", None),
        ("foreground_kwargs.use_viewdirs", True),
        ("magnitude_ema_beta", -1),
    ],
)
def test_other_mathematics_is_refused(path, value):
    config = json.loads(json.dumps(G_CONFIG))
    *parents, leaf = path.split(".")
    section = config["synthesis_kwargs"]
    for name in parents:
        section = section.setdefault(name, {})
    section.pop(leaf, None)
    if value is not None:
        section[leaf] = value
    with pytest.raises(InputError, match=leaf):
        generator_spec(config)


def test_configuration_is_required():
    with pytest.raises(InputError, match="needs config="):
        load_original("stylenerf/generator", {})


@pytest.fixture
def original(shared_dir):
    folder = shared_dir / "parity/stylenerf/ffhq64"
    config = json.loads((folder / "config.json").read_text())
    config = {**config["G"], "img_resolution": config["res"]}
    return load_file(folder / "G.safetensors"), config


def test_every_name_must_fit(original):
    weights, config = original
    less = dict(weights)
    del less["synthesis.fg_nerf.blocks.0.bias"]
    with pytest.raises(InputError, match=r"missing \['foreground.layers.1.bias'\]"):
        load_original("stylenerf/generator", less, config)
    with pytest.raises(InputError, match=r"unknown \['synthesis.extra'\]"):
        load_original("stylenerf/generator", weights | {"synthesis.extra": torch.ones(1)}, config)
    wrong = weights | {"mapping.w_avg": torch.ones(3)}
    with pytest.raises(InputError, match=r"w_avg is \[3\], expected \[64\]"):
        load_original("stylenerf/generator", wrong, config)


def test_damaged_statistics_are_refused(original):
    weights, config = original
    weights["mapping.w_avg"][0] = float("nan")
    with pytest.raises(InputError, match="NaN or infinity"):
        load_original("stylenerf/generator", weights, config)


def test_file_and_state_dict_give_the_same_network(original, tmp_path):
    weights, config = original
    save_file(weights, tmp_path / "G.safetensors")
    ours = load_original("stylenerf/generator", tmp_path / "G.safetensors", config).state_dict()
    theirs = load_original("stylenerf/generator", weights, config).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
