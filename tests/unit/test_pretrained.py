"""Import of original checkpoints: strict, and never by executing a pickle."""

import json
import os
import tarfile
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from nfs.arcface import build_backbone
from nfs.errors import InputError
from nfs.pretrained import load_original, read_state_dict
from nfs.stylenerf.original import generator_spec
from nfs.stylenerf.original_discriminator import discriminator_spec
from tests.pickles import Call

D_CONFIG = {"img_resolution": 8, "channel_base": 0.002, "architecture": "skip"}
G_CONFIG = {
    "z_dim": 8,
    "w_dim": 8,
    "img_resolution": 16,
    "synthesis_kwargs": {
        "kernel_size": 1,
        "upsample_mode": "nn_cat",
        "use_noise": False,
        "z_dim": 0,
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
        ("z_dim", 64),
        ("interp_steps", "0:10"),
        ("cam_based_sampler", True),
        ("upsampler_kwargs.block_reses", [32]),
        ("foreground_kwargs.use_viewdirs", True),
        ("foreground_kwargs.use_sdf", "volsdf"),
        ("background_kwargs.inverse_sphere", False),
        ("input_kwargs.output_mode", "hash_table"),
        ("camera_kwargs.depth_transform", "Squeeze"),
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


WEIGHTS = {"conv.weight": torch.arange(4.0), "conv.bias": torch.ones(1)}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("suffix", "wrap"),
    [
        (".pt", lambda w: w),
        (".pth", lambda w: {"net_recon": w, "opt_00": {"lr": 0.1}, "sched_00": {}}),
        (".tar", lambda w: {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in w.items()}}),
        (".ckpt", lambda w: {"model": {"state_dict": w}, "optimizer": {}, "note": "x"}),
        (".pt", lambda w: {"model_state_dict": {k: torch.nn.Parameter(v) for k, v in w.items()}}),
        (".pt", lambda w: {"epoch": 1, "state_dict_backbone": w, "state_dict_softmax_fc": {}}),
    ],
)
def test_torch_files_are_read_and_unwrapped(tmp_path, suffix, wrap, zipped):
    file = tmp_path / f"file{suffix}"
    torch.save(wrap(WEIGHTS), file, _use_new_zipfile_serialization=zipped)
    state = read_state_dict(file)
    assert state.keys() == WEIGHTS.keys()
    assert all(torch.equal(state[name], WEIGHTS[name]) for name in WEIGHTS)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_torch_files_that_would_run_code_are_refused(tmp_path, zipped):
    trap = tmp_path / "owned"
    file = tmp_path / "network.pt"
    torch.save(Call(os.system, f"touch {trap}"), file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"names posix\.system; .*nothing was executed"):
        read_state_dict(file)
    whole = torch.nn.Sequential(torch.nn.Linear(2, 2))
    torch.save({"state_dict": whole}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"names torch\.nn\.modules\.container\.Sequential"):
        read_state_dict(file)
    assert not trap.exists()
    torch.load(file, weights_only=False)  # the same file does load where code may run


def test_other_files_are_refused_in_words(tmp_path):
    def written(name, write):
        write(tmp_path / name)
        return tmp_path / name

    def bundle(path):
        with tarfile.open(path, "w") as archive:
            archive.addfile(tarfile.TarInfo("storages"))

    def script(path):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("s/constants.pkl", b"\x80\x02).")
            archive.writestr("s/data.pkl", b"\x80\x02).")
            archive.writestr("s/version", b"3")

    for file, words in (
        (written("x.pt", lambda p: p.write_bytes(b"")), "not a readable file of torch.save"),
        (written("x.pth", lambda p: p.write_bytes(b"<html>" * 99)), "x.pth"),
        (written("x.tar", bundle), "x.tar"),
        (written("s.pt", script), "TorchScript"),
        (written("l.pt", lambda p: torch.save([1], p)), "no state dict but list"),
        (written("e.pt", lambda p: torch.save({}, p)), "holds no state dict"),
        (written("o.pt", lambda p: torch.save(WEIGHTS | {"lr": 0.1}, p)), r"\['lr'\] \(1 of 3"),
        (written("x.pkl", lambda p: p.write_bytes(b"N.")), "nfs checkpoint import stylenerf"),
        (written("x.onnx", lambda p: p.write_bytes(b"")), "known: .safetensors .pt"),
    ):
        with pytest.raises(InputError, match=words):
            read_state_dict(file)


def test_torch_files_go_through_load_original(tmp_path):
    backbone = build_backbone("mbf", 32)
    torch.save({f"module.{k}": v for k, v in backbone.state_dict().items()}, tmp_path / "model.pt")
    ours = load_original("arcface/mbf", tmp_path / "model.pt").state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in backbone.state_dict().items())
