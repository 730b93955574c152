"""Originals in, checkpoint directories out, and back: nothing lost, nothing half-read."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from nfs.arcface import build_backbone
from nfs.arcface.export import load_backbone
from nfs.artifacts import read_manifest, verify
from nfs.audio.audio2exp import Audio2Exp
from nfs.checkpoints import describe, export_checkpoint, import_checkpoint
from nfs.cli import app
from nfs.errors import InputError
from nfs.pretrained import load_original
from nfs.stylenerf import Discriminator, DiscriminatorSpec, Generator, GeneratorSpec
from nfs.stylenerf.export import export_generator, load_discriminator, load_generator
from nfs.stylenerf.original_export import (
    original_discriminator_state,
    original_generator_state,
)
from nfs.stylenerf.original_export_options import (
    original_discriminator_options,
    original_generator_options,
)
from nfs.stylenerf.snapshot import read_snapshot
from nfs.stylenerf.spec import EllipsoidPrior
from nfs.training.checkpoint import read_model, read_weights
from tests.parity.stylenerf_recording import Recording
from tests.parity.stylenerf_variant_checks import _tree
from tests.pickles import Foreign, foreign_module, write_pickle

SPEC = GeneratorSpec(
    z_dim=8,
    w_dim=8,
    img_resolution=16,
    mapping_num_layers=2,
    field_hidden_dim=8,
    field_num_layers=3,
    background_dim=4,
    background_hidden_dim=8,
    background_num_layers=2,
    feature_dim=8,
    num_frequencies=3,
    background_num_frequencies=3,
    resolution_vol=8,
    resolution_start=8,
    channel_base=0.01,
    channel_max=16,
)
D_SPEC = DiscriminatorSpec(img_resolution=16, channel_base=0.004, channel_max=16, lowres_head=8)


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture
def networks():
    torch.manual_seed(0)
    return Generator(SPEC), Generator(SPEC), Discriminator(D_SPEC)


@pytest.fixture
def checkpoint(networks, tmp_path):
    generator, averaged, discriminator = networks
    export_generator(tmp_path / "run", generator, ema=averaged, discriminator=discriminator)
    return tmp_path / "run"


def snapshot(tmp_path, networks, **changes):
    """A snapshot file as the original writes it, from networks of ours."""
    generator, averaged, discriminator = networks
    options = original_generator_options(SPEC)
    states = {
        "G": original_generator_state(generator),
        "G_ema": original_generator_state(averaged),
        "D": original_discriminator_state(discriminator),
    }
    for dotted, value in changes.items():
        network, _, name = dotted.partition(":")
        states[network][name] = value
    content = {
        name: foreign_module(
            "Discriminator" if name == "D" else "Generator",
            state,
            "raise SystemExit('source text was executed')",
            _init_kwargs=original_discriminator_options(D_SPEC) if name == "D" else options,
        )
        for name, state in states.items()
    }
    pipe = {"_buffers": {"p": torch.tensor(0.125)}, "xflip": 1.0, "noise": 0.0, "hue": 1}
    content |= {"augment_pipe": Foreign("AugmentPipe", pipe), "training_set_kwargs": {"path": "x"}}
    return write_pickle(tmp_path / "network-snapshot-000120.pkl", content)


def test_a_snapshot_becomes_a_checkpoint(networks, tmp_path):
    file = snapshot(tmp_path, networks)
    import_checkpoint("stylenerf", file, tmp_path / "out")
    generator, averaged, discriminator = networks
    out = tmp_path / "out"
    assert same(load_generator(out, ema=False).state_dict(), generator.state_dict())
    assert same(load_generator(out).state_dict(), averaged.state_dict())
    assert same(load_discriminator(out).state_dict(), discriminator.state_dict())
    origin = read_model(out)["origin"]
    assert (origin["kimg"], origin["alpha"], origin["augment_p"]) == (120, 1.0, 0.125)
    assert origin["augmentations"] == ["xflip", "hue"]
    assert "network-snapshot-000120.pkl" in (out / "card.md").read_text()
    assert read_manifest(str(out), kind="checkpoint").config["family"] == "stylenerf"
    assert verify(str(out)) == []
    single = load_original("stylenerf/generator", file)
    assert same(single.state_dict(), averaged.state_dict())
    single = load_original("stylenerf/discriminator", file)
    assert same(single.state_dict(), discriminator.state_dict())


def test_what_modules_keep_outranks_the_recorded_arguments(shared_dir):
    snapshot = read_snapshot(shared_dir / "parity/stylenerf/snapshots/network-snapshot-hydra.pkl")
    options = snapshot.networks["G"].options
    assert options["mapping_kwargs"]["num_layers"] == 2
    assert options["mapping_kwargs"]["lr_multiplier"] == 0.01
    assert options["synthesis_kwargs"]["camera_kwargs"]["fov"] == 12
    assert options["synthesis_kwargs"]["kernel_size"] == 1
    assert "z_dim" not in options["synthesis_kwargs"]["background_kwargs"]
    assert snapshot.networks["D"].options["epilogue_kwargs"]["mbstd_group_size"] == 8
    json.dumps(snapshot.summary())


def test_damaged_statistics_are_refused_by_name(networks, tmp_path):
    nan = torch.tensor([float("nan")] * 8)
    file = snapshot(tmp_path, networks, **{"G_ema:mapping.w_avg": nan})
    with pytest.raises(InputError, match=r"G_ema: mapping\.w_avg \(1 in all\) hold NaN"):
        import_checkpoint("stylenerf", file, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert describe(file)["networks"]["G_ema"]["not_finite"] == ["mapping.w_avg"]


def test_snapshots_that_do_not_fit_are_refused(networks, tmp_path):
    file = snapshot(tmp_path, networks, **{"D:b16.extra.weight": torch.ones(1)})
    with pytest.raises(InputError, match="unknown"):
        import_checkpoint("stylenerf", file, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == [file.name]
    for content, words in (
        ({"D": None, "training_set_kwargs": {}}, "no G or G_ema in"),
        ([1, 2], "no G or G_ema in list"),
        ({"G": {"weight": 1}}, "G is a dict, not a network"),
        ({"G": foreign_module("Generator", {})}, "no module `synthesis`"),
    ):
        file = write_pickle(tmp_path / "x.pkl", content)
        with pytest.raises(InputError, match=words):
            read_snapshot(file)


@pytest.mark.parametrize("network", [None, "ema", "weights", "discriminator"])
def test_an_exported_network_reads_back_exactly(checkpoint, networks, tmp_path, network):
    generator, averaged, discriminator = networks
    file = tmp_path / "network.safetensors"
    family = export_checkpoint(checkpoint, file, network=network)
    expected = {"weights": generator, "discriminator": discriminator}.get(network, averaged)
    assert same(load_original(family, file).state_dict(), expected.state_dict())
    if network != "discriminator":
        import_checkpoint(family, file, tmp_path / "again")
        again = load_generator(tmp_path / "again")
        assert same(again.state_dict(), expected.state_dict())
        names = load_file(file).keys()
        assert {"mapping.fc0.weight", "synthesis.fg_nerf.blocks.1.affine.bias"} <= names
        assert {"synthesis.alpha", "synthesis.b16.conv0.resample_filter"} <= names


def test_an_export_equals_the_original_file(shared_dir, tmp_path):
    folder = shared_dir / "parity/stylenerf"
    for name in ("ffhq64", "eg3d64"):
        config = json.loads((folder / name / "config.json").read_text())
        weights = load_file(folder / name / "G.safetensors")
        options = {**config["G"], "img_resolution": config["res"]}
        ours = load_original("stylenerf/generator", weights, options)
        written = original_generator_state(ours)
        assert same(
            {k: v for k, v in written.items() if k != "synthesis.alpha"},
            {k: v for k, v in weights.items() if k != "synthesis.alpha"},
        )
        again = load_original("stylenerf/generator", written, original_generator_options(ours.spec))
        assert again.spec == ours.spec


def test_every_variant_can_be_written_back(shared_dir):
    units = shared_dir / "parity/stylenerf/units"
    for file in sorted((units / "variants").glob("*.json")):
        recording = Recording(file.with_suffix(""))
        config = _tree(file, "config/")
        config.setdefault("img_resolution", recording["img"].shape[-1])
        state = recording.under("state/")
        ours = load_original("stylenerf/generator", state, config)
        written = original_generator_state(ours)
        # Frequencies of view directions, which no running model reads, are not written.
        assert same(written, {k: v for k, v in state.items() if not k.endswith("B_view")}), file
        options = original_generator_options(ours.spec)
        again = load_original("stylenerf/generator", written, options)
        assert again.spec == ours.spec, file
    recording = Recording(units / "discriminators")
    for name in sorted({k.split("/")[0] for k in recording.tensors if "/state/" in k}):
        config = _tree(units / "discriminators.json", f"{name}/kwargs/")
        state = recording.under(f"{name}/state/") | {"alpha": torch.ones([])}
        ours = load_original("stylenerf/discriminator", state, config)
        written = original_discriminator_state(ours)
        assert same(written, state), name
        options = original_discriminator_options(ours.spec)
        assert load_original("stylenerf/discriminator", written, options).spec == ours.spec, name


def test_what_the_original_lacks_is_not_exported(tmp_path):
    solid = GeneratorSpec(**{**SPEC.__dict__, "density_prior": EllipsoidPrior((1, 1, 1), 2.0)})
    export_generator(tmp_path / "run", Generator(solid))
    with pytest.raises(InputError, match="no counterpart of density_prior"):
        export_checkpoint(tmp_path / "run", tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="no averaged weights"):
        export_checkpoint(tmp_path / "run", tmp_path / "x.safetensors", network="ema")
    with pytest.raises(InputError, match=r"name the file \.safetensors"):
        export_checkpoint(tmp_path / "run", tmp_path / "x.pt")
    with pytest.raises(InputError, match="unknown network 'G'"):
        export_checkpoint(tmp_path / "run", tmp_path / "x.safetensors", network="G")


def test_other_families_go_both_ways(tmp_path):
    torch.manual_seed(0)
    backbone = build_backbone("mbf", 32)
    torch.save(backbone.state_dict(), tmp_path / "model.pt")
    import_checkpoint("arcface/mbf", tmp_path / "model.pt", tmp_path / "face")
    assert same(load_backbone(tmp_path / "face").state_dict(), backbone.state_dict())
    file = tmp_path / "face.safetensors"
    assert export_checkpoint(tmp_path / "face", file) == "arcface/mbf"
    assert same(load_original("arcface/mbf", file).state_dict(), backbone.state_dict())

    speech = Audio2Exp()
    torch.save({"model": speech.state_dict(), "epoch": 3}, tmp_path / "exp.pth")
    import_checkpoint("audio2exp", tmp_path / "exp.pth", tmp_path / "speech")
    assert same(read_weights(tmp_path / "speech"), speech.state_dict())
    assert export_checkpoint(tmp_path / "speech", file) == "audio2exp"
    assert same(load_file(file), speech.state_dict())


def test_imports_fail_before_anything_is_written(networks, tmp_path):
    state = original_generator_state(networks[0])
    save_file(state, tmp_path / "G.safetensors")
    out = tmp_path / "out"
    with pytest.raises(InputError, match="needs config="):
        import_checkpoint("stylenerf/generator", tmp_path / "G.safetensors", out)
    with pytest.raises(InputError, match=r"cannot import 'stylegan'; known: .*stylenerf"):
        import_checkpoint("stylegan", tmp_path / "G.safetensors", out)
    with pytest.raises(InputError, match="not readable as JSON"):
        import_checkpoint("stylenerf/generator", tmp_path / "G.safetensors", out, config="no.json")
    assert not out.exists()
    (tmp_path / "config.json").write_text(json.dumps(original_generator_options(SPEC)))
    import_checkpoint(
        "stylenerf/generator", tmp_path / "G.safetensors", out, config=tmp_path / "config.json"
    )
    assert same(load_generator(out).state_dict(), networks[0].state_dict())
    with pytest.raises(InputError, match="exists and is not empty"):
        import_checkpoint("stylenerf", tmp_path / "x.pkl", out)


def test_commands(networks, tmp_path):
    file, out, plain = snapshot(tmp_path, networks), tmp_path / "out", tmp_path / "x.safetensors"

    def run(*arguments):
        result = CliRunner().invoke(app, ["checkpoint", *map(str, arguments)])
        assert result.exception is None, result.exception
        return result.stdout

    assert json.loads(run("inspect", file))["networks"]["G"]["alpha"] == 1
    run("import", "stylenerf", file, out)
    assert json.loads(run("inspect", out))["model"]["kind"] == "stylenerf"
    assert "stylenerf/discriminator" in run("export", out, plain, "--network", "discriminator")
    assert json.loads(run("inspect", plain))["options"]["img_resolution"] == 16
