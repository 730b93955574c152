"""Every published configuration: it loads, has the published numbers, its networks can be built."""

from pathlib import Path

import pytest
import torch

from nfs.config.train_stylenerf import TrainStylenerfConfig
from nfs.stylenerf.builders import build_discriminator, build_generator, build_prior

FOLDER = Path(__file__).resolve().parents[2] / "jobs" / "configs" / "train_stylenerf"
MODELS = {
    "ffhq": "stylenerf_ffhq",
    "afhq": "stylenerf_afhq",
    "cars": "stylenerf_cars",
    "eg3d": "stylenerf_ffhq_eg3d",
    "ffhq_debug": "stylenerf_ffhq_debug",
    "cars_debug": "stylenerf_cars_debug",
    "warped_depth": "stylenerf_ffhq_warped_depth",
}
# kimg, batch, images per GPU, width of D, rates of G and D, gamma, EMA, ramp, mapping layers, px
SPECS = {
    "paper256": (25_000, 64, 8, 0.5, 0.0025, 0.0025, 0.5, 20, None, 8, 256),
    "paper512": (25_000, 64, 8, 1.0, 0.0025, 0.0025, 0.5, 20, None, 8, 512),
    "paper1024": (25_000, 32, 4, 1.0, 0.002, 0.002, 2, 10, None, 8, 1024),
    "nerf32": (25_000, 64, 8, 0.5, 0.0025, 0.0025, 0.003, 20, None, 8, 32),
    "stylegan2": (25_000, 32, 4, 1.0, 0.002, 0.0025, 10, 10, None, 8, 256),
    "cifar": (100_000, 64, 32, 1.0, 0.0025, 0.0025, 0.01, 500, 0.05, 2, 32),
}
# A 128 px field does not fit below a 32 px image.
PAIRS = [
    (model, spec)
    for model in MODELS
    for spec in SPECS
    if not (spec in ("nerf32", "cifar") and model in ("eg3d", "ffhq_debug", "cars_debug"))
]


def load(model: str, spec: str) -> TrainStylenerfConfig:
    return TrainStylenerfConfig.load(FOLDER / f"{model}_{spec}.yaml")


def test_there_is_a_file_for_every_pair():
    names = {f.stem for f in FOLDER.glob("*.yaml")} - {"base", "demo", "smoke"}
    assert {f"{model}_{spec}" for model, spec in PAIRS} <= names
    assert {f.stem for f in (FOLDER / "spec").glob("*.yaml")} == set(SPECS)
    assert {f.stem for f in (FOLDER / "model").glob("*.yaml")} == set(MODELS.values())


@pytest.mark.parametrize(("model", "spec"), PAIRS)
def test_numbers_of_the_spec(model, spec):
    config = load(model, spec)
    found = (
        config.total_samples // 1000,
        config.batch_size,
        config.batch_size // config.launch.num_workers,
        config.discriminator.channel_base,
        config.optimizer.generator_lr,
        config.optimizer.discriminator_lr,
        config.loss.r1_gamma,
        config.optimizer.ema_kimg,
        config.optimizer.ema_rampup,
        config.generator.mapping_num_layers,
        config.generator.img_resolution,
    )
    assert found == SPECS[spec]
    assert config.discriminator.mbstd_group_size == SPECS[spec][2]
    assert (config.loss.pl_weight == 0) == (spec == "cifar")
    assert config.growth.end_kimg == 5000


@pytest.mark.parametrize("model", MODELS)
def test_networks_can_be_built(model):
    config = load(model, "paper256")
    with torch.device("meta"):
        generator = build_generator(config, build_prior(config))
        discriminator = build_discriminator(config)
    assert generator.spec.img_resolution == discriminator.spec.img_resolution == 256
    assert sum(p.numel() for p in generator.parameters()) > 1e6


def test_published_model_has_the_published_size():
    config = load("ffhq", "paper512")
    with torch.device("meta"):
        generator = build_generator(config, build_prior(config))
        discriminator = build_discriminator(config)
    counts = [sum(p.numel() for p in net.parameters()) / 1e6 for net in (generator, discriminator)]
    assert counts == pytest.approx([5.41, 27.77], abs=0.005)


def test_a_preset_takes_another_data_set():
    file = FOLDER / "cars_paper256.yaml"
    folder = TrainStylenerfConfig.load(file, ["data.kind=folder", "data.path=/photos"])
    assert (folder.data.kind, folder.data.path, folder.data.mirror) == ("folder", "/photos", False)
    clips = TrainStylenerfConfig.load(file, ["data={kind: clips, path: c}"])
    assert clips.data.kind == "clips"
    base = TrainStylenerfConfig.load(FOLDER / "base.yaml", ["clips=mine"])
    assert base.data.path == "mine"
