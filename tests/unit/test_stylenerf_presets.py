"""Every published configuration: it loads, has the published numbers, its networks can be built."""

import re
from pathlib import Path
from typing import get_args

import pytest
import torch

from nfs.config.base import Config
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


# Options of the original's command line, configurations and classes (spec/stylenerf.md 1.1, 1.3).
OLD_NAMES = """
outdir data dry_run debug resume_run snap imgsnap metrics seed num_fp16_res auto resolution cond
subset mirror aug p target augpipe resume freezed fp32 nhwc allow_tf32 nobench workers launcher
partition comment gpus port nodes timeout ucp prefix generate_with_image spec model
kimg mb mbstd fmaps lrate lrate_disc gamma ema ramp map
z_dim c_dim w_dim img_resolution img_channels encoder_kwargs
num_layers embed_features layer_features lr_multiplier w_avg_beta
channel_base channel_max z_dim_bg rgb_out_dim resolution_vol resolution_start progressive
prog_nerf_only interp_steps predict_camera n_reg_samples reg_full rectangular freeze_nerf
cam_based_sampler conv_clamp kernel_size architecture upsample_mode use_noise magnitude_ema_beta
use_single_layer
hidden_size n_blocks use_skip use_viewdirs add_rgb predict_rgb merge_sigma_feat disable_latents
positional_encoding n_freq_posenc use_pos downscale_p_by final_sigmoid_act normalized_feat
shuffle_factor tcnn_backend use_normal use_sdf
inverse_sphere no_sigma n_freq_posenc_views gauss_dim_pos gauss_dim_view gauss_std activation
range_u range_v range_radius depth_range gaussian_camera angular_camera fov bg_start
depth_transform dists_normalized random_rotate ray_align_corner
n_ray_samples n_bg_samples sigma_type hierarchical no_background white_background bound
density_p_target tv_loss_weight fine_only mask_background pre_volume_size n_final_samples
no_2d_renderer no_residual_img block_reses shared_rgb_style channel_base_sz channel_dict
out_channel_dict
output_mode in_res out_res out_dim split_size keep_posenc keep_nerf_latents hash_table
lowres_head resize_real_early dual_discriminator dual_input_ratio enable_ema predict_9d_camera
predict_3d_camera saperate_camera no_camera_condition mbstd_group_size mbstd_num_channels
freeze_layers cmap_dim
style_mixing_prob r1_gamma pl_batch_shrink pl_decay pl_weight other_weights curriculum alpha_start
label_smooth generator_mode
abs_sigma no_bbox upsample_type skips use_style dual_input_res
"""
DOCS = sorted((FOLDER.parents[2] / "docs").glob("stylenerf*.md"))


def test_every_old_option_is_in_the_tables():
    text = re.sub(r"```.*?```", "", "\n".join(file.read_text() for file in DOCS), flags=re.S)
    words = {w for part in re.findall(r"`([^`]+)`", text) for w in re.split(r"[^\w]+", part)}
    assert [option for option in OLD_NAMES.split() if option not in words] == []


def test_every_new_key_of_the_tables_exists():
    known = {key for key, _ in keys(TrainStylenerfConfig)}
    named = re.findall(
        r"`((?:data|generator|discriminator|optimizer|loss|growth|augment|loader|launch|speed|"
        r"evaluation|cameras)\.[a-z_\d.]+)",
        DOCS[0].read_text(),
    )
    assert len(named) > 40
    assert sorted({name.rstrip(".") for name in named} - known) == []


def keys(model, prefix=""):
    """Yield (dotted key, type) of a configuration, through unions."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}", field.annotation
        for part in members(field.annotation):
            yield from keys(part, f"{prefix}{name}.")


def members(annotation):
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    return [m for a in get_args(annotation) for m in members(a)]
