"""Original StyleNeRF checkpoints: keyword arguments to our specs, state-dict names to ours.

Strict on purpose: an option that changes the mathematics and that we do not have, a missing name
or an unknown one is an error. Source: spec/stylenerf.md 1.1, 2.2, 2.3, 2.7.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from nfs.errors import InputError
from nfs.stylenerf.generator import Generator
from nfs.stylenerf.original_weights import (
    check_fixed,
    learned,
    load_weights,
    renamed,
    required,
)
from nfs.stylenerf.spec import CameraPrior, GeneratorSpec

_GENERATOR_NAMES = [
    (r"mapping\.fc(\d+)\.", r"mapping_network.layers.\1."),
    (r"mapping\.w_avg$", "mapping_network.w_avg"),
    (r"synthesis\.fg_nerf\.", "foreground."),
    (r"synthesis\.bg_nerf\.", "background."),
    (r"synthesis\.b(\d+)\.", r"upsampler.blocks.\1."),
]
_FIELD_NAMES = [
    (r"^(foreground|background)\.fc_in\.", r"\1.layers.0."),
    (r"\.sigma_out\.", ".sigma_head."),
    (r"\.feat_out\.", ".feature_head."),
    (r"^(foreground|background)\.to_rgb\.", r"\1.colour_head."),
]
_BLOCK_NAMES = [
    (r"\.torgb\.", ".to_rgb."),
    (r"\.adapter\.0\.", ".upsample.squeeze."),
    (r"\.adapter\.1\.", ".upsample.expand."),
    (r"^(upsampler\..*)\.w_avg$", r"\1.magnitude"),
]
# Value that an option must have where ours has no alternative yet (dotted original name).
_GENERATOR_FIXED: dict[str, object] = {
    "c_dim": 0,
    "img_channels": 3,
    "mapping_kwargs.lr_multiplier": 0.01,
    "synthesis_kwargs.kernel_size": 1,
    "synthesis_kwargs.architecture": "skip",
    "synthesis_kwargs.upsample_mode": "nn_cat",
    "synthesis_kwargs.use_noise": False,
    "synthesis_kwargs.z_dim": 0,
    "synthesis_kwargs.prog_nerf_only": False,
    "synthesis_kwargs.predict_camera": False,
    "synthesis_kwargs.rectangular": None,
    "synthesis_kwargs.use_single_layer": False,
    "synthesis_kwargs.camera_kwargs.angular_camera": True,
    "synthesis_kwargs.camera_kwargs.depth_transform": None,
    "synthesis_kwargs.camera_kwargs.dists_normalized": False,
    "synthesis_kwargs.camera_kwargs.ray_align_corner": False,
    "synthesis_kwargs.camera_kwargs.random_rotate": False,
    "synthesis_kwargs.renderer_kwargs.hierarchical": True,
    "synthesis_kwargs.renderer_kwargs.no_background": False,
    "synthesis_kwargs.renderer_kwargs.white_background": False,
    "synthesis_kwargs.renderer_kwargs.sigma_type": "relu",
    "synthesis_kwargs.upsampler_kwargs.no_2d_renderer": False,
    "synthesis_kwargs.upsampler_kwargs.no_residual_img": False,
    "synthesis_kwargs.upsampler_kwargs.block_reses": None,
    "synthesis_kwargs.upsampler_kwargs.shared_rgb_style": False,
    "synthesis_kwargs.background_kwargs.inverse_sphere": True,
}
_FIELD_FIXED: dict[str, object] = {
    "positional_encoding": "normal",
    "downscale_p_by": 1,
    "predict_rgb": True,
    "use_viewdirs": False,
    "use_skip": False,
    "add_rgb": False,
    "merge_sigma_feat": False,
    "no_sigma": False,
    "disable_latents": False,
    "use_pos": False,
    "final_sigmoid_act": False,
    "normalized_feat": False,
    "shuffle_factor": 1,
}
# What the original takes when such an option is not given, where that differs from the above.
_ORIGINAL_DEFAULTS: dict[str, object] = {
    "kernel_size": 3,
    "upsample_mode": "default",
    "use_noise": True,
    "angular_camera": False,
    "ray_align_corner": True,
    "inverse_sphere": False,
    "predict_rgb": False,
}


def load_generator(state_dict: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> Generator:
    """Return our generator with original weights.

    Args:
        state_dict: Tensors under their original names.
        config: Original keyword arguments with `img_resolution`.

    Raises:
        InputError: Unsupported option, unknown or missing name, wrong shape, non-finite value.
    """
    generator = Generator(generator_spec(required(config, "generator")))
    load_weights(
        generator, {generator_name(k): v for k, v in learned(state_dict).items()}, "generator"
    )
    return generator.eval()


def generator_spec(config: Mapping[str, Any]) -> GeneratorSpec:
    """Translate the original generator's keyword arguments (defaults are the classes' own)."""
    check_fixed(config, _GENERATOR_FIXED, defaults=_ORIGINAL_DEFAULTS)
    synthesis = config["synthesis_kwargs"]
    mapping = config.get("mapping_kwargs", {})
    camera, renderer = synthesis.get("camera_kwargs", {}), synthesis.get("renderer_kwargs", {})
    foreground = synthesis.get("foreground_kwargs", {})
    background = synthesis.get("background_kwargs", {})
    for name, kwargs in (("foreground_kwargs", foreground), ("background_kwargs", background)):
        check_fixed(
            kwargs,
            _FIELD_FIXED,
            defaults=_ORIGINAL_DEFAULTS,
            prefix=f"synthesis_kwargs.{name}.",
        )
    feature_dim = synthesis.get("rgb_out_dim", 256)
    if synthesis.get("rgb_out_dim_bg", feature_dim) != feature_dim:
        raise InputError("generator option rgb_out_dim_bg differs from rgb_out_dim: not supported")
    upsampler = synthesis.get("upsampler_kwargs", {})
    channel_base = synthesis.get("channel_base", 1)
    magnitude_beta = synthesis.get("magnitude_ema_beta", -1)
    if magnitude_beta <= 0:
        raise InputError("generator option magnitude_ema_beta must be positive here")
    resolution = int(config["img_resolution"])
    resolution_vol = min(int(synthesis.get("resolution_vol", 32)), resolution)
    return GeneratorSpec(
        z_dim=config["z_dim"],
        w_dim=config["w_dim"],
        img_resolution=resolution,
        mapping_num_layers=mapping.get("num_layers", 8),
        w_avg_beta=mapping.get("w_avg_beta", 0.995),
        field_hidden_dim=foreground.get("hidden_size", 128),
        field_num_layers=foreground.get("n_blocks", 8),
        background_dim=synthesis.get("z_dim_bg", 128),
        background_hidden_dim=background.get("hidden_size", 128),
        background_num_layers=background.get("n_blocks", 8),
        feature_dim=feature_dim,
        num_frequencies=foreground.get("n_freq_posenc", 10),
        resolution_vol=resolution_vol,
        resolution_start=synthesis.get("resolution_start", resolution_vol),
        num_samples=renderer.get("n_ray_samples", 14),
        num_background_samples=renderer.get("n_bg_samples", 4),
        depth_range=_pair(camera.get("depth_range", (0.5, 6.0))),
        background_start=float(camera.get("bg_start", 1.0)),
        fov_deg=float(camera.get("fov", 49.13)),
        channel_base=float(upsampler.get("channel_base", channel_base)),
        channel_max=int(upsampler.get("channel_max", synthesis.get("channel_max", 1024))),
        conv_clamp=synthesis.get("conv_clamp"),
        magnitude_ema_beta=float(magnitude_beta),
        progressive=bool(synthesis.get("progressive", True)),
        cameras=CameraPrior(
            yaw_rad=_pair(camera.get("range_u", (0.0, 0.0))),
            pitch_rad=_pair(camera.get("range_v", (0.25, 0.25))),
            radius=_pair(camera.get("range_radius", (2.732, 2.732))),
            gaussian=bool(camera.get("gaussian_camera", False)),
        ),
    )


def _pair(values: Any) -> tuple[float, float]:
    low, high = values
    return float(low), float(high)


def generator_name(name: str) -> str:
    """Return our name of an original generator tensor."""
    name = renamed(name, _GENERATOR_NAMES)
    if not name.startswith(("foreground.", "background.")):
        return renamed(name, _BLOCK_NAMES)
    # The original counts hidden layers after the first, ours count all.
    name = re.sub(r"\.blocks\.(\d+)\.", lambda m: f".layers.{int(m[1]) + 1}.", name)
    return renamed(name, _FIELD_NAMES)
